"""Where a path goes: other parameters, other data, other values of a site."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ..jaxprs import REALS
from ..strategies import StrategySite
from ._quick_draws import quick_integers, quick_normal

BEFORE = 0.999  # of a path to a draw


def flat(leaves: list[Array]) -> jax.Array:
    """Arrays in one vector: an operation on each of them would take as long to compile as one on all."""
    return jnp.concatenate([jnp.ravel(x) for x in leaves]) if leaves else jnp.zeros(0)


def parts(vector: jax.Array, like: list[Array]) -> list[jax.Array]:
    """The arrays, in the shapes and types of these, that make up a vector."""
    ends = np.cumsum([x.size for x in like])
    cut = jnp.split(vector, ends[:-1]) if like else []
    return [part.reshape(x.shape).astype(x.dtype) for part, x in zip(cut, like, strict=True)]


def moved(x: jax.Array, key: jax.Array, relative: jax.Array, absolute: jax.Array) -> jax.Array:
    """Parameters with noise: relative noise keeps the sign of those that must be positive (mostly), and is absolute at zero."""
    noise = quick_normal(key, x.shape)
    return x + ((relative * jnp.where(x == 0, 1.0, x) + absolute) * noise).astype(x.dtype)


def nudged(leaves: list[Array], key: jax.Array) -> list[jax.Array]:
    """Arrays moved by a tenth of their numbers."""
    return parts(moved(flat(leaves), key, jnp.asarray(0.1), jnp.asarray(0.0)), leaves)


def other_data(data: list[PyTree], key: jax.Array, leaves: jax.Array) -> list[PyTree]:
    """Arrays of the same kind with other contents, where they leave those given."""
    k1, k2, k3 = jax.random.split(key, 3)
    is_real = [jnp.issubdtype(x.dtype, jnp.floating) for x in data]
    normals = iter(
        _drawn(quick_normal, k1, [x for x, real in zip(data, is_real, strict=True) if real])
    )
    draw_digits = lambda key, shape: quick_integers(key, shape, 6)
    digits = iter(
        _drawn(draw_digits, k2, [x for x, real in zip(data, is_real, strict=True) if not real])
    )
    kinds = quick_integers(k3, (len(data), 2), 3)
    out = []
    for x, real, (kind, spread) in zip(data, is_real, kinds, strict=True):
        if not real:
            digit = next(digits)
            other = digit % 2 == 0 if x.dtype == bool else digit.astype(x.dtype)
        else:
            noise = next(normals)
            near = x * (1 + noise) + jnp.where(kind == 0, noise, 0.0)
            fresh = jnp.where(jnp.isnan(x), jnp.nan, noise * jnp.asarray([0.3, 1.0, 3.0])[spread])
            other = jnp.where(kind == 2, fresh, near).astype(x.dtype)
        out.append(jnp.where(leaves, other, x))
    return out


def _drawn(draw: Callable[..., jax.Array], key: jax.Array, like: list[PyTree]) -> list[jax.Array]:
    """Random arrays of these shapes, by one call: each call of a sampler takes a tenth of a second to compile."""
    sizes = [x.size for x in like]
    cut = jnp.split(draw(key, (sum(sizes),)), np.cumsum(sizes)[:-1]) if like else []
    return [part.reshape(x.shape) for part, x in zip(cut, like, strict=True)]


def any_value(site: StrategySite, x: jax.Array, key: jax.Array) -> jax.Array:
    """A value of a discrete site with few values, all with the same probability; else `x`."""
    key = jax.random.fold_in(key, site.index)
    if site.is_one_hot:
        hot = quick_integers(key, x.shape[:-1], x.shape[-1])
        return jax.nn.one_hot(hot, x.shape[-1], dtype=x.dtype)
    if site.bounds is None or not site.is_discrete:
        return x
    low, high = site.bounds
    return (low + quick_integers(key, x.shape, high + 1 - low)).astype(x.dtype)


def reaching(
    site: StrategySite, start: jax.Array, end: jax.Array, reach: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A path longer by `reach` times its length on both sides, or nearly up to the ends of an interval.

    Of vectors, and where the ends are not known, it stops before the draw that it goes to: that may lie on the edge of a
    simplex, where numbers beside the end of a path are not dense, and a logarithm goes there in leaps.
    """
    if site.is_unbounded:
        return start - reach * (end - start), end + reach * (end - start)
    if start.ndim > len(site.sizes) or site.range == REALS:  # a set of vectors, or an unknown one
        return start, start + BEFORE * (end - start)
    low, high = jnp.minimum(start, end), jnp.maximum(start, end)
    length = reach * (high - low)
    low = (
        low - length
        if math.isinf(site.range.low)
        else site.range.low + (low - site.range.low) / (1 + reach)
    )
    high = (
        high + length
        if math.isinf(site.range.high)
        else site.range.high - (site.range.high - high) / (1 + reach)
    )
    is_far = reach > 0
    return jnp.where(is_far, low, start), jnp.where(is_far, high, end)


def resolved(start: jax.Array, end: jax.Array, longest: float) -> jax.Array:
    """The end of a path, nearer where the path is so long that its smallest steps are leaps (the draws of a heavy tail)."""
    if not jnp.issubdtype(start.dtype, jnp.floating):
        return end
    step = jnp.where(jnp.isfinite(end), end - start, 0.0)
    length, size = (jnp.abs(x).max(initial=0.0) for x in (step, start))
    most = longest * (1 + size)
    return jnp.where(length > most, start + most / length * step, end).astype(end.dtype)
