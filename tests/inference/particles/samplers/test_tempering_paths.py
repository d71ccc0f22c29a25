"""Data tempering and persistent sampling, on the conjugate models of `test_tempering`'s kind."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.special import gammaln
from scipy.stats import poisson

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.inference.particles.samplers import _persistent

COUNTS = np.array([1.0, 3.0, 5.0, 2.0], np.float32)
WALK = inference.particles.moves.RandomWalk()


def rate(y):
    """Gamma(2, 1) prior, Poisson counts."""
    lam = ppl.sample("rate", dist.Gamma(2.0, 1.0))
    with ppl.plate("n", len(COUNTS)):
        ppl.sample("y", dist.Poisson(lam), obs=y)


def rate_in_steps(y):
    """The same data in a scan, and a factor outside of it."""
    lam = ppl.sample("rate", dist.Gamma(2.0, 1.0))
    ppl.factor("outside", -0.5 * lam)
    ppl.scan(lambda _, y: (0.0, ppl.sample("y", dist.Poisson(lam), obs=y)), 0.0, y)


def log_evidence(counts, rate=1.0):
    """Log of the integral of Gamma(2, 1) exp(-(rate - 1) lam) times the counts' probabilities."""
    n, s = len(counts), float(np.sum(counts))
    return (
        gammaln(2 + s) - (2 + s) * np.log(rate + n) - gammaln(np.asarray(counts, float) + 1).sum()
    )


EVIDENCE = log_evidence(COUNTS)


@pytest.mark.slow
def test_rows_enter_one_after_another_with_unbiased_predictive_densities(key):
    """At temperature n / 4 the evidence is that of the first n counts, for every n."""
    options = {"kernel": WALK, "num_moves": 2, "data_axis": "n"}
    schedule = [0.25, 0.5, 0.75, 1.0]
    pilot = inference.tempered_smc(
        rate, key, COUNTS, num_particles=500, temperatures=schedule, **options
    )
    assert pilot.evidence == "consistent"

    def run(key):
        result = inference.tempered_smc(
            rate, key, COUNTS, num_particles=50, frozen=pilot, **options
        )
        assert result.evidence == "unbiased"
        return result.increments

    increments = jax.jit(jax.vmap(run))(jax.random.split(jax.random.fold_in(key, 1), 2000))
    exact = np.array([log_evidence(COUNTS[:n]) for n in range(1, 5)])
    assert_unbiased(np.exp(np.cumsum(increments, -1) - exact), np.ones(4))


@pytest.mark.slow  # seconds of compilation
def test_adapted_steps_take_parts_of_rows_and_time_is_an_axis(key):
    result = inference.tempered_smc(
        rate_in_steps,
        key,
        COUNTS,
        num_particles=4000,
        kernel=WALK,
        data_axis="time",
        target_ess=0.9,
    )
    assert 0 < result.temperatures[0] < 0.25 and result.num_steps > 4
    mean = (2 + COUNTS.sum()) / (1.5 + len(COUNTS))
    assert result.particles["rate"].mean() == pytest.approx(mean, abs=0.1)
    assert result.log_evidence == pytest.approx(log_evidence(COUNTS, 1.5), abs=0.1)


@pytest.mark.slow  # seconds of compilation
def test_a_row_that_has_not_entered_may_be_impossible(key):
    """Exponent 0 times log-prob -inf counts as 0, not as NaN."""

    def bounded(y):
        top = ppl.sample("top", dist.Uniform(0.0, 2.0))
        with ppl.plate("n", 2):
            ppl.sample("y", dist.Uniform(0.0, top), obs=y)

    ys = jnp.array([0.5, 1.0])
    result = inference.tempered_smc(
        bounded, key, ys, num_particles=4000, kernel=WALK, data_axis="n", temperatures=[0.5, 1.0]
    )
    # p(y_1) = log 4 / 2, p(y_1, y_2) = int_1^2 top^-2 / 2
    np.testing.assert_allclose(
        np.cumsum(result.increments), np.log([np.log(4) / 2, 0.25]), atol=0.1
    )


def persistent(key, num_particles, **options):
    return inference.tempered_smc(
        rate, key, COUNTS, num_particles=num_particles, kernel=WALK, keep="persistent", max_steps=10,
        num_moves=2, **options,
    )  # fmt: skip


def moments(key, num_particles=500):
    result = persistent(key, num_particles, target_ess=0.9)
    mean = result.mean(lambda c: c["rate"])
    return result.log_evidence, mean, result.num_steps, (result.log_weights > -jnp.inf).sum()


def check_moments(key):
    """64 runs: their mean within 4.5 standard errors + 0.01 (bias of order 1 / K)."""
    runs = jax.jit(jax.vmap(moments))(jax.random.split(key, 64))
    exact = (EVIDENCE, (2 + COUNTS.sum()) / (1 + len(COUNTS)))
    for got, want in zip(runs, exact, strict=False):
        got = np.asarray(got, float)
        assert abs(got.mean() - want) < 4.5 * got.std() / 8 + 0.01, (got.mean(), want)
    return runs[2:]


@pytest.mark.slow
def test_persistent_particles_find_posterior_and_evidence(key):
    steps, num_weighted = check_moments(key)
    assert (steps > 1).all()
    # Under jit all levels have room, and those that were not needed no weight.
    np.testing.assert_array_equal(num_weighted, 500 * (steps + 1))


@pytest.mark.slow  # a long compilation
def test_a_mixture_with_wrong_constants_is_found(key, monkeypatch):
    extend = _persistent.extend
    wrong = lambda run, pool, points, beta, log_z: extend(run, pool, points, beta, log_z - 1.0)
    monkeypatch.setattr(_persistent, "extend", wrong)
    with pytest.raises(AssertionError, match="np.float64"):
        check_moments(key)


@pytest.mark.slow  # compiles runs of three sizes
def test_persistent_runs_return_the_levels_they_used_and_are_consistent(key):
    result = persistent(key, 40)
    count = 40 * (int(result.num_steps) + 1)
    assert result.particles["rate"].shape == result.log_weights.shape == (count,)
    assert jax.nn.logsumexp(result.log_weights) == pytest.approx(0.0, abs=1e-5)
    assert result.increments.sum() == pytest.approx(float(result.log_evidence), abs=1e-5)
    frozen = jax.eval_shape(lambda key: persistent(key, 40, frozen=result), key)
    assert frozen.evidence == result.evidence == "consistent"
    assert inference.to_arviz(result, key=key, num_samples=10).posterior["rate"].shape == (1, 10)


@pytest.mark.slow  # seconds of compilation
def test_prior_draws_alone_are_importance_sampling(key):
    """One step to temperature 1: the ancestors' weights are likelihoods, and the final ones the balance heuristic."""
    result = persistent(key, 30, temperatures=[1.0])
    lam = np.asarray(result.particles["rate"], float)
    likelihood = poisson.pmf(COUNTS, lam[:, None]).prod(1)
    z = likelihood[:30].mean()
    weights = likelihood / (0.5 + 0.5 * likelihood / z)
    np.testing.assert_allclose(np.exp(result.log_evidence), weights.mean(), rtol=1e-4)
    np.testing.assert_allclose(np.exp(result.log_weights), weights / weights.sum(), rtol=1e-3)


ERRORS = {
    "axis": ({"data_axis": "rows"}, "data_axis='rows'.*no observation has it.*\\['n'\\]"),
    "slots": (
        {"keep": "persistent", "resampling": "killing"},
        "'killing' keeps particles in their slots",
    ),
    "keep": ({"keep": "some"}, "'persistent', got 'some'"),
}


@pytest.mark.slow_for("slots")
@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_refused_by_name(name, key):
    options, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        inference.tempered_smc(rate, key, COUNTS, num_particles=8, kernel=WALK, **options)


def test_an_axis_of_two_sizes_is_refused(key):
    def two(y):
        lam = ppl.sample("rate", dist.Gamma(2.0, 1.0))
        step = lambda name: lambda _, y: (0.0, ppl.sample(name, dist.Poisson(lam), obs=y))
        ppl.scan(step("y"), 0.0, y)
        ppl.scan(step("z"), 0.0, y[:2])

    with pytest.raises(ValueError, match="sizes \\[2, 4\\]"):
        inference.tempered_smc(two, key, COUNTS, num_particles=8, data_axis="time")
