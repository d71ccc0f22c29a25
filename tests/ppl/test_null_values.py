"""Values of probability 0 that a parameter moves: exact or NaN, never a number without their part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import ppl

STRATEGIES = ["reinforce", "reinforce_loo", "disarm", "arm", "rebar"]
COSTS = jnp.array([1.3, -0.4, 2.0])


def expectation_of(law: Callable[..., Any], strategy: Any, cost: Any = None) -> Any:
    """E[COSTS[x]], or of another cost."""

    def fn(t: Any) -> Any:
        x = ppl.sample("x", law(t), strategy=strategy)
        return COSTS[x] if cost is None else cost(x)

    return ppl.expectation(fn)


def gradients(
    law: Callable[..., Any], strategy: Any, t: Any, cost: Any = None, num: int = 8
) -> Any:
    """Gradients of it in t under several keys."""
    expectation, t = expectation_of(law, strategy, cost), jnp.asarray(t, float)
    return np.array([expectation.grad(t, k) for k in jax.random.split(jax.random.key(1), num)])


def one_hot_cost(x: Any) -> Any:
    return 1.0 + x * 0.3 - x**2


def assert_never_a_number(
    law: Callable[..., Any], strategy: Any, t: float, cost: Any = None
) -> None:
    """Refused where the parameter is known, NaN where another one was known at the first call."""
    with pytest.raises(
        ValueError, match=f"Site 'x': at these parameters .* Strategy '{strategy[:5]}"
    ):
        gradients(law, strategy, t, cost, 2)
    expectation = expectation_of(law, strategy, cost)
    expectation.grad(jnp.asarray(0.5), jax.random.key(0))
    assert np.isnan(expectation.grad(jnp.asarray(t), jax.random.key(0)))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_bernoulli(strategy: str, t: float) -> None:
    assert_never_a_number(dist.Bernoulli, strategy, t, one_hot_cost)


@pytest.mark.parametrize("strategy", ["reinforce", "disarm"])
def test_categorical(strategy: str) -> None:
    law = lambda t: dist.Categorical(jnp.stack([1 - t, t / 2, t / 2]))
    assert_never_a_number(law, strategy, 0.0)


@pytest.mark.parametrize(
    "law",
    [
        lambda t: dist.Binomial(2, t),
        lambda t: dist.Geometric(1 - t),
        lambda t: dist.NegativeBinomialProbs(2.0, t),
        lambda t: dist.ZeroInflatedPoisson(1 - t, 0.4),
        lambda t: dist.HurdlePoisson(t, 0.4),
        lambda t: dist.Poisson(t),
    ],
)
def test_other_laws(law: Callable[..., Any]) -> None:
    assert_never_a_number(law, "reinforce", 0.0, lambda x: 1.0 + jnp.cos(1.0 * x))


def test_multinomial() -> None:
    law = lambda t: dist.Multinomial(2, jnp.stack([t, 1 - t]))
    assert_never_a_number(law, "reinforce", 0.0, lambda x: 1.0 + x[0])


def test_importance_is_exact() -> None:
    proposal = ppl.Importance(dist.Categorical(jnp.array([0.3, 0.3, 0.4])))
    law = lambda t: dist.Categorical(jnp.stack([1 - t, t / 4, 3 * t / 4]))
    found = gradients(law, proposal, 0.0, num=3000)
    exact = float(-COSTS[0] + COSTS[1] / 4 + 3 * COSTS[2] / 4)
    assert abs(found.mean() - exact) < 4 * found.std() / np.sqrt(len(found))


@pytest.mark.parametrize(
    "law",
    [
        lambda t: dist.Categorical(jnp.array([1.0, 1.0, 0.0]) * jnp.stack([t, 1 - t, t])),  # a mask
        lambda t: dist.Categorical(jax.nn.softmax(jnp.stack([t, 2 * t, -jnp.inf]))),
        lambda t: dist.Categorical(jax.nn.softmax(jnp.stack([t, 2 * t, -900 * t]))),
        lambda t: dist.Categorical(jnp.stack([jnp.minimum(jax.nn.relu(t - 5), 1.0), t, 1 - t])),
    ],
)
def test_a_zero_that_does_not_move_is_sound(law: Callable[..., Any]) -> None:
    p, slope = jax.jvp(lambda t: law(t).probs, (0.3,), (1.0,))
    assert (p == 0).any()
    found = gradients(law, "reinforce", 0.3, num=2000)
    assert abs(found.mean() - slope @ COSTS) < 4 * found.std() / np.sqrt(len(found))


def test_rounding_is_no_zero() -> None:
    law = lambda t: dist.Bernoulli(1 / (1 + jnp.exp(-t)))
    assert float(law(20.0).probs) == 1.0
    assert np.isfinite(gradients(law, "reinforce", 20.0, one_hot_cost)).all()


def test_one_row_of_a_plate() -> None:
    def fn(t: Any) -> Any:
        with ppl.plate("rows", 3):
            b = ppl.sample("b", dist.Bernoulli(t), strategy="reinforce")
        return (b * jnp.array([1.0, 2.0, 3.0])).sum()

    found = ppl.expectation(fn)
    found.grad(jnp.array([0.1, 0.5, 0.9]), jax.random.key(0))
    grad = found.grad(jnp.array([0.0, 0.5, 1.0]), jax.random.key(0))
    assert np.isnan(grad).tolist() == [True, False, True]


def test_the_value_differentiated_from_outside_is_beyond_reason() -> None:
    def fn(t: Any) -> Any:
        return 1.0 * ppl.sample("b", dist.Bernoulli(t), strategy="reinforce")

    found = ppl.expectation(fn)
    found.value(jnp.asarray(0.5), jax.random.key(0))
    assert float(found.value(jnp.zeros(()), jax.random.key(0))) == 0.0
    assert abs(jax.grad(lambda t: found.value(t, jax.random.key(0)))(0.0)) > 1e20


def test_what_is_proved_positive_costs_nothing() -> None:
    def fn(t: Any) -> Any:
        b = ppl.sample("b", dist.Bernoulli(jax.nn.sigmoid(t)), strategy="reinforce")
        k = ppl.sample(
            "k", dist.Categorical(jax.nn.softmax(jnp.stack([t, 0.0, 2 * t]))), strategy="reinforce"
        )
        c = ppl.sample("c", dist.Categorical(jnp.array([0.0, 1.0])), strategy="reinforce")
        return b * t + k + c

    program = ppl.expectation(fn).ready(jnp.zeros(()))
    assert not any(n.probabilities for n in program.numbers.values())
