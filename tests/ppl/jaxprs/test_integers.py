"""Integers that wrap: sums are additive only where they do not leave their dtype."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import ppl

KEY = jax.random.key(0)
BIG, SMALL = np.int32(2**30), np.int8(100)


def bits(t, n=2):
    with ppl.plate("bits", n):
        return ppl.sample("b", dist.Bernoulli(jnp.full(n, t)))


WRAPPING = {
    "int8 sum": lambda b: b[0].astype(jnp.int8) * SMALL + b[1].astype(jnp.int8) * SMALL,
    "int8 difference": lambda b: -(b[0].astype(jnp.int8) * SMALL) - b[1].astype(jnp.int8) * SMALL,
    "int8 reduction": lambda b: jnp.sum(b.astype(jnp.int8) * SMALL, dtype=jnp.int8),
    "int8 product": lambda b: (b.sum() * 1).astype(jnp.int8) * SMALL,
    "int8 negation": lambda b: -(b.sum().astype(jnp.int8) * np.int8(-64)),
    "int16": lambda b: b[0].astype(jnp.int16) * np.int16(30_000) + b[1].astype(jnp.int16) * np.int16(30_000),
    "int32 sum": lambda b: b[0] * BIG + b[1] * BIG,
    "int32 reduction": lambda b: jnp.sum(b * BIG),
    "int32 hash": lambda b: (b[0] + 2 * b[1]) * np.int32(1103515245) + np.int32(12345),
    "uint8 difference": lambda b: b[0].astype(jnp.uint8) - b[1].astype(jnp.uint8),
    "booleans": lambda b: (b[0] == 1) + (b[1] == 1),
}  # fmt: skip


@pytest.mark.fast("int32 reduction-enum", "int8 negation-enum")
@pytest.mark.parametrize("strategy", ["enum", "mvd"])
@pytest.mark.parametrize("name", WRAPPING)
def test_integers_that_wrap_have_the_value_of_the_program(name, strategy):
    """Against all outcomes, run one by one."""
    fn = lambda b: WRAPPING[name](b).astype(float)

    def exact(t):
        states = jnp.array(list(itertools.product((0, 1), repeat=2)), jnp.int32)
        return sum(jnp.prod(jnp.where(b == 1, t, 1 - t)) * fn(b) for b in states)

    objective = ppl.expectation(lambda t: fn(bits(t)), strategies=strategy)
    if strategy == "enum":
        got = objective.value_and_grad(0.3, KEY)
    else:  # exact in each bit, given the other
        values, grads = jax.vmap(lambda k: objective.value_and_grad(0.3, k))(
            jax.random.split(KEY, 40_000)
        )
        got = [x.mean() for x in (values, grads)]
        wanted = jax.value_and_grad(exact)(0.3)
        for x, mean, e in zip((values, grads), got, wanted, strict=True):
            assert abs(mean - e) <= 4.5 * x.std() / 200 + 1e-5 * abs(e)
        return
    np.testing.assert_allclose(got, jax.value_and_grad(exact)(0.3), rtol=1e-5)


ROWS = 5
SEPARATING = {
    "Bernoulli": (lambda t: dist.Bernoulli(t), lambda k: k.sum().astype(float)),
    "twice": (lambda t: dist.Bernoulli(t), lambda k: 1.0 * (2 * k.sum() + 3 - k.sum())),
    "Categorical": (lambda t: dist.Categorical(jnp.stack([t, 1 - t])), lambda k: 1.0 * jnp.sum(k)),
    "Binomial": (lambda t: dist.Binomial(2, t), lambda k: 1.0 * k.sum()),
    "Poisson": (lambda t: dist.Poisson(t), lambda k: 1.0 * k.sum()),
    "Poisson, doubled": (lambda t: dist.Poisson(t), lambda k: 1.0 * (2 * k).sum()),
    "bounded int8": (lambda t: dist.Bernoulli(t), lambda k: jnp.sum(k.astype(jnp.int8), dtype=jnp.int8).astype(float)),
}  # fmt: skip


@pytest.mark.parametrize("name", SEPARATING)
def test_counts_that_cannot_wrap_still_separate_row_by_row(name):
    law, fn = SEPARATING[name]

    def cost(t):
        with ppl.plate("rows", ROWS):
            return fn(ppl.sample("k", law(t)))

    program = ppl.expectation(cost, strategies="reinforce").ready(0.3)
    kinds = [link.kind for r in program.relations if 0 in r for link in r[0]]
    assert kinds and set(kinds) == {"aligned"}
