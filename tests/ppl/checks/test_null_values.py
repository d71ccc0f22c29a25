"""Values of probability 0 that a parameter moves: exact or NaN, never a number without their part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl

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
        ValueError,
        match=f"Site 'x': at these parameters .* Strategy '{getattr(strategy, 'name', strategy)[:5]}",
    ):
        gradients(law, strategy, t, cost, 2)
    expectation = expectation_of(law, strategy, cost)
    expectation.grad(jnp.asarray(0.5), jax.random.key(0))
    assert np.isnan(expectation.grad(jnp.asarray(t), jax.random.key(0)))


@pytest.mark.fast("1.0-arm", "1.0-reinforce", "1.0-reinforce_loo")
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_bernoulli(strategy: str, t: float) -> None:
    assert_never_a_number(dist.Bernoulli, strategy, t, one_hot_cost)


@pytest.mark.fast("reinforce")
@pytest.mark.parametrize("strategy", ["reinforce", "disarm"])
def test_categorical(strategy: str) -> None:
    law = lambda t: dist.Categorical(jnp.stack([1 - t, t / 2, t / 2]))
    assert_never_a_number(law, strategy, 0.0)


@pytest.mark.fast("<lambda>1")
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


@pytest.mark.slow
def test_importance_is_exact() -> None:
    proposal = ppl.Importance(dist.Categorical(jnp.array([0.3, 0.3, 0.4])))
    law = lambda t: dist.Categorical(jnp.stack([1 - t, t / 4, 3 * t / 4]))
    found = gradients(law, proposal, 0.0, num=3000)
    exact = float(-COSTS[0] + COSTS[1] / 4 + 3 * COSTS[2] / 4)
    assert abs(found.mean() - exact) < 4 * found.std() / np.sqrt(len(found))


@pytest.mark.fast("<lambda>2")
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


@pytest.mark.slow
def test_one_row_of_a_plate() -> None:
    def fn(t: Any) -> Any:
        with ppl.plate("rows", 3):
            b = ppl.sample("b", dist.Bernoulli(t), strategy="reinforce")
        return (b * jnp.array([1.0, 2.0, 3.0])).sum()

    found = ppl.expectation(fn)
    found.grad(jnp.array([0.1, 0.5, 0.9]), jax.random.key(0))
    grad = found.grad(jnp.array([0.0, 0.5, 1.0]), jax.random.key(0))
    assert np.isnan(grad).tolist() == [True, False, True]


@pytest.mark.slow
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


# Mixtures: their density has its derivative at weights of 0, which serves where components share their support.

WEIGHTS = lambda t: dist.Categorical(jnp.stack([t, 1 - t]))


@pytest.mark.fast("0.4")
@pytest.mark.parametrize("t", [0.0, 0.4])
def test_a_mixture_drawn_by_score(t: float) -> None:
    law = lambda t: dist.MixtureSameFamily(WEIGHTS(t), dist.Normal(jnp.array([0.0, 1.0]), 1.0))
    fn = lambda t: ppl.sample("x", law(t), strategy="reinforce") ** 2
    expectation = ppl.expectation(fn, num_replicates=4000)
    found = np.array([expectation.grad(t, k) for k in jax.random.split(jax.random.key(0), 16)])
    assert abs(found.mean() + 1) < 4.5 * found.std() / 4


@pytest.mark.fast("1.0")
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_components_of_different_support(t: float) -> None:
    parts = [dist.Uniform(0, 1), dist.Uniform(2, 3)]
    law = lambda t: dist.MixtureGeneral(WEIGHTS(t), parts, support=dist.constraints.interval(0, 3))
    assert_never_a_number(law, "reinforce", t, one_hot_cost)


@pytest.mark.slow
def test_values_that_a_component_lacks() -> None:
    law = lambda t: dist.MixtureSameFamily(
        dist.Categorical(jnp.array([0.3, 0.7])), dist.Bernoulli(jnp.stack([t, t]))
    )
    assert_never_a_number(law, "reinforce", 0.0, one_hot_cost)
    parts = lambda t: [dist.Poisson(t), dist.Poisson(t * 2)]
    law = lambda t: dist.MixtureGeneral(dist.Categorical(jnp.array([0.3, 0.7])), parts(t))
    assert_never_a_number(law, "reinforce", 0.0, one_hot_cost)


# `ppl.eliminate`: the logarithm of the sum has no derivative there.


def eliminated(law: Callable[..., Any], num_steps: int | None = None) -> Any:
    """Elbo of a program whose only latent sites are summed out, and its parameter at t."""

    def step(z: Any, t: Any) -> Any:
        z = ppl.sample("z", law(t, z))
        ppl.sample("y", dist.Normal(2.0 * z, 1.0), obs=0.5)
        return z

    @ppl.model
    def program() -> None:
        t = ppl.param("t", 0.3)
        if num_steps is None:
            step(0, t)
        else:
            ppl.scan(lambda z, _: (step(z, t), None), 0, jnp.arange(num_steps))

    objective = inference.elbo(ppl.eliminate(program, "z"), lambda: None)
    return objective, lambda t: {"t": jnp.asarray(t, float)}


@pytest.mark.fast("1.0-None")
@pytest.mark.parametrize("num_steps", [None, 3])
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_states_that_are_never_reached(num_steps: int | None, t: float) -> None:
    law = lambda t, z: dist.Categorical(jnp.stack([t, 1 - t]))
    objective, at = eliminated(law, num_steps)
    with pytest.raises(
        ValueError, match=r"eliminate\[z\]: at these parameters .* probability exactly 0"
    ):
        objective.value_and_grad(at(t), jax.random.key(0))
    objective.value_and_grad(at(0.5), jax.random.key(0))
    value, grad = objective.value_and_grad(at(t), jax.random.key(0))
    assert np.isfinite(value) and np.isnan(grad["t"])


@pytest.mark.fast("fixed")
@pytest.mark.parametrize(
    "law",
    [
        lambda t, z: dist.Bernoulli(1 - t),
        lambda t, z: dist.Binomial(1, 1 - t),
        lambda t, z: dist.Categorical(
            jax.nn.softmax(jnp.stack([jnp.log(t + 1e-30), jnp.log1p(-t)]))
        ),
        lambda t, z: dist.Categorical(jnp.array([[0.5, 0.5], [0.0, 1.0]])[z]),
    ],
    ids=["bernoulli", "binomial", "softmax", "fixed"],
)
def test_states_that_are_reached_again(law: Callable[..., Any]) -> None:
    objective, at = eliminated(law, 2)
    both = [objective.value_and_grad(at(t), jax.random.key(0)) for t in (0.0, 1e-4)]
    slope = float(both[1][0] - both[0][0]) / 1e-4
    np.testing.assert_allclose(both[0][1]["t"], slope, rtol=2e-2, atol=1e-5)


class Score(ppl.strategies.Strategy):
    """A score function of a user's, who knows nothing of such values."""

    name = "score of a user"

    def refuse(self, distribution: dist.Distribution) -> None:
        return None

    def local(self, draw: ppl.strategies.Draw) -> Any:
        return draw.log_prob

    def surrogate(self, local: Any, downstream: ppl.strategies.Downstream) -> Any:
        held = jax.lax.stop_gradient
        return held(downstream.cost) * (local - held(local))


def test_strategies_of_a_user_miss_them_unless_they_say_otherwise() -> None:
    assert_never_a_number(dist.Bernoulli, Score(), 0.0, one_hot_cost)
