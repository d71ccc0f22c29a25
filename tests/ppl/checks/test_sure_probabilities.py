"""Probabilities of exactly 0 or 1 that a parameter moves: exact derivatives under 'enum' and 'mvd', in closed form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import ppl

KEY = jax.random.key(0)
TABLE = jnp.array([1.0, 5.0, -2.0])


def bernoulli(t):
    return 3.0 + 2.0 * ppl.sample("k", dist.Bernoulli(t)) ** 2


def categorical(t):
    probs = jnp.array([0.0, 1.0, 0.0]) + t * jnp.array([1.0, -2.0, 1.0])
    return TABLE[ppl.sample("k", dist.Categorical(probs))]


def binomial(t):
    return 1.0 * ppl.sample("k", dist.Binomial(3, t)) ** 2


def pair(t):
    with ppl.plate("rows", 2):
        k = ppl.sample("k", dist.Bernoulli(jnp.stack([t, 1 - t])))
    return jnp.where(k[0] == 1, 4.0, 1.0) * (1.0 + k[1])


def chain(t):
    def step(c, _):
        k = ppl.sample("k", dist.Bernoulli(jnp.where(c == 1, 1 - t, t)))
        return k, 1.0 * k

    return ppl.scan(step, 0, None, 3)[1].sum()


def branch(t):
    flag = ppl.sample("flag", dist.Bernoulli(0.5), strategy="enum")
    return ppl.cond(flag == 1, lambda: 2.0 * ppl.sample("k", dist.Bernoulli(t)), lambda: 1.0)


# Program, expectation, and where.
CASES = {
    "Bernoulli at 0": (bernoulli, lambda t: 3 + 2 * t, 0.0),
    "Bernoulli at 1": (bernoulli, lambda t: 3 + 2 * t, 1.0),
    "Categorical": (categorical, lambda t: t + 5 * (1 - 2 * t) - 2 * t, 0.0),
    "Binomial at 0": (binomial, lambda t: 3 * t * (1 - t) + 9 * t**2, 0.0),
    "Binomial at 1": (binomial, lambda t: 3 * t * (1 - t) + 9 * t**2, 1.0),
    "Binomial inside": (binomial, lambda t: 3 * t * (1 - t) + 9 * t**2, 0.3),
    "two that meet": (pair, lambda t: (1 + 3 * t) * (2 - t), 0.0),
    "branch": (branch, lambda t: 0.5 * 2 * t + 0.5, 0.0),
}  # fmt: skip


@pytest.mark.fast("Bernoulli at 1-enum", "Binomial at 1-enum")
@pytest.mark.parametrize("strategy", ["enum", "mvd"])
@pytest.mark.parametrize("name", CASES)
def test_the_derivative_is_exact(name, strategy):
    program, exact, t = CASES[name]
    objective = ppl.expectation(program, strategies={"k": strategy})
    keys = jax.random.split(KEY, 2000 if strategy == "mvd" else 1)
    got = jax.vmap(lambda k: objective.grad(t, k))(keys)
    error = 4.5 * float(got.std()) / len(keys) ** 0.5 + 1e-5
    np.testing.assert_allclose(got.mean(), jax.grad(exact)(t), rtol=1e-5, atol=error)


def test_a_chain_of_sure_steps():
    """E of the states' sum by the transition matrix."""

    def exact(t):
        p, total = 0.0, 0.0
        for _ in range(3):
            p = p * (1 - t) + (1 - p) * t
            total += p
        return total

    got = ppl.expectation(chain, strategies="enum").value_and_grad(0.0, KEY)
    np.testing.assert_allclose(got, jax.value_and_grad(exact)(0.0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cost", [np.inf, np.nan])
@pytest.mark.parametrize("strategy", ["enum", "mvd"])
def test_a_value_without_a_cost_that_never_happens_counts_nothing(cost, strategy):
    table = jnp.array([np.log(0.5), np.log(0.2), cost])

    def program(t):
        return table[ppl.sample("k", dist.Categorical(jnp.stack([t, 1 - t, 0.0])))]

    got = ppl.expectation(program, strategies=strategy).grad(0.3, KEY)
    np.testing.assert_allclose(got, np.log(0.5) - np.log(0.2), rtol=1e-5)
