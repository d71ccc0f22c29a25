"""Simulation-based calibration: exact posteriors pass, wrong ones are found."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl

NUM_DRAWS = 19


@ppl.model
def model(x):
    m = ppl.sample("m", dist.Normal(jnp.array([0.0, 1.0]), 2.0).to_event(1))
    k = ppl.sample("k", dist.Bernoulli(0.3))
    ppl.sample("x", dist.Normal(m, 1.0).to_event(1), obs=x)
    ppl.sample("y", dist.Normal(2.0 * k, 1.0), obs=jnp.array(0.0))


def posterior(key, observed, shift=0.0, width=1.0):
    """Conjugate: m | x ~ N((x + prior / 4) / (5 / 4), 4 / 5), and k | y by Bayes' rule."""
    m_key, k_key = jax.random.split(key)
    loc = (observed["x"] + jnp.array([0.0, 1.0]) / 4) / 1.25
    noise = jax.random.normal(m_key, (NUM_DRAWS, 2))
    logit = jnp.log(0.3 / 0.7) + 2 * observed["y"] - 2
    k = jax.random.bernoulli(k_key, jax.nn.sigmoid(logit), (NUM_DRAWS,)).astype(jnp.int32)
    return {"m": loc + shift + width * jnp.sqrt(0.8) * noise, "k": k}


def run(posterior_fn, seed, num_simulations=1_000):
    zeros = jnp.zeros(2)
    return inference.diagnostics.calibrate(
        model, posterior_fn, seed, zeros, num_simulations=num_simulations
    )


@pytest.mark.fast("seed1")
def test_the_exact_posterior_has_uniform_ranks(seed):
    """False alarm: 1e-4 for each seed."""
    result = run(posterior, seed)
    assert result.num_draws == NUM_DRAWS
    assert result.ranks["m"].shape == (1_000, 2) and result.ranks["k"].shape == (1_000,)
    assert result.ranks["m"].min() == 0 and result.ranks["m"].max() == NUM_DRAWS
    assert result.smallest_p_value > 1e-4


@pytest.mark.fast("narrow")
@pytest.mark.parametrize(
    ("shift", "width"), [(0.4, 1.0), (0.0, 1.5), (0.0, 0.7)], ids=["shifted", "wide", "narrow"]
)
def test_wrong_posteriors_are_found(shift, width, key):
    result = run(lambda key, observed: posterior(key, observed, shift, width), key)
    assert result.p_values["m"].max() < 1e-6 and result.p_values["k"] > 1e-4
    assert result.smallest_p_value < 1e-5


def test_p_values_of_uniform_ranks_are_uniform():
    from lapilli.inference.diagnostics._calibration import _p_values

    ranks = np.random.default_rng(0).integers(0, NUM_DRAWS + 1, (400, 3_000))
    p_values = _p_values(ranks, NUM_DRAWS)
    for level in (0.05, 0.5):
        share = (p_values < level).mean()
        assert (
            abs(share - level) < 4.5 * (level * (1 - level) / 3_000) ** 0.5 + 0.005
        )  # counts are discrete


def test_p_values_are_those_of_a_chi_square_test():
    from scipy import stats

    from lapilli.inference.diagnostics._calibration import _p_values

    ranks = np.random.default_rng(0).integers(0, NUM_DRAWS + 1, (200, 2, 3))
    counts = np.stack([np.bincount(r // 2, minlength=10) for r in ranks.reshape(200, 6).T])
    expected = stats.chisquare(counts, axis=1).pvalue.reshape(2, 3)
    np.testing.assert_allclose(_p_values(ranks, NUM_DRAWS), expected, rtol=1e-12)


def test_it_prints_a_table():
    ranks = {"k": np.arange(20), "m": np.zeros((20, 2), int)}
    p_values = {"k": np.array(1.0), "m": np.array([1e-9, 1e-8])}
    result = inference.diagnostics.Calibration(ranks, NUM_DRAWS, p_values)
    np.testing.assert_allclose(result.smallest_p_value, 3e-9)
    text = str(result)
    assert [line.split()[0] for line in text.splitlines()[2:4]] == ["k", "m"]
    assert "corrected for all coordinates: 3e-09" in text


def test_bad_draws_are_refused(key):
    zeros = jnp.zeros(2)
    cases = [
        (lambda k, o: {"v": jnp.zeros(3)}, r"returned \['v'\].*not latent sites.*\['k', 'm'\]"),
        (lambda k, o: {"m": jnp.zeros((3, 1))}, r"site 'm' has shape \(2,\).*\(3, 1\)"),
        (lambda k, o: {"m": jnp.zeros((3, 2)), "k": jnp.zeros(4)}, "one leading axis in common"),
        (lambda k, o: {}, "returned no site"),
        (lambda k, o: {"m": jnp.zeros((0, 2))}, "returned no draw"),
        (lambda k, o: {"m": jnp.full((3, 2), jnp.nan)}, "'m' are NaN in 200 of 200 simulations"),
    ]
    for posterior_fn, message in cases:
        with pytest.raises(ValueError, match=message):
            inference.diagnostics.calibrate(model, posterior_fn, key, zeros)
    with pytest.raises(TypeError, match="posterior_fn returned .*, which tells no sites"):
        inference.diagnostics.calibrate(model, lambda k, o: o["x"], key, zeros)
    with pytest.raises(ValueError, match="num_simulations must be an integer >= 20, got 5"):
        inference.diagnostics.calibrate(model, posterior, key, zeros, num_simulations=5)
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1, got 0"):
        inference.diagnostics.calibrate(model, posterior, key, zeros, batch_size=0)


def test_models_whose_draws_are_not_of_their_density_are_refused(key):
    """A factor or a scaled log-prob changes the posterior and not the simulations; without observations nothing is inferred."""

    @ppl.model
    def soft(x):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.factor("soft", -1.5 * z**2)
        ppl.sample("x", dist.Normal(z, 1.0), obs=x)

    @ppl.model
    def tempered(x):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.handlers.scale(scale=4.0):
            ppl.sample("x", dist.Normal(z, 1.0), obs=x)

    @ppl.model
    def forgotten(x):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("x", dist.Normal(z, 1.0), obs=x)

    draws = lambda key, observed: {"z": jnp.zeros(3)}
    judges = {
        "calibrate": inference.diagnostics.calibrate,
        "simulate": inference.posterior_checks.check_posterior,
    }
    eliminated = ppl.eliminate(forgotten, ["z"])
    for label, judge in judges.items():
        with pytest.raises(ValueError, match=rf"{label}: .*draws \['z'\] from their posterior"):
            judge(eliminated, draws, key, 0.0)
        with pytest.raises(
            ValueError, match=rf"{label}: sites \['soft'\] are factors.*as the law of its site"
        ):
            judge(soft, draws, key, 0.0)
        with pytest.raises(ValueError, match=rf"{label}: log-probs are scaled by \{{'x': 4.0\}}"):
            judge(tempered, draws, key, 0.0)
    with pytest.raises(ValueError, match="calibrate: .* observes nothing.*data of the right shape"):
        inference.diagnostics.calibrate(forgotten, draws, key, None)
