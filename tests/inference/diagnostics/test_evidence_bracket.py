"""The evidence from both sides, against closed forms."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from _stats import assert_unbiased
from lapilli import inference, ppl


@ppl.model
def model(x):
    z = ppl.sample("z", dist.Normal(0.0, 1.0))
    ppl.sample("x", dist.Normal(z, 1.0), obs=x)


@ppl.model
def wide(x):
    ppl.sample("z", dist.Normal(0.5 * x + 0.3, 1.0))


DATA_MEAN = -0.5 * np.log(4 * np.pi) - 0.5  # E log N(x; 0, 2)
DIVERGENCES = {  # between the posterior N(x / 2, 1 / 2) and the guide
    "lower": 0.5 * (2 * (1 + 0.3**2) - 1 + np.log(0.5)),
    "upper": 0.5 * (0.5 + 0.3**2 - 1 - np.log(0.5)),
}


def bracket(key, guide=wide, **options):
    return inference.diagnostics.evidence_bracket(
        model, guide, key, 0.0, data_fn=lambda seen: (seen["x"],), **options
    )


@pytest.mark.fast("seed0")
def test_one_particle_is_off_by_the_two_divergences(seed):
    """Sd about 1 on either side: a bias of 0.05 is 7 standard errors."""
    result = bracket(seed, num_simulations=20_000)
    assert_unbiased(result.lower, DATA_MEAN - DIVERGENCES["lower"])
    assert_unbiased(result.upper, DATA_MEAN + DIVERGENCES["upper"])
    assert_unbiased(result.upper - result.lower, sum(DIVERGENCES.values()))


@pytest.mark.slow
def test_more_particles_close_the_gap_around_the_evidence(key):
    gaps = []
    for num_particles in (1, 10, 100):
        result = bracket(key, num_particles=num_particles, num_simulations=4_000)
        error = 4.5 * result.lower.std() / 4_000**0.5
        assert result.lower.mean() - error < DATA_MEAN < result.upper.mean() + error
        gaps.append(result.gap[0])
    assert gaps[0] > 4 * gaps[1] > 16 * gaps[2] > 0


@pytest.mark.slow
def test_batches_change_nothing_and_it_prints(key):
    whole, parts = (bracket(key, num_simulations=20, batch_size=size) for size in (None, 4))
    np.testing.assert_allclose(whole.lower, parts.lower, rtol=1e-5)
    assert "mean over 20 simulated data sets with 1 particles: lower -" in str(whole)


def test_given_draws_of_the_posterior_bound_from_above(seed):
    """Data 1: exact draws N(1 / 2, 1 / 2), sd about 1 on either side; a bias of 0.05 is 7 standard errors."""
    z = 0.5 + np.sqrt(0.5) * np.random.default_rng(0).normal(size=20_000)
    result = inference.diagnostics.evidence_bracket(model, wide, seed, 1.0, draws={"z": z})
    log_z = -0.5 * np.log(4 * np.pi) - 0.25
    assert_unbiased(result.lower, log_z - DIVERGENCES["lower"])
    assert_unbiased(result.upper, log_z + DIVERGENCES["upper"])
    assert "mean over 20000 draws with 1 particles" in str(result)


@pytest.mark.parametrize("rare", [0.2, 1e-6], ids=["seen", "rare"])
def test_the_standard_error_from_both_sides_is_that_of_the_weights(rare):
    """Three states; the third has probability 0.02, and the guide draws it now and then, or never: its own draws cannot tell."""
    p, q = np.array([0.6, 0.38, 0.02]), np.array([0.5 - rare / 2, 0.5 - rare / 2, rare])
    rng, log_w, size = np.random.default_rng(0), 3.0 + np.log(p / q), 20_000
    lower, upper = (log_w[rng.choice(3, size, p=law)] for law in (q, p))
    bracket = inference.diagnostics.EvidenceBracket(lower, upper, 1, "draws")
    exact = np.sqrt((p**2 / q).sum() - 1)
    assert abs(bracket.standard_error(100) / (exact / 10) - 1) < 0.15
    own = np.exp(lower - lower.max())
    assert (own.std() / own.mean() < 0.05 * exact) == (rare < 1e-3)
    assert inference.diagnostics.EvidenceBracket(lower, upper, 1).standard_error(100) is None


def test_draws_of_different_numbers_or_two_sources_are_refused(key):
    of = inference.diagnostics.evidence_bracket
    with pytest.raises(ValueError, match="neither of data_fn and draws"):
        of(model, wide, key, 0.0)
    with pytest.raises(ValueError, match="both of data_fn and draws"):
        of(model, wide, key, 0.0, data_fn=lambda seen: (0.0,), draws={"z": np.zeros(3)})
    with pytest.raises(ValueError, match=r"numbers \{'z': 3, 'y': 2\} by site"):
        of(model, wide, key, 0.0, draws={"z": np.zeros(3), "y": np.zeros(2)})


def test_bad_input_is_refused(key):
    with pytest.raises(ValueError, match="num_particles must be an integer >= 1, got 0"):
        bracket(key, num_particles=0)
    with pytest.raises(ValueError, match="num_simulations must be an integer >= 2, got 1"):
        bracket(key, num_simulations=1)
    estimated = ppl.normalize(model, proposal=wide, num_particles=2)
    with pytest.raises(TypeError, match=r"data_fn returned an array of shape \(\), and a program"):
        inference.diagnostics.evidence_bracket(
            model, wide, key, 0.0, data_fn=lambda seen: seen["x"]
        )
    with pytest.raises(TypeError, match="the guide has an estimated density"):
        bracket(key, guide=estimated)

    @ppl.model
    def rows(x):
        with ppl.plate("rows", 4, subsample_size=2):
            z = ppl.sample("z", dist.Normal(0.0, 1.0))
            ppl.sample("x", dist.Normal(z, 1.0), obs=x)

    def of_rows(x):
        with ppl.plate("rows", 4, subsample_size=2):
            ppl.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(ValueError, match="evidence_bracket averages densities"):
        inference.diagnostics.evidence_bracket(
            rows, of_rows, key, jnp.zeros(2), data_fn=lambda seen: (seen["x"],)
        )


def test_a_factor_is_refused_where_the_model_draws_the_data(key):
    """Its draws are of the law without the factor; given draws know the factor, and an exact guide has no gap."""

    @ppl.model
    def soft(x):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.factor("soft", -1.5 * z**2)
        ppl.sample("x", dist.Normal(z, 1.0), obs=x)

    exact = lambda x: ppl.sample("z", dist.Normal(x / 5, 0.2**0.5))
    of = inference.diagnostics.evidence_bracket
    with pytest.raises(ValueError, match=r"data_fn: sites \['soft'\] are factors"):
        of(soft, exact, key, 1.0, data_fn=lambda seen: (seen["x"],))
    assert abs(of(soft, exact, key, 1.0, draws={"z": np.array([-0.3, 0.1, 0.8])}).gap[0]) < 1e-5


def test_the_guide_of_a_fit_is_scored_at_given_values(key):
    """Its density at values of the sites, here of a LogNormal, by the change of variables from its unconstrained vector."""

    @ppl.model
    def positive(x):
        s = ppl.sample("s", dist.LogNormal(0.0, 1.0))
        ppl.sample("x", dist.Normal(jnp.log(s), 1.0), obs=x)

    fit = inference.fit(positive, args=(1.0,), num_steps=20, progress=False, key=key)
    values = np.array([0.7, 1.5, 4.0])
    given = {"draws": {"s": values}, "num_simulations": 3}
    of = inference.diagnostics.evidence_bracket
    found = of(fit.model, fit.guide, key, 1.0, **given)
    mean, factor = fit.guide.fn.normal(fit.params)
    u = np.log(values)
    exact = stats.norm(0, 1).logpdf(u) + stats.norm(u, 1).logpdf(1.0)
    exact -= stats.norm(mean[0], factor[0, 0]).logpdf(u)
    np.testing.assert_allclose(found.upper, exact, atol=1e-4)
    assert abs(found.gap[0]) < 0.2  # log s has a Normal posterior

    def with_noise(x):
        e = ppl.sample("e", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        ppl.sample("s", dist.LogNormal(e, 1.0))

    with pytest.raises(ValueError, match=r"auxiliary sites \['e'\].*or that of fit\(model\)"):
        of(fit.model, with_noise, key, 1.0, **given)
