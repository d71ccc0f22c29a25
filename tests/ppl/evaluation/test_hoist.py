"""Noise of a loop drawn before it: the same numbers, and nothing random left in the loop that need not be there."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.extend.core import Jaxpr

from lapilli import ppl
from lapilli.ppl.analysis import _analyse
from lapilli.ppl.evaluation import _hoist
from lapilli.ppl.jaxprs._interpreter import inner_jaxprs

P = {"a": jnp.array(0.3), "b": jnp.array(-0.2)}


def draws_in_loops(jaxpr: Jaxpr, *, inside: bool = False) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        total += inside and eqn.primitive.name == "random_bits"
        is_loop = inside or eqn.primitive.name == "scan"
        total += sum(draws_in_loops(inner, inside=is_loop) for inner in inner_jaxprs(eqn))
    return total


def nested(p: Any) -> Any:
    def step(c: Any, x: Any) -> Any:
        z = ppl.sample("z", dist.Normal(c * p["a"], jnp.exp(p["b"])).expand([3]).to_event(1))
        k = ppl.sample("k", dist.Bernoulli(jax.nn.sigmoid(p["a"] + c)), strategy="reinforce")

        def inner(d: Any, y: Any) -> Any:
            w = ppl.sample("w", dist.Laplace(d, 1.0))
            return w, w * y

        _, ws = ppl.scan(inner, z.sum(), jnp.arange(2.0))
        jax.debug.callback(lambda _: None, z)  # what has effects stays in its place
        return z.mean() + k, z.sum() * x + ws.sum()

    last, ys = ppl.scan(step, 0.0, jnp.arange(3.0))
    return ys.sum() + last


def lanes(p: Any) -> Any:
    def step(c: Any, x: Any) -> Any:
        z = ppl.particles(2)(lambda: ppl.sample("z", dist.Normal(c, jnp.exp(p["b"]))))()
        ppl.sample("x", dist.Normal(z.mean(), 1.0), obs=x)
        return jnp.tanh(z.sum()), z.sum()

    return ppl.scan(step, p["a"], jnp.arange(3.0))[1].sum()


def listed(p: Any) -> Any:
    def step(c: Any, x: Any) -> Any:
        k = ppl.sample("k", dist.Categorical(logits=c * jnp.arange(3.0)), strategy="enum")
        return p["a"] * k, x * k

    return ppl.scan(step, p["b"], jnp.arange(3.0))[1].sum()


def poisson(p: Any) -> Any:
    def step(c: Any, _: Any) -> Any:
        n = ppl.sample("n", dist.Poisson(jnp.exp(p["a"] + c)), strategy="reinforce")
        return jnp.tanh(n), 1.0 * n

    return ppl.scan(step, 0.0, None, length=2)[1].sum()


def both(monkeypatch: Any, fn: Any, key: Any) -> tuple[Any, Any, Jaxpr]:
    """Value and gradient with the noise before the loops and inside, and the traced program."""
    programs = []
    hoist = _hoist.hoist_noise
    monkeypatch.setattr(
        _analyse, "hoist_noise", lambda c, i: programs.append(hoist(c, i)) or programs[-1]
    )
    before = jax.jit(ppl.expectation(fn).value_and_grad)(P, key)
    monkeypatch.setattr(_analyse, "hoist_noise", lambda c, _: c)
    return before, jax.jit(ppl.expectation(fn).value_and_grad)(P, key), programs[-1].jaxpr


@pytest.mark.fast("listed-1")
@pytest.mark.parametrize(("fn", "left"), [(nested, 0), (lanes, 0), (listed, 1)])
def test_the_numbers_are_the_same_and_nothing_is_drawn_in_the_loops(
    monkeypatch: Any, fn: Any, left: int
) -> None:
    before, inside, jaxpr = both(monkeypatch, fn, jax.random.key(1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), before, inside)
    assert (
        draws_in_loops(jaxpr) == left
    )  # a listed site's draw, which nobody reads, stays where it is


@pytest.mark.slow
def test_noise_too_large_for_the_outer_loop_leaves_the_inner_one(monkeypatch: Any) -> None:
    monkeypatch.setattr(_hoist, "MAX_BYTES", 8)  # the two numbers of the inner loop
    key = jax.random.key(1)
    _, _, jaxpr = both(monkeypatch, nested, key)
    (outer,) = (e for e in jaxpr.eqns if e.primitive.name == "scan")
    assert draws_in_loops(outer.params["jaxpr"].jaxpr) == 0 < draws_in_loops(jaxpr)


@pytest.mark.parametrize("why", ["rate", "size", "generator"])
def test_what_cannot_be_drawn_early_stays_in_the_loop(monkeypatch: Any, why: str) -> None:
    if why == "size":
        monkeypatch.setattr(_hoist, "MAX_BYTES", 8)
    key = jax.random.key(1, impl="rbg") if why == "generator" else jax.random.key(1)
    fn = poisson if why == "rate" else lanes
    jaxpr = jax.make_jaxpr(lambda k: ppl.expectation(fn).value_and_grad(P, k))(key)
    assert draws_in_loops(jaxpr.jaxpr) > 0
