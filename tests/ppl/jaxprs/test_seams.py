"""Choices whose branches meet are proved continuous; all others are left to the search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from jax.numpy import where

from lapilli import ppl
from lapilli.ppl.analysis._analyse import analyse
from lapilli.ppl.checks._jumps import suspects_of


def sources(fn: Callable[..., Any]) -> set[Any]:
    """What is suspected of making fn(z, m, w) jump: z and w are Normal with mean m."""

    def program(m: Any) -> Any:
        z, w = (ppl.sample(name, dist.Normal(m, 1.0)) for name in "zw")
        return fn(z, m, w)

    program = analyse(program, jnp.asarray(0.3), jax.random.key(0), (), strategies=None)
    return {program.sites[s].name if isinstance(s, int) else s for s in suspects_of(program)}


def huber(offset: float) -> Callable[..., Any]:
    return lambda z, m, w: where(
        jnp.abs(z - m) <= 1.5, 0.5 * (z - m) ** 2, 1.5 * (jnp.abs(z - m) - offset)
    )


def loop(offset: float) -> Callable[..., Any]:
    step = lambda c, x: (where(c > x, c, x + 0.5 * (c - x) + offset), None)
    return lambda z, m, w: jax.lax.scan(step, z, jnp.linspace(-1, 1, 5))[0]


@pytest.mark.parametrize(
    "fn",
    [
        lambda z, m, w: where(z > 0, z, 0.01 * z),
        lambda z, m, w: where(z > 0, z, m * z),
        lambda z, m, w: where(z < 0, 0, z),
        lambda z, m, w: where(z > 0, z, jnp.exp(z) - 1),
        lambda z, m, w: 1.05 * where(z > 0, z, 1.67 * jnp.expm1(z)),
        lambda z, m, w: where(z < 1, 1 - z, 0.0),
        lambda z, m, w: where(z < m, m, z),
        lambda z, m, w: where(w > z, w, z),
        lambda z, m, w: where(z - w > 0, (z - w) ** 2, 0.0),
        lambda z, m, w: where(2 * z + w > m, 2 * z + w - m, 0.0),
        lambda z, m, w: where(3 - z / 2 > m, jnp.tanh(3 - z / 2 - m), 0.0),
        lambda z, m, w: where(jnp.exp(z) > 2, jnp.exp(z), 2.0),
        lambda z, m, w: jnp.tanh((lambda x: where(x == jnp.inf, jnp.inf, x))(jnp.exp(z))),
        lambda z, m, w: jnp.exp((lambda x: where(jnp.isneginf(x), -jnp.inf, x))(-jnp.exp(w))),
        huber(0.75),
        loop(0.0),
    ],
)  # fmt: skip
def test_proved(fn: Callable[..., Any]) -> None:
    assert sources(fn) == set()


@pytest.mark.parametrize(
    "fn",
    [
        lambda z, m, w: where(z > 0, z, 0.01 * z - 1),
        lambda z, m, w: where(z > 0, z, 0.01 * z - 2e-5),
        lambda z, m, w: where(z > m, z, 0.0),
        lambda z, m, w: where(z > w, z, w + 1e-3),
        lambda z, m, w: where(z > 0, 1.0, 0.0),
        lambda z, m, w: where(z > 0, w, 0.0),
        lambda z, m, w: where(z > 0, jnp.sqrt(w * w), w),
        lambda z, m, w: where(z > 0, jnp.maximum(w, -900.0), w),
        lambda z, m, w: where(jnp.floor(z) > 0, jnp.floor(z), 0.0),
        lambda z, m, w: where((z > 0) & (w > 0), z, 0.0),
        lambda z, m, w: where(jnp.stack([z, w])[::-1] > 0, jnp.stack([z, w]), 0.0).sum(),
        lambda z, m, w: where((z * jnp.arange(3.0) > 1)[1], z, 1.0),
        lambda z, m, w: jnp.tanh((lambda x: where(x == jnp.inf, 0.0, x))(jnp.exp(z))),
        lambda z, m, w: where(m * z > 0, m, 0.0),
        lambda z, m, w: where(w * z > 0, w, 0.0),
        lambda z, m, w: where(0.0 > z * (m + 1), m + 1, 0.0),
        huber(0.5),
        loop(0.1),
    ],
)  # fmt: skip
def test_left_to_the_search(fn: Callable[..., Any]) -> None:
    assert "z" in sources(fn)
