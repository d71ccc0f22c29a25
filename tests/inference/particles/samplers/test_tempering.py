"""Tempered SMC on closed forms, one of them asymmetric; kernels leave their target invariant."""

import itertools
import types

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.special import gammaln
from scipy.stats import multivariate_normal

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.inference.particles.samplers import _run

COUNTS = np.array([1.0, 3.0, 5.0, 2.0], np.float32)
KERNELS = {
    "hmc": inference.particles.moves.HMC(4),
    "mala": inference.particles.moves.MALA(),
    "random walk": inference.particles.moves.RandomWalk(),
    "nuts": inference.particles.moves.BlackJAX(
        lambda f, step, variances: blackjax.nuts(f, step, variances)
    ),
}


@ppl.model
def rate(y):
    """Gamma prior, Poisson counts: an asymmetric likelihood on the positive axis."""
    lam = ppl.sample("rate", dist.Gamma(2.0, 1.0))
    with ppl.plate("n", len(COUNTS)):
        ppl.sample("y", dist.Poisson(lam), obs=y)


def rate_evidence():
    n, s = len(COUNTS), float(COUNTS.sum())
    return gammaln(2 + s) - (2 + s) * np.log(1 + n) - gammaln(COUNTS.astype(float) + 1).sum()


DESIGN = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
RESPONSE = (DESIGN @ [2.0, -1.0, 3.0]).astype(np.float32)


@ppl.model
def regression(x, y):
    w = ppl.sample("w", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    ppl.factor("half", -0.5 * w[0])
    with ppl.plate("rows", len(RESPONSE)):
        ppl.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def regression_truth():
    """Evidence and posterior mean; the factor tilts the prior's first coordinate by exp(-w / 2)."""
    shift = np.array([-0.5 * 4.0, 0.0, 0.0])
    x = DESIGN.astype(float)
    cov = 4 * x @ x.T + 0.25 * np.eye(len(x))
    log_z = multivariate_normal(x @ shift, cov).logpdf(RESPONSE) + 0.5 * 0.25 * 4.0
    precision = x.T @ x / 0.25 + np.eye(3) / 4
    mean = np.linalg.solve(precision, x.T @ RESPONSE / 0.25 + shift / 4)
    return log_z, mean, np.linalg.inv(precision)


@pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(k, marks=pytest.mark.slow)  # compilation; waste-free runs below are quicker
        for k in ("random walk", "hmc", "mala", "nuts")
    ],
)
def test_evidence_of_a_frozen_run_is_unbiased(kernel, key):
    """Z < 4.5 over 4,000 runs of 50 particles (relative sd about 0.15, so 2% of bias would be 8 standard errors)."""
    options = {"kernel": KERNELS[kernel], "num_moves": 2}
    pilot = inference.tempered_smc(rate, key, COUNTS, num_particles=500, target_ess=0.9, **options)
    assert pilot.num_steps > 2  # several temperatures

    def run(key):
        return inference.tempered_smc(
            rate, key, COUNTS, num_particles=50, frozen=pilot, **options
        ).log_evidence

    log_z = jax.jit(jax.vmap(run))(jax.random.split(jax.random.fold_in(key, 1), 2000))
    assert_unbiased(np.exp(np.asarray(log_z, float) - rate_evidence()), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [pytest.param("hmc", marks=pytest.mark.slow), "random walk"])
def test_adapted_runs_find_posterior_and_evidence(kernel, key):
    """64 runs of 1,000 particles from a prior far away: their mean within 4.5 standard errors + 0.01 (bias of order 1/K)."""
    log_z, mean, cov = regression_truth()

    def run(key):
        result = inference.tempered_smc(
            regression, key, DESIGN, RESPONSE, num_particles=1000, kernel=KERNELS[kernel]
        )
        w = result.particles["w"]
        return result.log_evidence, w.mean(0), w.var(0), result.num_steps

    runs = jax.jit(jax.vmap(run))(jax.random.split(key, 64))
    for got, exact in zip(runs, (log_z, mean, np.diag(cov)), strict=False):
        got = np.asarray(got, float)
        error = got.std(0) / 8
        tolerance = 4.5 * error + 0.01 * np.maximum(1, np.abs(exact))
        assert (np.abs(got.mean(0) - exact) < tolerance).all(), (got.mean(0), exact, error)
    assert (runs[3] > 3).all()


@pytest.mark.slow  # 4,000 runs
@pytest.mark.parametrize("scheme", ["systematic", "residual"])
def test_waste_free_evidence_of_a_frozen_run_is_unbiased(scheme, key):
    """60 particles are 10 chains of 6 states; over 4,000 runs a bias of 2.5% is 7 standard errors."""
    options = {
        "kernel": KERNELS["random walk"],
        "num_moves": 5,
        "keep": "all",
        "resampling": scheme,
    }
    pilot = inference.tempered_smc(rate, key, COUNTS, num_particles=600, target_ess=0.8, **options)
    assert pilot.num_steps > 1

    def run(key):
        result = inference.tempered_smc(
            rate, key, COUNTS, num_particles=60, frozen=pilot, **options
        )
        return result.log_evidence, result.particles["rate"].mean()

    log_z, mean = jax.jit(jax.vmap(run))(jax.random.split(jax.random.fold_in(key, 1), 4000))
    ratios = np.exp(np.asarray(log_z, float) - rate_evidence())
    assert 7 * ratios.std() / np.sqrt(4000) < 0.025
    assert_unbiased(ratios, 1.0)
    n, s = len(COUNTS), COUNTS.sum()
    assert_unbiased(ratios * (mean - (2 + s) / (1 + n)), 0.0)


@pytest.mark.slow  # two compilations, 40,000 chains
def test_waste_free_is_more_exact_at_the_same_cost(key):
    """20 moves at each temperature: all states of 50 chains against the ends of 50; the ratio of variances is below 0.6.

    With 400 runs each its logarithm has a standard error of 0.1, so that 0.6 is five of them below 1.
    """

    def variance(keep, num_particles):
        run = lambda key: inference.tempered_smc(
            rate, key, COUNTS, num_particles=num_particles, num_moves=20, keep=keep,
            temperatures=[0.05, 0.3, 1.0], kernel=KERNELS["random walk"],
        )  # fmt: skip
        runs = jax.jit(jax.vmap(run))(jax.random.split(key, 400))
        return np.var(runs.log_evidence), np.var(runs.particles["rate"].mean(1))

    for waste_free, last in zip(variance("all", 1050), variance("last", 50), strict=True):
        assert waste_free < 0.6 * last


@pytest.mark.slow  # seconds of compilation
def test_given_temperatures_are_used(key):
    schedule, kernel = [0.1, 0.5, 1.0], KERNELS["random walk"]
    result = inference.tempered_smc(
        rate, key, COUNTS, num_particles=200, temperatures=schedule, kernel=kernel
    )
    np.testing.assert_allclose(result.temperatures, schedule)
    assert result.num_steps == 3


@pytest.mark.slow  # seconds of compilation
def test_each_step_keeps_the_effective_sample_size(key):
    """The bisection's own promise, on cumulative weights."""
    result = inference.tempered_smc(
        regression, key, DESIGN, RESPONSE, num_particles=1000, kernel=KERNELS["random walk"]
    )
    steps = int(result.num_steps)
    np.testing.assert_allclose(result.ess[: steps - 1], 500, rtol=1e-2)
    assert result.ess[steps - 1] >= 499


@pytest.mark.fast("random walk")
@pytest.mark.parametrize(
    "kernel", [pytest.param(k, marks=[pytest.mark.slow] * (k in ("hmc", "nuts"))) for k in KERNELS]
)
def test_a_kernel_leaves_its_target_invariant(kernel, key):
    """Start in the target (a skewed density on R^2 with known moments), move three times, compare moments."""
    k = KERNELS[kernel]
    log_density = lambda u: (
        u[0] - jnp.exp(u[0]) - 0.5 * (u[1] - 0.5 * u[0]) ** 2
    )  # log of a Gamma(1, 1); u1 | u0 Normal
    k0, k1, k2 = jax.random.split(key, 3)
    u0 = jnp.log(jax.random.exponential(k0, (40_000,)))
    points = jnp.stack([u0, 0.5 * u0 + jax.random.normal(k1, u0.shape)], -1)
    spread = k.spread(points[:500])
    step = lambda key, at: k.step(key, at, log_density, jnp.float32(k.init_scale(2)), spread)

    def three(key, u):
        start = k.start(u, log_density)
        last, rates = jax.lax.scan(lambda at, key: step(key, at), start, jax.random.split(key, 3))
        return last.point, rates

    moved, rates = jax.jit(jax.vmap(three))(jax.random.split(k2, len(points)), points)
    assert 0.2 < rates.mean() < 1 and np.mean(np.asarray(moved != points)) > 0.5
    euler = 0.5772156649
    assert_unbiased(jnp.exp(moved[:, 0]), 1.0)
    assert_unbiased(moved, np.array([-euler, -0.5 * euler]))
    assert_unbiased((moved[:, 1] - 0.5 * moved[:, 0]) ** 2, 1.0)


def test_a_kernel_without_its_rejection_fails_the_test(key):
    class Careless(inference.particles.moves.HMC):
        def step(self, key, at, log_density, scale, spread):
            new, rate = super().step(key, at, log_density, scale, spread)
            return new._replace(point=jnp.where(rate < 1, at.point + 0.3, new.point)), rate

    KERNELS["careless"] = Careless(4)
    try:
        with pytest.raises(AssertionError, match="limit 4.5"):
            test_a_kernel_leaves_its_target_invariant("careless", key)
    finally:
        del KERNELS["careless"]


def moving_support():
    top = ppl.sample("top", dist.Gamma(2.0, 1.0))
    ppl.sample("below", dist.Uniform(0.0, top))


ERRORS = {
    "discrete": (
        lambda k: inference.tempered_smc(
            lambda: ppl.sample("b", dist.Bernoulli(0.5)), k, num_particles=5
        ),
        "Site 'b'.*discrete",
    ),
    "no site": (lambda k: inference.tempered_smc(lambda: None, k, num_particles=5), "no latent site"),
    "falling": (
        lambda k: inference.tempered_smc(rate, k, COUNTS, num_particles=5, temperatures=[0.5, 0.4, 1.0]),
        "increase",
    ),
    "short of one": (
        lambda k: inference.tempered_smc(rate, k, COUNTS, num_particles=5, temperatures=[0.5]), "increase",
    ),
    "ess": (lambda k: inference.tempered_smc(rate, k, COUNTS, num_particles=5, target_ess=1.5), "target_ess"),
    "particles": (lambda k: inference.tempered_smc(rate, k, COUNTS, num_particles=0), "num_particles"),
    "keep": (lambda k: inference.tempered_smc(rate, k, COUNTS, num_particles=5, keep="some"), "keep must be"),
    "uneven chains": (
        lambda k: inference.tempered_smc(rate, k, COUNTS, num_particles=10, num_moves=3, keep="all"), "= 4 .* does not divide",
    ),
    "uneven batches": (
        lambda k: inference.tempered_smc(rate, k, COUNTS, num_particles=8, num_moves=3, keep="all", batch_size=4),
        "batch_size 4 does not divide the 2 chains",
    ),
    "support": (
        lambda k: inference.tempered_smc(moving_support, k, num_particles=5),
        "support of site 'below' depends on another draw",
    ),
    "two schedules": (
        lambda k: inference.tempered_smc(
            rate, k, COUNTS, num_particles=5, temperatures=[1.0], frozen=object.__new__(inference.TemperedResult)
        ),
        "temperatures or a frozen result",
    ),
    "slots": (
        lambda k: inference.tempered_smc(rate, k, COUNTS, num_particles=8, num_moves=3, keep="all", resampling="killing"),
        "'killing' keeps particles in their slots",
    ),
}  # fmt: skip


@pytest.mark.slow_for("slots")
@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_refused_by_name(name, key):
    run, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        run(key)


@pytest.mark.slow  # seconds of compilation
def test_too_few_temperatures_are_reported(key):
    with pytest.raises(RuntimeError, match="2 temperatures ended at .* of 1. Raise max_steps"):
        inference.tempered_smc(regression, key, DESIGN, RESPONSE, num_particles=100, max_steps=2)


@pytest.mark.slow(reason="runs against the clock")
@pytest.mark.parametrize("keep", ["last", "persistent"])
def test_a_limit_of_time_is_kept_between_temperatures_or_told(keep, key, monkeypatch):
    """A second at each look: two looks, one temperature; in more time the posterior is the same one."""
    clock = types.SimpleNamespace(monotonic=itertools.count().__next__)
    monkeypatch.setattr(_run, "time", clock)
    options = {"num_particles": 400, "kernel": KERNELS["random walk"], "num_moves": 5, "keep": keep}
    with pytest.raises(
        RuntimeError, match="max_seconds=2 were spent after 1 temperatures, at 0.*of 1. Raise"
    ):
        inference.tempered_smc(rate, key, COUNTS, max_seconds=2, target_ess=0.9, **options)
    result = inference.tempered_smc(rate, key, COUNTS, max_seconds=100, target_ess=0.9, **options)
    assert float(result.temperatures[-1]) == 1 and int(result.num_steps) > 1
    assert abs(float(result.log_evidence) - rate_evidence()) < 0.3  # standard error 0.05


def test_a_limit_of_time_needs_a_clock_and_a_positive_number(key):
    with pytest.raises(ValueError, match="max_seconds must be positive, got -1.*or None"):
        inference.tempered_smc(rate, key, COUNTS, max_seconds=-1)
    run = lambda key: inference.tempered_smc(rate, key, COUNTS, max_seconds=9, num_particles=20)
    with pytest.raises(ValueError, match="max_seconds looks at the clock.*traced.*Leave it out"):
        jax.eval_shape(lambda key: run(key).log_evidence, key)


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["last", "persistent"])
def test_lost_particles_are_reported(keep, key):
    def impossible():
        a = ppl.sample("a", dist.Normal(0.0, 1.0))
        ppl.factor("f", jnp.where(a < jnp.inf, -jnp.inf, a))

    with pytest.warns(UserWarning, match="its particles were lost at temperature 0"):
        lost = inference.tempered_smc(
            impossible, key, num_particles=4, temperatures=[0.5, 1.0], keep=keep
        )
    assert lost.failed_at == 0 and lost.log_evidence == -jnp.inf
    assert jnp.isnan(lost.mean(lambda c: c["a"])) and jnp.isnan(lost.sample(key, 2)["a"]).all()
