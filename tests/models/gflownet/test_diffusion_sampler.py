"""Continuous GFlowNets: the exact sampler of a Gaussian, densities of the programs, estimates of Z."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

from _stats import assert_unbiased
from lapilli import inference
from lapilli.models import gflownet

LOC, SD, LOG_Z, SIGMA, T = 1.0, 0.5, 1.5, 0.8, 6
# log h(x) = A + B x - P x^2 / 2, for R = Z Normal(LOC, SD) and the reference Normal(0, SIGMA) at the end.
P = 1 / SD**2 - 1 / SIGMA**2
B = LOC / SD**2
A = LOG_Z - 0.5 * (LOC / SD) ** 2 - np.log(SD / SIGMA)


def log_r(x):
    return LOG_Z + dist.Normal(LOC, SD).log_prob(x).sum()


def log_f(x, t):
    """Log E[h(x_1) | x_t = x] under the reference."""
    v = SIGMA**2 * (1 - t)
    return A - 0.5 * jnp.log1p(P * v) + (0.5 * B**2 * v + B * x - 0.5 * P * x**2) / (1 + P * v)


class Exact(eqx.Module):
    """The reference's step times the flow after it."""

    def __call__(self, x, t, score):
        step = SIGMA**2 / T
        ahead = 1 + P * SIGMA**2 * (1 - t - 1 / T)
        precision = 1 / step + P / ahead
        loc = (x / step + B / ahead) / precision
        return jnp.concatenate([(loc - x) * T, -0.5 * jnp.log(precision * step) + 0 * x])


class ExactFlow(eqx.Module):
    """log_f, less what is known of it."""

    is_known: bool = eqx.field(static=True)

    def __call__(self, features):
        x, t = features
        known = t * (A + B * x - 0.5 * P * x**2) if self.is_known else 0.0
        return (log_f(x, t) - known)[None]


def untrained(flow="network", forward_looking=False, seed=0, **options):
    """Random weights in the last layers too."""
    sampler = gflownet.diffusion_sampler(
        log_r, 1, num_steps=T, scale=SIGMA, flow=flow, forward_looking=forward_looking,
        key=jax.random.key(seed), **options,
    )  # fmt: skip
    params = sampler.forward.init(jax.random.key(1))
    arrays, tree = jax.tree.flatten(dict(params))
    keys = jax.random.split(jax.random.key(2), len(arrays))
    noisy = [a + 0.2 * jax.random.normal(k, a.shape) for a, k in zip(arrays, keys, strict=True)]
    return sampler, jax.tree.unflatten(tree, noisy)


@pytest.mark.fast("True")
@pytest.mark.parametrize("is_known", [False, True])
def test_the_exact_sampler_of_a_gaussian_has_no_residual(is_known, key):
    sampler = gflownet.diffusion_sampler(
        log_r, 1, num_steps=T, scale=SIGMA, flow="network", control=Exact(),
        flow_network=ExactFlow(is_known), forward_looking=is_known, key=key,
    )  # fmt: skip
    paths = jax.random.normal(key, (5, T, 1))
    process = jax.jit(sampler.log_weight_process)({}, paths)
    np.testing.assert_allclose(process.increments, 0, atol=2e-5)
    np.testing.assert_allclose(process.u[:, 0], LOG_Z, rtol=1e-5)
    ends = jax.jit(jax.vmap(lambda k: sampler.forward.simulate(k).retval[0]))(
        jax.random.split(key, 20_000)
    )
    assert_unbiased(ends, LOC)
    assert_unbiased((ends - LOC) ** 2, SD**2)


@pytest.mark.slow
@pytest.mark.parametrize("forward_looking", [False, True])
def test_the_process_is_the_density_of_the_programs(forward_looking, key):
    sampler, params = untrained(forward_looking=forward_looking)
    paths = jax.random.normal(key, (4, T, 1))
    process = jax.jit(sampler.log_weight_process)(params, paths)
    forward = sampler.forward.bind(params)
    log_q = jax.vmap(lambda x: forward.log_density({"x": x}))(paths)
    log_p = jax.vmap(lambda x: sampler.target.log_density({"x": x}))(paths)
    np.testing.assert_allclose(process.log_weight, log_p - log_q, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(
        process.u[:, -1] - process.u[:, 0], process.increments.sum(1), rtol=1e-4, atol=1e-4
    )
    # The bridge to 0 and R, from their definitions.
    x = np.concatenate([np.zeros((4, 1)), np.asarray(paths[..., 0])], 1)
    t = np.arange(T + 1) / T
    normal = lambda x, m, v: -0.5 * np.log(2 * np.pi * v) - (x - m) ** 2 / (2 * v)
    want = np.asarray(jax.vmap(log_r)(paths[:, -1])) - np.asarray(log_q)
    for i in range(1, T):
        ratio = t[i] / t[i + 1]
        want += normal(x[:, i], x[:, i + 1] * ratio, SIGMA**2 * t[i] * (1 - ratio))
    np.testing.assert_allclose(process.log_weight, want, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_weights_and_particles_estimate_z_without_bias(key):
    """Random policy, wider paths too; |z| < 4.5."""
    sampler, params = untrained()
    source = sampler.explore(1.5).bind(params)

    def weight(key):
        trace = source.simulate(key)
        log_p = sampler.target.log_density(trace.choices)
        return jnp.exp(log_p - trace.log_density - LOG_Z)

    assert_unbiased(jax.jit(jax.vmap(weight))(jax.random.split(key, 20_000)), 1.0)

    def run(key):
        options = {"num_particles": 16, "history": "none"}
        forward = sampler.forward.bind(params)
        return inference.smc(sampler.target, key, proposal=forward, **options).log_evidence

    estimates = jax.jit(jax.vmap(run))(jax.random.split(key, 4_000))
    assert_unbiased(jnp.exp(estimates - LOG_Z), 1.0)


@pytest.mark.slow  # compiles two gradients
@pytest.mark.parametrize("loss", [gflownet.subtrajectory_balance(), gflownet.detailed_balance()])
def test_the_gradient_is_that_of_the_loss_at_the_paths_drawn(loss, key):
    """The objective's gradient at given noise, beside the derivative of the loss at the same paths held fixed."""
    sampler, params = untrained()
    objective = sampler.balance(loss, num_paths=3, noise=1.3)
    keys = jax.random.split(key, 3_000)
    many = jax.jit(jax.vmap(lambda k: objective.value_and_grad(params, k)))(keys)
    source = sampler.explore(1.3).bind(params)
    draw = jax.vmap(lambda k: source.simulate(k).choices["x"])

    def at_paths(key):
        paths = draw(jax.random.split(key, 3))
        return jax.value_and_grad(lambda p: loss(sampler.log_weight_process(p, paths)))(params)

    other = jax.jit(jax.vmap(at_paths))(jax.random.split(jax.random.key(9), 3_000))
    for one, two in zip(jax.tree.leaves(many), jax.tree.leaves(other), strict=True):
        spread = np.sqrt((one.var(0) + two.var(0)) / 3_000) + 1e-9
        assert (np.abs(one.mean(0) - two.mean(0)) < 4.9 * spread).all()


@pytest.mark.slow  # two trainings
def test_training_learns_the_law_and_its_constant(key):
    sampler = gflownet.diffusion_sampler(log_r, 1, num_steps=T, scale=SIGMA, key=key)
    loss = sampler.balance(gflownet.trajectory_balance(), num_paths=64, noise=1.2)
    rates = {"control": optax.adam(3e-3), "log_z": optax.adam(3e-2)}
    fit = inference.fit(loss, rates, (), num_steps=1_500, key=key, progress=False)
    np.testing.assert_allclose(fit.params["log_z"], LOG_Z, atol=0.05)
    pathwise = inference.elbo(sampler.target, sampler.forward, num_replicates=16)
    fit = inference.fit(pathwise, optax.adam(3e-3), (), num_steps=1_500, key=key, progress=False)
    values = jax.vmap(lambda k: pathwise.value(fit.params, k))(jax.random.split(key, 200))
    assert LOG_Z - 0.05 < values.mean() < LOG_Z + 4.5 * values.std() / np.sqrt(200)


class Constant(eqx.Module):
    """A drift and a relative scale that are the same everywhere."""

    drift: float
    relative_scale: float

    def __call__(self, x, t, score):
        return jnp.array([self.drift, np.log(self.relative_scale)])


def second_moment(relative_scale, shift, reach):
    """E[ratio^2] / R's mass of one step, integrated over `reach` standard deviations s = SIGMA, m = shift."""
    y = np.linspace(-reach, reach, 200_001) * SIGMA
    log_n = lambda y, m, s: -0.5 * np.log(2 * np.pi * s**2) - (y - m) ** 2 / (2 * s**2)
    log_square = 2 * log_n(y, 0, SIGMA) - log_n(y, shift, relative_scale * SIGMA)
    return np.trapezoid(np.exp(log_square), y)


@pytest.mark.parametrize("relative_scale", [0.72, 0.9])
def test_the_second_moment_of_a_step_is_finite_above_the_bound_alone(relative_scale):
    """By quadrature: the closed form above 1 / sqrt(2); below, the integral grows with its range without end."""
    square = 2 * relative_scale**2 - 1
    exact = relative_scale**2 / np.sqrt(square) * np.exp(0.3**2 / (SIGMA**2 * square))
    np.testing.assert_allclose(second_moment(relative_scale, 0.3, 60.0), exact, rtol=1e-6)
    below = [second_moment(0.69, 0.3, reach) for reach in (10.0, 20.0, 40.0)]
    assert below[2] > 1e3 * below[1] > 1e4 * below[0]


@pytest.mark.slow_for("0.3")
@pytest.mark.parametrize("relative_scale", [0.3, 0.72, 0.9])
def test_weights_have_a_variance_whatever_the_control_says(relative_scale, key):
    """R = Normal(0, SIGMA), one step: the sampler's E[w^2] by quadrature is the closed form at the scale that it takes."""
    log_reference = lambda x: dist.Normal(0.0, SIGMA).log_prob(x).sum()
    sampler = gflownet.diffusion_sampler(
        log_reference, 1, num_steps=1, scale=SIGMA, control=Constant(0.2, relative_scale), key=key
    )
    x = np.linspace(-12, 12, 20_001) * SIGMA
    params = {"log_z": jnp.zeros(())}
    log_weight = sampler.log_weight_process(params, jnp.asarray(x)[:, None, None]).log_weight
    # E_q[w^2] = int w R dx.
    log_r = np.asarray(jax.vmap(log_reference)(jnp.asarray(x)))
    found = np.trapezoid(np.exp(np.asarray(log_weight, float) + log_r), x)
    np.testing.assert_allclose(
        found, second_moment(max(relative_scale, 0.75), 0.2, 60.0), rtol=2e-3
    )


def test_the_networks_own_scale_ends_at_the_bound(key):
    sampler = gflownet.diffusion_sampler(log_r, 1, num_steps=2, min_relative_scale=0.8, key=key)
    bias = lambda c: c.body.layers[-1].bias
    for raw, want in (
        (-50.0, 0.8),
        (-1e-3, np.exp(-1e-3)),
        (0.0, 1.0),
        (1e-3, np.exp(1e-3)),
        (50.0, np.e),
    ):
        control = eqx.tree_at(bias, sampler.control, jnp.array([0.0, raw]))
        log_scale = control(jnp.zeros(1), jnp.zeros(()), jnp.zeros(1))[1]
        np.testing.assert_allclose(np.exp(log_scale), want, rtol=1e-5)


def test_narrow_exploration_is_refused(key):
    sampler = gflownet.diffusion_sampler(log_r, 1, num_steps=2, key=key)
    with pytest.raises(ValueError, match=r"explore: noise 0.9 times .* infinite variance"):
        sampler.explore(0.9)
    sampler.explore(0.95)


def test_steps_may_be_no_narrower_than_the_reference(key):
    control = gflownet.diffusion_sampler(log_r, 2, min_relative_scale=1.0, key=key).control
    ready = eqx.tree_at(lambda c: c.body.layers[-1].bias, control, jnp.array([0.0, 0, -1, 1]))
    drift, log_scale = jnp.split(ready(jnp.zeros(2), jnp.zeros(()), jnp.zeros(2)), 2)
    np.testing.assert_allclose(log_scale, [0.0, np.tanh(1.0)], rtol=1e-6)
    np.testing.assert_array_equal(drift, 0.0)


SETTINGS = {
    "narrow steps": ({"min_relative_scale": 0.7}, r"above 1 / sqrt\(2\) = 0.7071"),
    "wide steps": ({"min_relative_scale": 1.2}, "not above 1, got 1.2"),
    "scale": ({"scale": 0.0}, "scale must be positive"),
    "flow": ({"flow": "edges"}, "flow must be one of"),
    "nothing to look at": ({"forward_looking": True}, "log Z alone"),
    "steps": ({"num_steps": 0}, "num_steps"),
    "density": ({"log_density": lambda x: x}, r"to shape \(1,\)"),
}


@pytest.mark.parametrize(("options", "message"), SETTINGS.values(), ids=SETTINGS)
def test_impossible_settings_are_refused(options, message, key):
    with pytest.raises(ValueError, match=message):
        gflownet.diffusion_sampler(**{"log_density": log_r, "num_dims": 1, "key": key, **options})


@pytest.mark.slow
def test_losses_that_make_no_sense_are_refused(key):
    sampler = gflownet.diffusion_sampler(log_r, 1, num_steps=2, key=key)
    for options, message in (
        ({"loss": gflownet.detailed_balance(), "num_paths": 2}, "flow='total' learns log Z"),
        ({"loss": gflownet.log_variance(), "num_paths": 1}, "num_paths"),
        ({"loss": gflownet.trajectory_balance(), "num_paths": 2, "noise": 0.0}, "noise must be"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler.balance(**options)
