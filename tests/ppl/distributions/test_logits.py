"""Bernoulli and Binomial log-probabilities have all their derivatives at logits of exactly 0."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import ppl

LAWS = {
    "bernoulli": (lambda l: dist.Bernoulli(logits=l), 1),
    "binomial": (lambda l: dist.Binomial(5, logits=l), 5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_derivatives_of_the_log_prob(name):
    make, n = LAWS[name]
    value = jnp.arange(n + 1)
    log_prob = lambda l: make(l).log_prob(value)
    for l in (0.0, -0.0, 1.3, -0.7):
        p = 1 / (1 + np.exp(-l))
        np.testing.assert_allclose(jax.jacfwd(log_prob)(l), value - n * p, rtol=1e-5)
        np.testing.assert_allclose(jax.jacrev(log_prob)(l), value - n * p, rtol=1e-5)
        np.testing.assert_allclose(
            jax.hessian(log_prob)(l), [-n * p * (1 - p)] * (n + 1), rtol=1e-5
        )


@pytest.mark.slow
def test_extreme_logits():
    l = jnp.array([-jnp.inf, -1e4, -90.0, 90.0, 1e4, jnp.inf])
    for value, exact in ((0, [0, 0, 0, -90, -1e4, -np.inf]), (1, [-np.inf, -1e4, -90, 0, 0, 0])):
        log_prob = lambda l, y=value: dist.Bernoulli(logits=l, validate_args=False).log_prob(y)
        np.testing.assert_allclose(log_prob(l), exact, atol=1e-30)
        assert jnp.isfinite(jax.vmap(jax.grad(log_prob))(l)).all()


def test_a_likelihood_under_an_outer_transformation_is_no_jump(key):
    """Where no values are known the search for jumps must have nothing to search."""

    def cost(w):
        z = ppl.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        return dist.Bernoulli(logits=w * z).log_prob(1).sum()

    assert jnp.isfinite(jax.jit(ppl.expectation(cost).grad)(0.0, key))


@pytest.mark.parametrize("strategy", ["enum", "reinforce"])
def test_the_gradient_of_a_guide_that_starts_at_zero(strategy, key):
    """E[3 b - log q(b)] with q = sigmoid(l) has the gradient 3 / 4 at l = 0, where the entropy is largest."""

    def cost(l):
        b = ppl.sample("b", dist.Bernoulli(logits=l).expand([2]).to_event(1), strategy=strategy)
        return 1.5 * b.sum() - dist.Bernoulli(logits=l).log_prob(b).sum()

    grads = jax.vmap(lambda k: ppl.expectation(cost).grad(0.0, k))(jax.random.split(key, 4000))
    error = 4.5 * grads.std() / 4000**0.5 + 1e-6
    assert abs(grads.mean() - 0.75) < error
