"""Look-ahead: resampling by weights times an approximation to the future. Kalman, dense Gaussians, enumeration as oracles."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _state_space import (
    GOLDEN as Y,
    GOLDEN_EVIDENCE as KALMAN,
    LINE,
    golden_chain,
    independent,
    two_scans,
)

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.inference.particles import resampling
from lapilli.inference.particles.engine import _step
from lapilli.inference.particles.resampling import _look_ahead

pytestmark = pytest.mark.one_in(2)


def walk(ys, a=0.9):
    x = ppl.sample("x0", dist.Normal(0.0, 1.0))
    ppl.sample("y0", dist.Normal(x, 1.0), obs=ys[0])

    def step(x, y):
        x = ppl.sample("x", dist.Normal(a * x, 1.0))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    ppl.scan(step, x, ys[1:])


def information():
    """(precision, precision * mean) of x_t in p(y_{t+1}, ... | x_t), t = 0..4."""
    rows = [(0.0, 0.0)]
    for y in Y[:0:-1]:
        precision, shift = rows[0][0] + 1, rows[0][1] + y
        rows.insert(0, (0.81 * precision / (1 + precision), 0.9 * shift / (1 + precision)))
    return jnp.asarray(rows, jnp.float32)


INFO = information()


def exact(x, t, *_):
    return -0.5 * INFO[t, 0] * x**2 + INFO[t, 1] * x


def crude(x, t, ys=Y):
    """A broad look at the next observation."""
    return -0.1 * (x - jnp.asarray(ys)[jnp.minimum(t + 1, 4)]) ** 2


def ahead(ys):
    """Draws x_t given x_{t-1} and all data to come."""
    law = lambda mean, y, row: dist.Normal((mean + y + row[1]) / (2 + row[0]), (2 + row[0]) ** -0.5)
    x = ppl.sample("x0", law(0.0, ys[0], INFO[0]))
    step = lambda x, inputs: (ppl.sample("x", law(0.9 * x, *inputs)), None)
    ppl.scan(step, x, (ys[1:], INFO[1:]))


def log_normal(x, y, scale=1.0):
    return dist.Normal(x, scale).log_prob(y)


def proposed():
    """The same chain with the draws of `ahead`."""

    def law(previous, t):
        scale = (2 + INFO[t, 0]) ** -0.5
        mean = jnp.where(t > 0, 0.9 * previous, 0.0)
        return (mean + jnp.asarray(Y)[t] + INFO[t, 1]) * scale**2, scale, mean

    def draw(key, previous, t):
        mean, scale, _ = law(previous, t)
        return mean + scale * jax.random.normal(key)

    def log_potential(previous, x, t):
        mean, scale, prior = law(previous, t)
        return log_normal(prior, x) + log_normal(x, jnp.asarray(Y)[t]) - log_normal(mean, x, scale)

    return inference.FeynmanKac(lambda key: draw(key, 0.0, jnp.int32(0)), draw, log_potential, 4)


def evidences(target, key, *args, n, **options):
    run = lambda key: inference.smc(target, key, *args, **{"history": "none"} | options)
    return jax.jit(jax.vmap(lambda key: run(key).increments))(jax.random.split(key, n))


@pytest.mark.fast("chain-1")
@pytest.mark.parametrize("num_particles", [1, 4])
@pytest.mark.parametrize("target", ["program", "chain"])
def test_with_the_exact_twist_and_proposal_the_evidence_has_no_variance(target, num_particles, key):
    options = {"policy": resampling.every(), "n": 8, "num_particles": num_particles, "twist": exact}
    if target == "program":
        increments = evidences(walk, key, Y, proposal=ahead, **options)
    else:
        increments = evidences(proposed(), key, **options)
    np.testing.assert_allclose(increments.sum(-1), KALMAN, rtol=1e-6)
    assert increments[:, 0].std() > 0.01  # it is no constant before the end


def kalman_by_step():
    """Log p(y_0, ..., y_t), t = 0..4."""
    mean, var, total = 0.0, 1.0, [0.0]
    for y in Y:
        s = var + 1
        total.append(total[-1] - 0.5 * (np.log(2 * np.pi * s) + (y - mean) ** 2 / s))
        mean, var = 0.9 * (mean + var / s * (y - mean)), 0.81 * var / s + 1
    return np.array(total[1:])


CRUDE = {
    "program, ess": (walk, (Y,), resampling.ess_below(0.8)),
    "program, every": (walk, (Y,), resampling.every()),
    "chain, every second": (golden_chain(), (), resampling.every(2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CRUDE)
def test_evidence_with_a_crude_twist_is_unbiased_at_every_step(case, key):
    """A bias of 2% at the end is 7 standard errors where the relative sd is below 0.18."""
    target, args, policy = CRUDE[case]
    options = {"policy": policy, "n": 4000, "num_particles": 40, "twist": crude}
    exact = kalman_by_step()
    assert exact[-1] == pytest.approx(KALMAN, abs=1e-6)
    increments = evidences(target, key, *args, **options)
    assert_unbiased(np.exp(np.cumsum(increments, -1) - exact), np.ones(5))


@pytest.mark.slow
def test_evidence_of_two_particles_is_unbiased(key):
    options = {"resampling": "multinomial", "policy": resampling.every(), "num_particles": 2}
    increments = evidences(walk, key, Y, proposal=ahead, twist=crude, n=20_000, **options)
    assert_unbiased(np.exp(increments.sum(-1) - KALMAN), 1.0)


@pytest.mark.slow
def test_without_the_correction_the_evidence_is_biased(key, monkeypatch):
    """The test sees a broken estimator."""

    def uncorrected(key, particles, log_weights, seen, *options):
        twisted = _look_ahead.reweight(log_weights, seen[:, 0]).log_weights
        chosen = _look_ahead.resample_ahead(key, (particles, seen), twisted, None, *options)
        return chosen._replace(particles=chosen.particles[0])

    monkeypatch.setattr(_step, "resample_ahead", uncorrected)
    options = {"policy": resampling.every(), "n": 4000, "num_particles": 40, "twist": crude}
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(np.exp(evidences(walk, key, Y, **options).sum(-1) - KALMAN), 1.0)


@pytest.mark.slow
def test_looking_ahead_lowers_the_variance_of_the_evidence(key):
    """The last observation is sharp and far off. Interval of the ratio of variances: far below 1 at 2000 runs each."""

    def surprised(ys):
        def step(x, inputs):
            y, scale = inputs
            x = ppl.sample("x", dist.Normal(x, 0.3))
            ppl.sample("y", dist.Normal(x, scale), obs=y)
            return x, None

        ppl.scan(step, 0.0, (ys, jnp.array([3.0, 3.0, 3.0, 0.2])))

    twist = lambda x, t, ys: log_normal(x, ys[3], jnp.sqrt(0.2 + 0.09 * (4 - t)))
    ys = jnp.array([0.0, 0.0, 0.0, 2.0])
    options = {"policy": resampling.every(), "n": 2000, "num_particles": 50}
    with_twist, without = (
        evidences(surprised, key, ys, twist=f, **options).sum(-1).var() for f in (twist, None)
    )
    assert with_twist < 0.5 * without


@pytest.mark.slow
def test_the_state_is_the_carry_with_what_passes_through(key):
    """JAX takes a carry that never changes out of a scan; a scan inside the step has states of its own."""

    def passing(ys):
        slope = ppl.sample("slope", dist.Normal(0.0, 1.0))

        def step(state, y):
            x, slope = state["x"], state["slope"]
            nudge, _ = ppl.scan(lambda u, _: (u + 1.0, None), 0.0, None, length=2)
            x = ppl.sample("x", dist.Normal(x + slope + 0 * nudge, 1.0))
            ppl.sample("y", dist.Normal(x, 1.0), obs=y)
            return {"x": x, "slope": slope}, None

        ppl.scan(step, {"x": jnp.zeros(()), "slope": slope}, ys)

    # x_t = slope t + sums of noises
    t = np.arange(1, 5.0)
    cov = np.outer(t, t) + np.minimum.outer(t, t) + np.eye(4)
    exact = -0.5 * (LINE @ np.linalg.solve(cov, LINE) + np.linalg.slogdet(2 * np.pi * cov)[1])
    twist = lambda state, t, ys: -0.1 * (state["x"] + state["slope"] - ys[jnp.minimum(t, 3)]) ** 2
    options = {"policy": resampling.every(), "n": 4000, "num_particles": 40, "batch_size": 20}
    increments = evidences(passing, key, LINE, twist=twist, **options)
    assert_unbiased(np.exp(increments.sum(-1) - exact), 1.0)
    only_slope = lambda state, t, ys: 100.0 * state["slope"]
    with pytest.warns(UserWarning, match="smc: the final weights have k-hat"):
        run = inference.smc(
            passing, key, LINE, num_particles=50, twist=only_slope, policy=resampling.every()
        )
    assert (run.ancestors[0] == run.ancestors[0, 0]).all()


@pytest.mark.slow
def test_the_conditional_run_leaves_the_posterior_invariant(key):
    """A binary chain of three steps: start in the exact posterior of the 8 paths, move once with 3 particles."""
    up = jnp.array([0.3, 0.8])
    loc = jnp.array([-1.0, 1.0])
    ys = jnp.array([0.5, -0.5, 1.0])

    def chain(ys):
        def step(k, y):
            k = ppl.sample("k", dist.BernoulliProbs(up[k]))
            ppl.sample("y", dist.Normal(loc[k], 1.0), obs=y)
            return k, None

        ppl.scan(step, 0, ys)

    paths = jnp.array(list(np.ndindex(2, 2, 2)))
    log_joint = jax.vmap(lambda k: ppl.as_program(chain).log_density({"k": k}, ys))(paths)
    twist = lambda k, t, ys: jnp.array([0.5, -0.7])[k] * t
    k1, k2 = jax.random.split(key)
    start = jax.random.categorical(k1, log_joint, shape=(20_000,))

    def move(key, k):
        run_key, pick_key = jax.random.split(key)
        options = {"num_particles": 3, "policy": resampling.every(), "twist": twist}
        run = inference.smc(chain, run_key, ys, retained={"k": k}, **options)
        return run.particles["k"][jax.random.categorical(pick_key, run.log_weights)]

    new = jax.jit(jax.vmap(move))(jax.random.split(k2, len(start)), paths[start])
    hits = (new[:, None] == paths).all(-1)
    assert_unbiased(hits, jax.nn.softmax(log_joint))
    assert np.mean((new != paths[start]).any(-1)) > 0.1


@pytest.mark.slow  # compiles a derivative of the filter
def test_the_gradient_of_the_evidence_is_unbiased(key):
    """E d Z-hat = d Z with gradient='stop_gradient', by the parameter of the model and by of the twist (zero)."""

    def value(params, key):
        a, width = params
        twist = lambda x, t, ys, _: width * crude(x, t, ys)
        options = {"num_particles": 20, "policy": resampling.every(), "gradient": "stop_gradient"}
        run = inference.smc(walk, key, Y, a, twist=twist, history="none", **options)
        return jnp.exp(run.log_evidence - KALMAN)

    def log_evidence(a):
        n = len(Y)
        root = jnp.linalg.inv(jnp.eye(n) - a * jnp.eye(n, k=-1))
        return dist.MultivariateNormal(jnp.zeros(n), root @ root.T + jnp.eye(n)).log_prob(
            jnp.asarray(Y)
        )

    grads = jax.jit(jax.vmap(jax.grad(value), (None, 0)))((0.9, 1.0), jax.random.split(key, 4000))
    assert_unbiased(grads[0], jax.grad(log_evidence)(0.9))
    assert_unbiased(grads[1], 0.0)


def bad(x, t, *_):
    return jnp.where(x > 0, jnp.nan, 0.0)


ERRORS = {
    "no scan": (lambda k, run: run(lambda ys: ppl.sample("x", dist.Normal(0.0, 1.0)), twist=crude), "0 top-level scans"),
    "two scans": (lambda k, run: run(two_scans, twist=crude), "2 top-level scans"),
    "shape": (lambda k, run: run(walk, twist=lambda x, t, ys: ys), "one number for one particle"),
    "sites": (
        lambda k, run: run(walk, twist=lambda x, t, ys: ppl.sample("u", dist.Normal(0.0, 1.0))),
        "twist or order has the sites",
    ),
    "nan": (lambda k, run: run(walk, twist=bad), "weight is NaN at weighing 1, .* twist is NaN or"),
    "nan in a chain": (lambda k, run: inference.smc(golden_chain(), k, num_particles=9, twist=bad), "twist is NaN or"),
    "ot": (lambda k, run: run(walk, twist=crude, gradient="ot", history="none"), "'ot' puts other particles"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case, key):
    call, message = ERRORS[case]
    run = lambda target, **options: inference.smc(target, key, Y, num_particles=9, **options)
    with pytest.raises(ValueError, match=message):
        call(key, run)


@pytest.mark.slow
def test_a_bad_twist_makes_the_evidence_nan_under_jit(key):
    run = jax.jit(lambda key: inference.smc(walk, key, Y, num_particles=9, twist=bad).log_evidence)
    assert jnp.isnan(run(key))
    # Where nothing is left to see, psi is constant, and so is a program's listing.
    program = ppl.model(independent)
    inference.smc(program, key, LINE, num_particles=9, twist=lambda x, t, ys: 0.0)
    assert "seen" not in str(program)
