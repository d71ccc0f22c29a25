"""The standard error that a single run has of its own log-evidence: tempering, parameters with filters, filters."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.inference.particles import evidence_variance, moves

DATA = np.array([1.2, 0.4, 2.0, 1.1], np.float32)
# y | z ~ N(z, 1), z ~ N(0, 1): y is Normal with covariance I + 11^T.
LOG_Z = float(dist.MultivariateNormal(jnp.zeros(4), jnp.eye(4) + 1.0).log_prob(DATA))
KERNEL = {"kernel": moves.RandomWalk(), "num_moves": 2}


def model(y):
    z = ppl.sample("z", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", len(y)):
        ppl.sample("y", dist.Normal(z, 1.0), obs=y)


def tempered(key, num_particles=40, **options):
    options = {"resampling": "multinomial", **KERNEL} | options
    return inference.tempered_smc(model, key, DATA, num_particles=num_particles, **options)


def walk(ys):
    a = ppl.sample("a", dist.Uniform(-1.0, 1.0))

    def step(x, y):
        x = ppl.sample("x", dist.Normal(a * x, 1.0))
        return x, ppl.sample("y", dist.Normal(x, 0.7), obs=y)

    ppl.scan(step, 0.0, ys)


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "num_particles"), [("last", 40), ("all", 120)])
def test_tempering_frozen_is_unbiased_for_the_variance_of_the_evidence(keep, num_particles, key):
    """As of `smc`, see `test_evidence_variance.errors`: 10,000 runs, an sd of 0.2; 0.012 is 7 standard errors.

    Whole chains of 3 states: 40 of them are 120 particles.
    """
    key_of_frozen = jax.random.key(5)
    frozen = tempered(key_of_frozen, num_particles=600, temperatures=[0.1, 0.4, 1.0], keep=keep)

    def run(key):
        result = tempered(key, num_particles, frozen=frozen, keep=keep)
        return result.log_evidence, evidence_variance(result)

    log_z, v = jax.jit(jax.vmap(run))(jax.random.split(key, 10_000))
    z, v = np.exp(np.asarray(log_z, float) - LOG_Z), np.asarray(v, float)
    assert_unbiased(z, 1.0)
    assert_unbiased((z - 1) ** 2 + z**2 * np.expm1(-v), 0.0)
    # Without the resamplings counted it is another number.
    too_large = v + (int(frozen.num_steps) - 1) * np.log(40 / 39)
    with pytest.raises(AssertionError, match="limit 4.5"):
        assert_unbiased((z - 1) ** 2 + z**2 * np.expm1(-too_large), 0.0)


def ratio(run, key, num_runs=200):
    """The mean over runs of the squared standard error, over the variance of the log-evidence; and 4.5 standard errors of it."""
    log_z, error = jax.jit(lambda keys: jax.lax.map(run, keys, batch_size=50))(
        jax.random.split(key, num_runs)
    )
    squares = (np.asarray(log_z, float) - np.mean(log_z)) ** 2
    told = np.asarray(error, float) ** 2
    spread = squares.std() / squares.mean() + told.std() / told.mean()
    return told.mean() / squares.mean(), 4.5 * spread / num_runs**0.5


@pytest.mark.slow  # 200 runs
@pytest.mark.parametrize("keep", ["last", "all"])
@pytest.mark.parametrize(("scheme", "most"), [("multinomial", 1.0), ("ssp", 2.0)])
def test_tempering_adapted_tells_the_spread_over_200_runs(scheme, most, keep, key):
    """Right for "multinomial"; for "ssp" an upper bound, here of at most twice the variance."""

    def run(key):
        result = tempered(key, num_particles=300, resampling=scheme, keep=keep)
        return result.log_evidence, result.log_evidence_std_error

    found, error = ratio(run, key)
    assert 1 - error < found < most + error


@pytest.mark.slow  # 200 runs of 40 filters each
@pytest.mark.parametrize(("scheme", "most"), [("multinomial", 1.0), ("ssp", 2.0)])
def test_parameters_with_filters_tell_the_spread_over_200_runs(scheme, most, key):
    ys = jnp.asarray([0.3, 1.1, 0.7, -0.4, -1.2, -0.5, 0.4, 0.9])

    def run(key):
        result = inference.particles.smc2(
            walk, key, ys, parameters=["a"], num_parameter_particles=100, num_particles=20,
            filter=inference.particles.FilterOptions(resampling=scheme),
        )  # fmt: skip
        return result.log_evidence, result.log_evidence_std_error

    found, error = ratio(run, key)
    assert 1 - error < found < most + error


@pytest.mark.slow
def test_results_print_their_error_or_how_to_get_one(key):
    told = {s: repr(tempered(key, resampling=s)) for s in ("ssp", "systematic")}
    assert "(standard error at most about 0." in told["ssp"]
    assert (
        "(standard error unknown: resampling='ssp', or particles.replicate)" in told["systematic"]
    )
    kept = tempered(key, num_particles=42, keep="persistent")
    assert kept.log_evidence_std_error is None
    assert "(standard error unknown: particles.replicate)" in repr(kept)
    alone = inference.FeynmanKac(jax.random.normal, lambda k, x, t: x, lambda p, x, t: -(x**2), 1)
    run = inference.smc(alone, key, resampling="ssp", history="none")
    assert run.log_weights.shape == (1000,)  # where nothing is said
    variance = evidence_variance(run, form="upper")
    np.testing.assert_allclose(run.log_evidence_std_error, variance**0.5, rtol=1e-6)
    assert f"at most about {float(variance) ** 0.5:.2g}" in repr(run)


@pytest.mark.slow
def test_where_nothing_is_resampled_every_scheme_will_do(key):
    """The root of the variance of a mean of weights."""
    once = inference.smc(model, key, DATA)
    w = np.exp(np.asarray(once.log_weights, float)) * 1000
    error = (-np.log1p(-w.var(ddof=1) / 1000)) ** 0.5
    np.testing.assert_allclose(once.log_evidence_std_error, error, rtol=1e-3)
    assert f"(standard error {error:.2g})" in repr(once)
    assert jax.jit(lambda k: inference.smc(model, k, DATA).log_evidence_std_error)(key) is None


@pytest.mark.slow_for(
    "options0-None-particles that persist", "options2-2-a TemperedResult keeps no genealogy"
)
@pytest.mark.parametrize(
    ("options", "lag", "message"),
    [
        ({"keep": "persistent"}, None, "particles that persist"),
        ({"keep": "all", "num_particles": 3}, None, "one particle, or chain"),
        ({}, 2, "a TemperedResult keeps no genealogy"),
        ({"resampling": "systematic"}, None, "unknown offspring"),
    ],
)
def test_what_one_run_does_not_show_is_refused(options, lag, message, key):
    with pytest.raises(ValueError, match=message):
        evidence_variance(tempered(key, **options), lag=lag)
