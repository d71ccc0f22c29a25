"""Twisted diffusion and steering against the exact law of a Gaussian chain, tilted where it ends."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from _stats import assert_unbiased
from lapilli import inference
from lapilli.inference.diffusion._diffusion import reverse_step
from lapilli.inference.diffusion._steering import Steered, Twisted
from lapilli.models import diffusion

NOISING = diffusion.VP()
MODEL = diffusion.gaussian_mixture(NOISING, [1.0], [0.5], 0.4)
TIMES = np.linspace(1.0, 0.01, 33)  # few steps: the chain's law is not quite the data's
Y, SCALE = 1.6, 0.5


COARSE = TIMES[::4]  # what "max" and "sum" put off to the last step grows with the number of steps


def chain(times):
    """Mean and variance of x_N: every step is linear in x."""
    mean, variance = 0.0, float(NOISING.variance(1.0))
    for t, s in zip(times[:-1], times[1:], strict=True):
        at = [reverse_step(NOISING, x, MODEL.score(x, t), t, s) for x in (0.0, 1.0)]
        slope = at[1][0] - at[0][0]
        mean, variance = at[0][0] + slope * mean, slope**2 * variance + at[0][1]
    return float(mean), float(variance)


def log_likelihood(x):
    return dist.Normal(x, SCALE).log_prob(Y)


def exact(times=TIMES):
    """Exact log p(y) and E[x_N | y] under the chain."""
    mean, variance = chain(times)
    gain = variance / (variance + SCALE**2)
    log_z = dist.Normal(mean, np.sqrt(variance + SCALE**2)).log_prob(Y)
    return float(log_z), mean + gain * (Y - mean)


METHODS = {
    "twisted": inference.diffusion.twisted_diffusion(MODEL, TIMES, log_likelihood),
    **{
        name: inference.diffusion.fk_steering(MODEL, TIMES, log_likelihood, potential=name)
        for name in ("difference", "max", "sum")
    },
}


def runs(model, key, n, num_particles, policy):
    def run(key):
        result = inference.smc(
            model, key, num_particles=num_particles, history="none", policy=policy
        )
        return result.log_evidence, result.mean(lambda p: p.x)

    return jax.jit(jax.vmap(run))(jax.random.split(key, n))


SLOW = (pytest.param(name, marks=pytest.mark.slow) for name in ("difference", "max", "sum"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["twisted", *SLOW])
def test_evidence_is_exact_for_the_chain(name, key):
    """Mean of Z-hat / Z over 2000 runs of 64 particles: at a relative sd of 0.19 a bias of 3% is 7 standard errors."""
    model, times = METHODS[name], TIMES
    if name in ("max", "sum"):
        times = COARSE
        model = inference.diffusion.fk_steering(MODEL, times, log_likelihood, potential=name)
    log_zs, _ = runs(model, key, 2000, 64, inference.particles.resampling.every(3))
    assert_unbiased(np.exp(np.asarray(log_zs, float) - exact(times)[0]), 1.0)


@pytest.mark.slow  # one more compilation of many runs
def test_twisted_particles_have_the_posterior_mean(key):
    """Self-normalised: the bias at 1000 particles is far below the noise of 100 runs."""
    _, means = runs(METHODS["twisted"], key, 100, 1000, None)
    assert_unbiased(means, exact()[1])


@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
def test_potentials_add_up_to_the_reward(potential, key):
    model = inference.diffusion.fk_steering(
        MODEL, TIMES, lambda x: jnp.sin(3 * x), potential=potential
    )
    state = jax.jit(model.init)(key)
    kernel, log_potential = jax.jit(model.kernel), jax.jit(model.log_potential)
    total, rewards = log_potential(state, state, 0), [state.reward]
    for n in range(1, 33):
        previous, state = state, kernel(jax.random.fold_in(key, n), state, n)
        log_g = log_potential(previous, state, n)
        total, rewards = total + log_g, [*rewards, state.reward]
        if n < 32:
            want = {
                "difference": rewards[-1] - rewards[-2],
                "max": max(rewards),
                "sum": sum(rewards),
            }
            np.testing.assert_allclose(log_g, want[potential], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(total, jnp.sin(3 * state.x), rtol=1e-4, atol=1e-5)


# Whole paths: the chain is Gaussian, so that the law of a path given y is known.


def path_law(times):
    """Mean and covariance of x_0, ..., x_N given y, N + 1 at most a dozen."""
    one = lambda x, t, s: reverse_step(NOISING, x, MODEL.score(x, t), t, s)
    at = jax.jit(jax.vmap(jax.vmap(one, (0, None, None)), (None, 0, 0)))
    means, variances = map(np.asarray, at(jnp.arange(2.0), times[:-1], times[1:]))
    size = len(times)
    mean, factor = np.zeros(size), np.zeros((size, size))  # path = mean + factor noise
    factor[0, 0] = np.sqrt(float(NOISING.variance(1.0)))
    for n, (m, v) in enumerate(zip(means, variances, strict=True)):
        slope = m[1] - m[0]
        mean[n + 1], factor[n + 1] = m[0] + slope * mean[n], slope * factor[n]
        factor[n + 1, n + 1] = np.sqrt(v[0])
    covariance = factor @ factor.T
    gain = covariance[:, -1] / (covariance[-1, -1] + SCALE**2)
    return mean + gain * (Y - mean[-1]), covariance - np.outer(gain, covariance[-1])


@pytest.mark.slow  # long compilations; those of fkc show the same in the short run
@pytest.mark.parametrize("name", ["difference", "twisted"])
def test_conditional_smc_moves_whole_paths_within_their_law(name, key):
    """One move of 4 particles from 3,000 exact paths of 8 steps: means, squares and products of neighbours as they were."""
    make = {
        "difference": lambda: inference.diffusion.fk_steering(MODEL, COARSE, log_likelihood),
        "twisted": lambda: inference.diffusion.twisted_diffusion(MODEL, COARSE, log_likelihood),
    }
    model, (mean, covariance) = make[name](), path_law(COARSE)
    paths = np.random.default_rng(0).multivariate_normal(mean, covariance, 3000)

    def move(key, x):
        states = jax.vmap(lambda x, n: at_place(name, x, n))(x, jnp.arange(len(COARSE)))
        new = inference.particles.conditional_smc(
            model, key, states, num_particles=4, path="ancestor"
        )
        return jnp.concatenate([new.x, new.x**2, new.x[1:] * new.x[:-1]])

    got = jax.jit(jax.vmap(move))(jax.random.split(key, 3000), jnp.asarray(paths, jnp.float32))
    square = covariance + np.outer(mean, mean)
    assert_unbiased(got, np.concatenate([mean, np.diag(square), np.diag(square, 1)]))


def at_place(name, x, n):
    """The state of a particle that stands at x after n steps."""
    score, t = MODEL.score(x, jnp.asarray(COARSE)[n]), jnp.asarray(COARSE)[n]
    variance, alpha = NOISING.variance(t), NOISING.alpha(t)

    def ahead(x):
        expected = (x + variance * MODEL.score(x, t)) / alpha
        return jnp.where(n == len(COARSE) - 1, log_likelihood(x), log_likelihood(expected))

    if name == "difference":
        return Steered(x, score, ahead(x), jnp.zeros(()), jnp.zeros(()))
    expected = lambda x: log_likelihood((x + variance * MODEL.score(x, t)) / alpha)
    return Twisted(x, score, ahead(x), jax.grad(expected)(x))


@pytest.mark.parametrize("potential", ["max", "sum"])
def test_potentials_of_the_whole_past_keep_their_ancestors(potential):
    model = inference.diffusion.fk_steering(MODEL, COARSE, log_likelihood, potential=potential)
    assert model.log_transition is None


def test_refusals():
    with pytest.raises(ValueError, match="twisted_diffusion: times end at 0"):
        inference.diffusion.twisted_diffusion(MODEL, np.linspace(1, 0, 5), log_likelihood)
    with pytest.raises(ValueError, match="'difference', 'max' or 'sum'"):
        inference.diffusion.fk_steering(MODEL, TIMES, log_likelihood, potential="mean")
