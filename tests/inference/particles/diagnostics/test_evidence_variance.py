"""What runs say about the exactness of their evidence, against the spread of many runs."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _state_space import GOLDEN as Y, GOLDEN_EVIDENCE as KALMAN, golden_chain as walk

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.inference.particles import resampling

pytestmark = pytest.mark.one_in(2)

POLICIES = {
    "every": resampling.every(),
    "ess": resampling.ess_below(0.7),
    "window": resampling.window(1, 4),
    "never": resampling.never(),
}


@ppl.model
def program(ys):
    """The same with all observations in the scan, so that the first resampling comes before the first weighing."""

    def step(x, inputs):
        y, is_first = inputs
        x = ppl.sample("x", dist.Normal(jnp.where(is_first, 1.0, 0.9) * x, jnp.where(is_first, 1e-6, 1.0)))  # fmt: skip
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    first = jnp.arange(len(ys)) == 0
    ppl.scan(step, ppl.sample("x0", dist.Normal(0.0, 1.0)), (ys, first))


def estimates(target, key, *args, runs=10_000, num_particles=40, read=(), **options):
    """Evidence relative to Z, and what `read` reads from each run."""

    def run(key):
        result = inference.smc(
            target, key, *args, num_particles=num_particles, history="ancestors", **options
        )
        return result.log_evidence, *(fn(result) for fn in read)

    z, *values = jax.jit(jax.vmap(run))(jax.random.split(key, runs))
    return np.exp(np.asarray(z, float) - KALMAN), *(np.asarray(v, float) for v in values)


def errors(z, v):
    """(z - 1)^2 - z^2 (1 - exp(-v)), of mean 0 if the second term is unbiased for the variance of z = Z^ / Z.

    With an sd of 0.25 over 10,000 runs, 0.018 is 7 standard errors: a fifth of the variance estimated.
    """
    return (z - 1) ** 2 + z**2 * np.expm1(-v)


SLOW = pytest.mark.slow  # a compilation each


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy", ["every", "ess", *(pytest.param(p, marks=SLOW) for p in ("window", "never"))]
)
def test_unbiased_for_the_variance_of_the_evidence(policy, key):
    z, v = estimates(
        walk(Y), key, read=[inference.particles.evidence_variance], resampling="multinomial", policy=POLICIES[policy]
    )  # fmt: skip
    assert_unbiased(errors(z, v), 0.0)


@SLOW
@pytest.mark.parametrize("scheme", ["multinomial", "rejection"])
def test_unbiased_where_particles_are_resampled_before_the_first_weighing(scheme, key):
    z, v = estimates(
        program, key, Y, read=[inference.particles.evidence_variance], resampling=scheme, policy=resampling.every()
    )  # fmt: skip
    assert_unbiased(errors(z, v), 0.0)


def upper(result):
    return inference.particles.evidence_variance(result, form="upper")


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheme",
    [
        "stratified",
        *(pytest.param(s, marks=SLOW) for s in ("multinomial", "residual", "ssp", "killing")),
    ],
)
def test_upper_is_above_the_variance_and_not_idle(scheme, key):
    """One-sided at 4.5 standard errors; at most 2.5 times the variance here, and 1.3 times for the two best schemes."""
    z, v = estimates(walk(Y), key, read=[upper], resampling=scheme, policy=resampling.every())
    error = errors(z, v)
    assert error.mean() < 4.5 * error.std() / np.sqrt(len(z))
    assert (
        -(z**2 * np.expm1(-v)).mean() < (1.3 if scheme in ("stratified", "ssp") else 2.5) * z.var()
    )


@pytest.mark.slow
def test_a_missing_factor_is_found(key):
    z, v = estimates(
        walk(Y), key, read=[upper], resampling="multinomial", policy=resampling.every()
    )
    with pytest.raises(AssertionError, match="limit 4.5"):
        assert_unbiased(errors(z, v), 0.0)


@pytest.mark.slow
def test_without_resampling_it_is_the_variance_of_a_mean(key):
    result = inference.smc(
        walk(Y), key, num_particles=50, policy=resampling.never(), resampling="multinomial"
    )
    w = np.exp(np.asarray(result.log_weights, float)) * 50
    v = inference.particles.evidence_variance(result)
    np.testing.assert_allclose(-np.expm1(-v), w.var(ddof=1) / 50, rtol=1e-4)
    assert (inference.particles.unique_ancestors(result) == 50).all()


def brute_force(result):
    """Indices of the ancestors after each weighing, and before the first, of the last particles: [weighings + 1, particles]."""
    ancestors = np.asarray(result.ancestors)
    index = [np.arange(ancestors.shape[1])]
    for parents in ancestors[::-1]:
        index.insert(0, parents[index[0]])
    return np.stack(index)


@pytest.mark.slow
def test_counts_of_ancestors(key):
    for target, args in ((walk(Y), ()), (program, (Y,))):
        result = inference.smc(
            target,
            key,
            *args,
            num_particles=30,
            resampling="multinomial",
            policy=resampling.every(),
        )
        exact = [len(set(row)) for row in brute_force(result)[1:]]
        np.testing.assert_array_equal(inference.particles.unique_ancestors(result), exact)
        assert exact[0] < exact[-1] == 30


@pytest.mark.slow  # a long compilation
@pytest.mark.filterwarnings("ignore:smc. the final weights have k-hat")  # of 60 particles
def test_families_by_brute_force_with_and_without_a_lag(key):
    """A lag of the whole run changes nothing."""
    for policy in POLICIES.values():
        result = inference.smc(
            program, key, Y, num_particles=60, resampling="multinomial", policy=policy
        )
        w = np.exp(np.asarray(result.log_weights, float))
        masses = np.bincount(brute_force(result)[0], w)
        num_draws = 1 + int(result.is_resampled.sum())
        exact = -np.log(1 - (masses**2).sum()) - num_draws * np.log(60 / 59)
        for lag in (None, 5, 9):
            got = inference.particles.evidence_variance(result, lag=lag)
            np.testing.assert_allclose(got, exact, rtol=1e-4)


@pytest.mark.slow  # 1,000 runs of 100 steps
def test_a_lag_finds_the_variance_of_a_long_run(key):
    """100 steps, 200 particles: many runs have one Eve, so that the whole genealogy says nothing.

    Four standard errors, and ten per cent for what is of order 1/K or due to the lag.
    """
    states = np.random.default_rng(0).normal(size=100)
    for t in range(1, 100):
        states[t] += 0.9 * states[t - 1]
    ys = (states + np.random.default_rng(1).normal(size=100)).astype(np.float32)

    def run(key):
        result = inference.smc(
            walk(ys), key, num_particles=200, resampling="multinomial", policy=resampling.every(),
            history="ancestors",
        )  # fmt: skip
        variances = [inference.particles.evidence_variance(result, lag=lag) for lag in (4, None)]
        return result.log_evidence, *variances, inference.particles.unique_ancestors(result)[0]

    runs = jax.jit(lambda keys: jax.lax.map(run, keys, batch_size=100))(jax.random.split(key, 1000))
    log_z, lagged, full, eves = (np.asarray(x, float) for x in runs)
    squares = (log_z - log_z.mean()) ** 2  # of mean var(log Z)
    error = np.hypot(squares.std(), lagged.std()) / np.sqrt(len(log_z))
    assert abs(lagged.mean() - squares.mean()) < 4 * error + 0.1 * squares.mean()
    assert lagged.std() < 0.3 * squares.mean()
    np.testing.assert_array_equal(np.isinf(full), eves == 1)
    assert (eves == 1).mean() > 0.1


@pytest.mark.slow
def test_lost_particles_give_nan(key):
    lost = inference.FeynmanKac(
        jax.random.normal, lambda k, x, t: x, lambda p, x, t: jnp.where(t == 1, -jnp.inf, 0.0), 2
    )
    with pytest.warns(UserWarning, match="after weighing 1 no particle"):
        result = inference.smc(lost, key, num_particles=10, resampling="multinomial")
    assert jnp.isnan(inference.particles.evidence_variance(result))


# Replicates.


@pytest.mark.slow
def test_replicates_combine_by_their_mean(key):
    run = lambda key: inference.smc(walk(Y), key, num_particles=20)
    together = inference.particles.replicate(run, key, 60, batch_size=20)
    z = np.exp(np.asarray(together.runs.log_evidence, float))
    np.testing.assert_allclose(np.exp(together.log_evidence), z.mean(), rtol=1e-5)
    error = z.std(ddof=1) / np.sqrt(60) / z.mean()
    np.testing.assert_allclose(together.log_evidence_std_error, error, rtol=1e-3)
    assert together.particles.shape == together.log_weights.shape == (1200,)
    w = np.exp(np.asarray(together.log_weights, float))
    np.testing.assert_allclose(w.reshape(60, 20).sum(1), z / z.sum(), rtol=1e-4)


@pytest.mark.slow
def test_their_standard_error_covers_the_truth(key):
    """(log_evidence - exact) / std_error over 500 groups of 40 runs is near a standard normal: its mean square is 1 within 0.3.

    Its own sd is 0.065; Student's 39 degrees of freedom and the bias of the logarithm add 0.05.
    """
    run = lambda key: inference.smc(walk(Y), key, num_particles=50, history="none")
    groups = jax.jit(jax.vmap(lambda key: inference.particles.replicate(run, key, 40)))(jax.random.split(key, 500))  # fmt: skip
    z = np.asarray((groups.log_evidence - KALMAN) / groups.log_evidence_std_error, float)
    assert abs((z**2).mean() - 1) < 0.3


def result(key, **options):
    return inference.smc(walk(Y), key, **{"num_particles": 5, "resampling": "multinomial"} | options)  # fmt: skip


ERRORS = {
    "no genealogy": (lambda k: inference.particles.evidence_variance(result(k, history="none"), lag=2), "kept no genealogy"),
    "soft offspring": (
        lambda k: inference.particles.evidence_variance(result(k, gradient=resampling.Soft(0.5))), "unknown offspring",
    ),
    "no genealogy to count": (lambda k: inference.particles.unique_ancestors(result(k, history="none")), "kept no genealogy"),
    "systematic": (
        lambda k: inference.particles.evidence_variance(result(k, resampling="systematic")), "unknown offspring.*'multinomial'",
    ),
    "systematic bound": (
        lambda k: inference.particles.evidence_variance(result(k, resampling="systematic"), form="upper"),
        "unknown offspring.*'ssp'",
    ),
    "ssp": (lambda k: inference.particles.evidence_variance(result(k, resampling="ssp")), "negative offspring"),
    "conditional": (
        lambda k: inference.particles.evidence_variance(
            inference.smc(
                program, k, Y, num_particles=5, resampling="multinomial",
                retained={"x0": jnp.zeros(()), "x": jnp.zeros(5)},
            )
        ),
        "retained choices",
    ),
    "one particle": (lambda k: inference.particles.evidence_variance(result(k, num_particles=1)), "one particle"),
    "form": (lambda k: inference.particles.evidence_variance(result(k), form="lower"), "form must be"),
    "lag": (lambda k: inference.particles.evidence_variance(result(k), lag=0), "lag must be"),
    "lag of a bound": (lambda k: inference.particles.evidence_variance(result(k), lag=2, form="upper"), "no bound"),
    "one run": (lambda k: inference.particles.replicate(lambda k: result(k), k, 1), "num_runs"),
    "no evidence": (lambda k: inference.particles.replicate(lambda k: k, k, 2), "no log_evidence"),
}  # fmt: skip


@pytest.mark.fast("conditional", "no genealogy to count")
@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_refused_by_name(name, key):
    run, message = ERRORS[name]
    with pytest.raises((ValueError, TypeError), match=message):
        run(key)
