"""An expectation inside of another one: a number like others where it is summed, refused where its noise would jump."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import ppl

KEY = jax.random.key(0)


def inner_of(strategy):
    """E[(1 + b) (x + 1) p], b a coin whose probability depends on both."""

    def cost(both):
        p, x = both
        b = ppl.sample("b", dist.Bernoulli(0.5 * p + 0.2 * x), strategy=strategy)
        return (1.0 + b) * (x + 1) * p

    return ppl.expectation(cost)


def outer_of(inner, strategy):
    def cost(p):
        x = 1.0 * ppl.sample("x", dist.Bernoulli(p), strategy=strategy)
        return inner.value((p, x), ppl.rng_key("noise"))

    return ppl.expectation(cost)


def exact(p):
    mean = lambda x: (1 + 0.5 * p + 0.2 * x) * (x + 1) * p
    return p * mean(1.0) + (1 - p) * mean(0.0)


def test_a_sum_inside_of_a_sum_is_exact():
    """An IndexError once: the analysis met an operation of the inner estimate that has no result."""
    found = outer_of(inner_of("enum"), "enum").value_and_grad(0.3, KEY)
    np.testing.assert_allclose(found, jax.value_and_grad(exact)(0.3), rtol=1e-5)


@pytest.mark.slow  # sampled
@pytest.mark.parametrize("strategy", ["reinforce", "mvd"])
def test_a_sum_inside_of_other_strategies_is_unbiased(strategy, seed):
    estimate = outer_of(inner_of("enum"), strategy)
    estimate.value(0.3, KEY)
    keys = jax.random.split(jax.random.key(seed), 20_000)
    found = jax.jit(jax.vmap(lambda key: jnp.stack(estimate.value_and_grad(0.3, key))))(keys)
    z = (found.mean(0) - jnp.stack(jax.value_and_grad(exact)(0.3))) / (found.std(0) / 20_000**0.5)
    assert (jnp.abs(z) < 4.5).all(), z


@pytest.mark.slow_for("mvd")
@pytest.mark.parametrize("strategy", ["reinforce", "mvd"])
def test_an_estimate_inside_is_refused_where_its_draws_would_jump(strategy):
    with pytest.raises(ValueError, match=r"rng_key\('noise'\).*jumps by .*make the draw a site"):
        outer_of(inner_of(strategy), "enum").value(0.3, KEY)
