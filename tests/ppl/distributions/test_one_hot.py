"""ppl.distributions.OneHotCategorical and the relaxed estimators that need it."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import ppl

LOGITS = jnp.array([0.3, -1.0, 0.8])
COST = jnp.array([1.0, -2.0, 0.5])


@pytest.mark.slow
def test_it_is_the_categorical_on_unit_vectors(key):
    law, plain = ppl.distributions.OneHotCategorical(LOGITS), dist.CategoricalLogits(LOGITS)
    np.testing.assert_allclose(law.log_prob(jnp.eye(3)), plain.log_prob(jnp.arange(3)), rtol=1e-6)
    np.testing.assert_array_equal(law.enumerate_support(), jnp.eye(3))
    np.testing.assert_array_equal(
        law.sample(key, (50,)), jax.nn.one_hot(plain.sample(key, (50,)), 3)
    )


def relaxed(make, strategy):
    def fn(logits):
        z = ppl.sample("z", make(logits), strategy=strategy)
        return jnp.sum((z - 0.3) ** 2 * COST[: max(z.size, 1)])

    return ppl.expectation(fn)


@pytest.mark.fast("straight_through")
@pytest.mark.parametrize("strategy", ["gumbel_softmax", "straight_through"])
def test_relaxed_gradient_is_that_of_the_relaxed_program(strategy, key):
    """By hand, from the same draw."""
    expectation = relaxed(ppl.distributions.OneHotCategorical, strategy)
    value, grad = expectation.value_and_grad(LOGITS, key)
    soft, pull = jax.vjp(lambda z: jax.nn.softmax(z / 0.5), noisy(expectation, key))
    z = jax.nn.one_hot(soft.argmax(), 3) if strategy == "straight_through" else soft
    np.testing.assert_allclose(value, jnp.sum((z - 0.3) ** 2 * COST), rtol=1e-5)
    np.testing.assert_allclose(grad, pull(2 * (z - 0.3) * COST)[0], rtol=1e-4, atol=1e-6)


def noisy(expectation, key):
    """Logits plus the draw's Gumbel noise, recovered from the relaxed value up to a constant."""
    program = ppl.expectation(
        lambda logits, pick: jnp.sum(
            pick
            * ppl.sample(
                "z", ppl.distributions.OneHotCategorical(logits), strategy="gumbel_softmax"
            )
        )
    )
    return 0.5 * jnp.log(jnp.array([program.value(LOGITS, key, pick) for pick in jnp.eye(3)]))


@pytest.mark.parametrize("make", [ppl.distributions.OneHotCategorical, dist.BernoulliLogits])
@pytest.mark.parametrize("strategy", ["gumbel_softmax", "straight_through"])
def test_relaxed_gradients_stay_finite_where_probabilities_underflow(make, strategy, key):
    logits = (
        jnp.array([200.0, -200.0, 0.0])
        if make is ppl.distributions.OneHotCategorical
        else jnp.array(-200.0)
    )
    assert all(map(jnp.all, map(jnp.isfinite, relaxed(make, strategy).value_and_grad(logits, key))))
