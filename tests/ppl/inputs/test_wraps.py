"""Whole numbers that wrap round are found where they are known, and only where they count."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl
from lapilli.ppl.inputs import heard, suspects

TABLE = 1.0 + jnp.arange(4.0)
KEY = jax.random.key(0)


def found(fn, *args):
    """Where numbers wrap, which count."""
    closed = jax.make_jaxpr(fn)(TABLE, *args)
    known = [None, *args]
    if not suspects(closed, known):
        return []
    return [x.place for x in heard(closed, [TABLE, *args], known)]


# What is made of four whole numbers, and numbers of which it fits, and of which it does not.
SMALL, LARGE = np.array([1, 2, 3, 4], np.int32), np.array([1, 2, 3, 50_000], np.int32)
HUGE = np.array([1, 2, 1_200_000_000, 1_300_000_000], np.int32)
BYTES = np.array([1, 2, 3, 200], np.uint8)
CODES = np.array([1, 2, 3, 100], np.int8)
WAYS = {
    "square": (lambda e, x: e * x**2, LARGE),
    "product": (lambda e, x: e * (x * x), LARGE),
    "jnp.square": (lambda e, x: e * jnp.square(x), LARGE),
    "cube": (lambda e, x: e * x**3, LARGE),
    "sum of two": (lambda e, x: e * (x + x), HUGE),
    "sum": (lambda e, x: e * jnp.sum(x), HUGE),
    "sum of a column": (lambda e, x: e[:2] * jnp.sum(x.reshape(2, 2), 1), HUGE),
    "running sum": (lambda e, x: e * jnp.cumsum(x), HUGE),
    "running sum from the end": (lambda e, x: e * jax.lax.cumsum(x, reverse=True), HUGE),
    "running product": (lambda e, x: e * jnp.cumprod(x), HUGE),
    "difference of bytes": (lambda e, x: e * (x - 5), BYTES),
    "bytes times ten": (lambda e, x: e * (x * 10), BYTES),
    "codes times ten": (lambda e, x: e * (x * 10), CODES),
    "product of matrices": (lambda e, x: e * (x @ x), LARGE),
    "products of rows": (lambda e, x: e * jnp.einsum("ij,ij->i", x[:, None], x[:, None]), LARGE),
    "squares of columns": (lambda e, x: e[:2] * jnp.einsum("ij,ij->j", *[x.reshape(2, 2)] * 2), LARGE),
    "a cast to bytes": (lambda e, x: e * x.astype(jnp.uint8), LARGE),
    "a cast of real numbers": (lambda e, x: e * (x * 1e6).astype(int), LARGE),
    "jit": (lambda e, x: jax.jit(lambda e, x: e * x**2)(e, x), LARGE),
    "vmap": (lambda e, x: jax.vmap(lambda e, x: e * x**2)(e, x), LARGE),
    "scan": (lambda e, x: jax.lax.scan(lambda c, x: (c, e * x**2), 0.0, x)[1], LARGE),
    "index": (lambda e, x: e[jnp.clip(x**2, 0, 3)], LARGE),
}  # fmt: skip
IDIOMS = {
    "real numbers before": (lambda e, x: e * x.astype(float) ** 2, LARGE),
    "a mean": (lambda e, x: e * jnp.mean(x), HUGE),
    "left out": (lambda e, x: e * jnp.where(x < 1000, x * x, 0), LARGE),
    "product of matrices, real numbers before": (lambda e, x: e * (x.astype(float) @ x), LARGE),
    "product of matrices that fits": (lambda e, x: e * (x @ x), SMALL),
    "a cast that fits": (lambda e, x: e * (x.astype(jnp.uint8) + 1), SMALL),
    "a cast that is left out": (lambda e, x: e * jnp.where(x < 256, x.astype(jnp.uint8), 0), LARGE),
    "not read": (lambda e, x: (x * x, e)[1], LARGE),
    "bytes to real numbers": (lambda e, x: e * (x / 255 - 5), BYTES),
    "an index from the end": (lambda e, x: e[-x % 4], SMALL),
    "a hash": (lambda e, x: e * ((x.astype(jnp.uint32) * jnp.uint32(2654435761)) >> 30), LARGE),
    "what is drawn": (lambda e, x: e * (x + jax.random.randint(KEY, (4,), 0, 9)), LARGE),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_numbers_that_wrap_are_found(way):
    fn, numbers = WAYS[way]
    few = np.minimum(numbers, 3) if numbers.dtype != np.uint8 else np.array([5, 6, 7, 8], np.uint8)
    assert not found(lambda e, x: [fn(e, x)], few)
    assert found(lambda e, x: [fn(e, x)], numbers)


@pytest.mark.parametrize("idiom", IDIOMS)
def test_numbers_that_fit_or_are_left_out_may_stay(idiom):
    fn, numbers = IDIOMS[idiom]
    assert not found(lambda e, x: [fn(e, x)], numbers)


def squared(income, y):
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", len(income)):
        ppl.sample("y", dist.Normal(slope * (income**2 / 1e9), 1.0), obs=y)


@pytest.mark.parametrize("kind", [np.int64, np.int32])
def test_calls_name_argument_and_value(kind):
    income, y = np.array([60_000, 20_000], kind), np.zeros(2, np.float32)
    calls = (
        lambda: inference.fit(squared, args=(income, y)),
        lambda: inference.infer(squared, args=(income, y)),
        lambda: inference.smc(squared, KEY, income, y, num_particles=4),
    )
    for call in calls:
        with pytest.raises(
            ValueError, match=r"made of 'income' .* 3.6e\+09 at \[0\] \(1 such\).*int32: it wraps"
        ):
            call()
