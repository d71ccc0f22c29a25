"""The law of a flow in closed form, in a program as well; diffusions with its marginals, and their density without bias."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

from lapilli import ppl
from lapilli.inference import elbo
from lapilli.models import paths

START = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
ENDS = paths.Mixture([[-1.0], [1.0]], 0.4**2), paths.Mixture([[-2.0], [0.5], [2.0]], 0.3**2)


def field_between(noise):
    return paths.mixture_field(paths.linear(noise), *ENDS)


@pytest.mark.slow(reason="ODEs of a law to compile")
def test_a_linear_flow_is_a_normal(key):
    """Of dx = (x + 1) dt: x_1 = e x_0 + e - 1."""
    law = paths.FlowLaw(lambda t, x: x + 1, START, rtol=1e-6, atol=1e-6)
    want = dist.Normal(jnp.full(2, jnp.e - 1), jnp.e).to_event(1)
    x = jax.random.normal(key, (5, 3, 2)) * 3
    np.testing.assert_allclose(jax.jit(law.log_prob)(x), want.log_prob(x), rtol=1e-4)
    draws = law.sample(key, (4, 2))
    np.testing.assert_allclose(draws, jnp.e * START.sample(key, (4, 2)) + jnp.e - 1, rtol=1e-4)
    estimates = law.estimate_log_prob(x[0], key)  # of a diagonal field
    np.testing.assert_allclose(estimates, want.log_prob(x[0]), rtol=1e-3)


@pytest.mark.slow  # compiles a solver
def test_hutchinson_is_right_in_the_mean(key):
    turn = jnp.array([[0.3, 0.8], [-0.2, -0.5]])
    velocity = lambda t, x: turn @ x
    x = jnp.broadcast_to(jnp.array([0.5, -1.0]), (400, 2))
    got = np.asarray(jax.jit(lambda x: paths.FlowLaw(velocity, START).estimate_log_prob(x, key))(x))
    want = paths.FlowLaw(velocity, START, rtol=1e-6).log_prob(x[0])
    assert got.std() > 0.1
    assert abs(got.mean() - want) < 4.5 * got.std() / 20 + 1e-3


def test_the_flow_between_mixtures_has_the_density_of_its_end():
    law = paths.FlowLaw(field_between(0.0).velocity, ENDS[0].law, rtol=1e-5, atol=1e-6)
    x = jnp.linspace(-3, 3, 9)[:, None]
    got = jax.jit(jax.vmap(law.log_prob))(x)
    want = jax.jit(jax.vmap(lambda x: field_between(0.0).log_density(1.0, x)))(x)
    np.testing.assert_allclose(got, want, atol=3e-3)


@pytest.mark.slow_for("2.0")
@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_densities_of_diffusions_are_estimated_without_bias(noise):
    """400 paths of each point, within 4.5 errors and that of 400 Euler steps; of exact fields the spread is that of the steps."""
    field = field_between(1.0)
    x = jnp.array([[-2.0], [0.9], [1.3]])

    def estimates(num_steps):
        run = lambda x: paths.diffusion_log_density(
            field, ENDS[0].law, x, jax.random.key(0), noise=noise, num_steps=num_steps
        )
        return np.exp(np.asarray(jax.jit(run)(jnp.repeat(x, 400, 0))).reshape(3, 400))

    found, coarse = estimates(400), estimates(100)
    want = np.exp(jax.jit(jax.vmap(lambda x: field.log_density(1.0, x)))(x))
    assert np.all(np.abs(found.mean(1) - want) < 4.5 * found.std(1) / 20 + 0.01 * want)
    ratio = np.log(coarse).std(1) / np.log(found).std(1)
    assert 1.4 < ratio.mean() < 2.9  # the root of 4


def test_densities_are_those_of_what_diffuses_where_the_score_is_wrong():
    """b_F = x / 2 - 3 x / 2: dx = -x dt + sqrt(2) dW keeps Normal(0, 1), whose score is -x."""
    field = paths.Field(lambda t, x: 0.5 * x, lambda t, x: -1.5 * x)
    x = jnp.repeat(jnp.array([[0.3], [-1.2]]), 2000, 0)
    start = dist.Normal(jnp.zeros(1), 1.0).to_event(1)
    options = {"noise": 1.0, "num_steps": 100}
    run = jax.jit(
        lambda x: paths.diffusion_log_density(field, start, x, jax.random.key(1), **options)
    )
    found = np.exp(np.asarray(run(x)).reshape(2, 2000))
    want = stats.norm().pdf([0.3, -1.2])
    assert np.all(np.abs(found.mean(1) - want) < 4.5 * found.std(1) / np.sqrt(2000) + 0.01 * want)


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_diffusions_have_the_marginal_of_the_end(key, noise):
    start = ENDS[0].sample(key, 4000)
    run = jax.jit(lambda x: paths.diffuse(field_between(1.0), key, x, noise=noise, num_steps=200))
    ends = np.asarray(run(start))[:, 0]
    cdf = lambda x: np.mean([stats.norm(m, 0.3).cdf(x) for m in np.ravel(ENDS[1].means)], 0)
    assert stats.kstest(ends, cdf).statistic < 1.95 / np.sqrt(4000) + 0.01


class Linear(eqx.Module):
    rate: jax.Array

    def __call__(self, t, x):
        return self.rate * x


@pytest.mark.slow  # derivatives of a solver compile
def test_a_flow_is_the_guide_of_an_objective():
    """A Normal(0, e^(2 rate)) under p = Normal(0, 1): d ELBO / d rate = d/dr (d r - d e^(2 r) / 2) = d (1 - e^(2 r))."""

    @ppl.model
    def model():
        numpyro.sample("x", START)

    @ppl.model
    def guide():
        velocity = ppl.module("velocity", Linear(jnp.asarray(0.3)))
        numpyro.sample("x", paths.FlowLaw(velocity, START))

    objective = elbo(model, guide)
    params = {"velocity": Linear(jnp.asarray(0.3))}
    run = jax.jit(jax.vmap(lambda key: objective.value_and_grad(params, key)[1]["velocity"].rate))
    found = np.asarray(run(jax.random.split(jax.random.key(0), 2000)))
    assert abs(found.mean() - 2 * (1 - np.exp(0.6))) < 4.5 * found.std() / np.sqrt(2000) + 2e-3


def test_refusals(key):
    field = paths.Field(lambda t, x: x)
    for call in (
        lambda noise: paths.diffuse(field, key, jnp.zeros((2, 1)), noise=noise, num_steps=3),
        lambda noise: paths.diffusion_log_density(
            field, START, jnp.zeros((1, 2)), key, noise=noise, num_steps=3
        ),
    ):
        with pytest.raises(ValueError, match="needs the score of the marginals"):
            call(1.0)
        with pytest.raises(ValueError, match="noise must be >= 0"):
            call(-1.0)
    each = dist.Normal(jnp.zeros(2), 1.0)  # one law for each coordinate
    with pytest.raises(ValueError, match=r"start has batch shape \(2,\) .* \.to_event\(1\)"):
        paths.diffusion_log_density(field, each, jnp.zeros((3, 2)), key, noise=0.0, num_steps=3)
