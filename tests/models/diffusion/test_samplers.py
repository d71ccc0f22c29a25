"""Samplers and likelihoods against exact mixtures and Gaussian recursions."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from _stats import assert_unbiased
from lapilli.models import diffusion

WEIGHTS, MEANS, VARIANCES = np.array([0.3, 0.7]), np.array([-1.5, 1.0]), np.array([0.2, 0.3])
MEAN = WEIGHTS @ MEANS
SQUARE = WEIGHTS @ (VARIANCES + MEANS**2)
VP, EDM = diffusion.VP(), diffusion.EDM(sigma_max=20.0)


def mixture(noising):
    return diffusion.gaussian_mixture(noising, WEIGHTS, MEANS, VARIANCES)


def below(x):
    """P(mixture < x)."""
    from scipy.stats import norm

    return float(WEIGHTS @ norm.cdf(x, MEANS, np.sqrt(VARIANCES)))


SAMPLERS = {
    "ancestral": (diffusion.ancestral, VP, 400),
    "ddim": (diffusion.ddim, VP, 400),
    "euler_maruyama": (diffusion.euler_maruyama, VP, 800),
    "flow by Euler": (functools.partial(diffusion.euler_maruyama, zeta=0.0), VP, 800),
    "heun": (diffusion.heun, VP, 40),
    "heun, EDM": (diffusion.heun, EDM, 40),
    "heun with churn, EDM": (functools.partial(diffusion.heun, churn=20.0), EDM, 80),
    "heun with churn": (functools.partial(diffusion.heun, churn=20.0), VP, 80),
}


LATER = ("flow by Euler", "heun", "heun with churn")  # variants of others


@pytest.mark.fast("heun, EDM")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LATER else n for n in SAMPLERS]
)
def test_samplers_draw_the_mixture(name, key):
    """Mean, second moment and two distribution functions at 4000 draws: a step bias of 0.11 sd is 7 standard errors."""
    sampler, noising, num_steps = SAMPLERS[name]
    times = jnp.append(noising.times(num_steps), 0.0)
    draw = jax.jit(lambda key: sampler(mixture(noising), key, times, num_samples=4000))
    x = np.asarray(draw(key), float)
    values = np.stack([x, x**2, x < 0, x < 1], 1)
    assert_unbiased(values, [MEAN, SQUARE, below(0.0), below(1.0)])


def test_a_flow_without_diffrax_is_refused(monkeypatch, key):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match=r"solved by diffrax.*pip install lapilli\[ode\]"):
        diffusion.flow_sample(mixture(VP), key, num_samples=1)


@pytest.mark.slow
def test_one_point_is_reached_by_one_step():
    """Data that are one point: DDIM and Heun without churn are exact however long the step."""
    model = diffusion.gaussian_mixture(VP, [1.0], [[0.7, -0.2]], 1e-12)
    for sampler in (diffusion.ddim, diffusion.ancestral, diffusion.heun):
        draw = jax.jit(lambda key, s=sampler: s(model, key, jnp.array([1.0, 0.0]), num_samples=3))
        x = draw(jax.random.key(0))
        np.testing.assert_allclose(x, np.tile([0.7, -0.2], (3, 1)), atol=2e-3)


def test_ancestral_is_the_conditional_law_of_the_noising_process():
    """A Gaussian stays Gaussian: variance after one step by the joint law of (x_s, x_t) at the denoised point."""
    from lapilli.inference.diffusion._diffusion import reverse_step

    t, s, v = 0.6, 0.35, 0.5
    model = diffusion.gaussian_mixture(VP, [1.0], [0.4], v)
    alpha = {u: float(VP.alpha(u)) for u in (t, s)}
    noise = {u: float(VP.variance(u)) for u in (t, s)}
    x = jnp.asarray(0.9)
    mean, variance = reverse_step(VP, x, model.score(x, t), t, s)
    x0 = 0.4 + alpha[t] * v / (alpha[t] ** 2 * v + noise[t]) * (0.9 - alpha[t] * 0.4)
    kept = alpha[t] / alpha[s]
    precision = kept**2 / (noise[t] - kept**2 * noise[s]) + 1 / noise[s]
    want = (kept * 0.9 / (noise[t] - kept**2 * noise[s]) + alpha[s] * x0 / noise[s]) / precision
    np.testing.assert_allclose([mean, variance], [want, 1 / precision], rtol=1e-4)


def test_points_to_start_from(key):
    model = mixture(VP)
    start = model.prior().sample(key, (5,))
    one, two = (diffusion.ddim(model, k, VP.times(10), num_samples=5, start=start) for k in jax.random.split(key))  # fmt: skip
    np.testing.assert_allclose(one, two, rtol=1e-6)
    with pytest.raises(ValueError, match=r"ddim: start has shape \(5,\), and \(4,\) are wanted"):
        diffusion.ddim(model, key, VP.times(10), num_samples=4, start=start)
    with pytest.raises(ValueError, match="heun: times must descend"):
        diffusion.heun(model, key, VP.times(10)[::-1], num_samples=4)


# The probability flow.

PLANE = (np.array([0.4, 0.6]), np.array([[-1.0, 0.5], [0.8, -0.3]]), np.array([[0.3, 0.2], [0.4, 0.5]]))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "noising", [VP, pytest.param(diffusion.EDM(), marks=pytest.mark.slow)], ids=["VP", "EDM"]
)
def test_log_likelihood_is_the_exact_one(noising, key):
    """Within 0.02 nats of the mixture's log-density at 32 points."""
    model = diffusion.gaussian_mixture(noising, *PLANE)
    x = PLANE[1][0] + jax.random.normal(key, (32, 2))
    got = jax.jit(lambda x: diffusion.flow_log_likelihood(model, x))(x)
    exact = jax.vmap(lambda x: model.log_density(x, 1e-3))(x)
    np.testing.assert_allclose(got, exact, atol=0.02)


@pytest.mark.slow  # 2000 solutions
def test_hutchinson_is_unbiased_for_the_log_likelihood(key):
    model = diffusion.gaussian_mixture(VP, *PLANE)
    x = jnp.tile(jnp.array([0.3, -0.8]), (2000, 1))
    options = {"divergence": "hutchinson", "num_probes": 2, "key": key, "rtol": 1e-5, "atol": 1e-5}
    got = jax.jit(lambda x: diffusion.flow_log_likelihood(model, x, **options))(x)
    exact = diffusion.flow_log_likelihood(model, x[:1], rtol=1e-5, atol=1e-5)[0]
    assert_unbiased(got, exact)


@pytest.mark.slow
def test_the_flow_draws_the_mixture(key):
    x = np.asarray(diffusion.flow_sample(mixture(VP), key, num_samples=2000), float)
    values = np.stack([x, x**2, x < 0, x < 1], 1)
    assert_unbiased(values, [MEAN, SQUARE, below(0.0), below(1.0)])


def test_refusals_of_the_flow():
    model, x = mixture(VP), jnp.zeros(3)
    with pytest.raises(ValueError, match="'exact' or 'hutchinson'"):
        diffusion.flow_log_likelihood(model, x, divergence="none")
    with pytest.raises(ValueError, match="Give a key"):
        diffusion.flow_log_likelihood(model, x, divergence="hutchinson")
