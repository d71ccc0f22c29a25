"""Arrays with the axes of rows in front and all other axes in one."""

import math

import jax.numpy as jnp
from jax import Array


def flat(x: Array, rows: tuple[int, ...]) -> Array:
    """From a value's shape to (*rows, numbers)."""
    x = jnp.moveaxis(x, rows, range(len(rows)))
    lead = x.shape[: len(rows)]
    return x.reshape(*lead, math.prod(x.shape[len(lead) :]))


def unflat(x: Array, rows: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """From (*lead, *rows, numbers) to (*lead, *shape)."""
    lead = x.ndim - len(rows) - 1
    others = [n for a, n in enumerate(shape) if a not in rows]
    x = x.reshape(*x.shape[:-1], *others)
    return jnp.moveaxis(x, range(lead, lead + len(rows)), [lead + a for a in rows])
