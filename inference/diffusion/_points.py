"""Points of a diffusion: arrays, or trees of arrays (the sites of a model), and the few operations that steps need of them.

A shape is a tuple of integers or a tree of such; a law a NumPyro distribution or a tree of such, one for each array.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jaxtyping import ArrayLike, PyTree

from ...ppl._types import Key

Array = jax.Array


def is_shape(x: dict[str, tuple[int, ...]] | tuple[int, ...]) -> bool:
    """Whether x is the shape of one array."""
    return isinstance(x, tuple) and all(isinstance(n, int) for n in x)


def size_of(shape: PyTree) -> int:
    """Number of coordinates of a point."""
    return sum(math.prod(s) for s in jax.tree.leaves(shape, is_leaf=is_shape))


def normal_law(
    shape: dict[str, tuple[int, ...]] | tuple[int, ...], scale: ArrayLike
) -> dict[str, dist.Distribution] | dist.Distribution:
    """Normal(0, scale) in each coordinate."""
    one = lambda s: dist.Normal(0.0, scale).expand(s).to_event(len(s))
    return jax.tree.map(one, shape, is_leaf=is_shape)


def normals_at(mean: Array, scale: Array) -> dist.Distribution:
    """Normal(mean, scale) in each coordinate."""
    return jax.tree.map(lambda m: dist.Normal(m, scale).to_event(jnp.ndim(m)), mean)


def shape_of_law(law: dist.Distribution) -> tuple[int, ...]:
    """The shape of its points."""
    return jax.tree.map(lambda d: d.batch_shape + d.event_shape, law, is_leaf=is_law)


def is_unbatched(law: dist.Distribution) -> bool:
    """Whether each distribution draws one event."""
    return all(d.batch_shape == () for d in jax.tree.leaves(law, is_leaf=is_law))


def draw(law: dict[str, dist.Distribution] | dist.Distribution, key: Array) -> PyTree:
    """A point."""
    laws, tree = jax.tree.flatten(law, is_leaf=is_law)
    return tree.unflatten(
        [jnp.asarray(d.sample(k)) for d, k in zip(laws, _keys(key, len(laws)), strict=True)]
    )


def log_prob(law: dist.Distribution, x: Array) -> Array:
    """Log density of a point, in nats."""
    laws, tree = jax.tree.flatten(law, is_leaf=is_law)
    terms = (d.log_prob(v) for d, v in zip(laws, tree.flatten_up_to(x), strict=True))
    return functools.reduce(jnp.add, terms)


def noise_like(key: Array, x: Array) -> PyTree:
    """Independent Normal(0, 1) of the shape of x."""
    leaves, tree = jax.tree.flatten(x)
    keys = _keys(key, len(leaves))
    return tree.unflatten(
        [jax.random.normal(k, jnp.shape(v)) for k, v in zip(keys, leaves, strict=True)]
    )


def total(fn: Callable[..., Array], *trees: PyTree) -> Array:
    """The sum of fn(leaves) over all coordinates."""
    parts = jax.tree.map(lambda *leaves: jnp.sum(fn(*leaves)), *trees)
    return functools.reduce(jnp.add, jax.tree.leaves(parts))


def checked(what: str, value: Array | dict[str, Array], x: ArrayLike) -> PyTree:
    """A vector at a point, which must have the structure and shapes of x."""
    have, want = (jax.tree.map(jnp.shape, tree) for tree in (value, x))
    if have != want:
        raise ValueError(
            f"Diffusion: {what} has shape {have} at a point of shape {want}. Return a vector for one point (a score is the "
            "gradient of log q_t), with the point's own structure; nothing is broadcast."
        )
    return value


def divergences(fn: Callable[..., PyTree], x: PyTree) -> Array:
    """The divergences of several vector fields, x -> leaves [fields, ...], at a point, by a derivative for each coordinate."""
    flat, unravel = ravel_pytree(x)
    stacked = lambda v: jax.vmap(lambda tree: ravel_pytree(tree)[0])(fn(unravel(v)))
    return jnp.trace(jax.jacfwd(stacked)(flat), axis1=1, axis2=2)


def probed_divergences(key: Array, fn: Callable[[PyTree], PyTree], x: Array) -> Array:
    """Estimates of the same from one derivative, along independent signs (Hutchinson)."""
    flat, unravel = ravel_pytree(x)
    stacked = lambda v: jax.vmap(lambda tree: ravel_pytree(tree)[0])(fn(unravel(v)))
    signs = jax.random.rademacher(key, flat.shape, flat.dtype)
    return (jax.jvp(stacked, (flat,), (signs,))[1] * signs).sum(-1)


def _keys(key: Array, num: int) -> Key | list[Key]:
    return [key] if num == 1 else jax.random.split(key, num)


def is_law(x: dict[str, dist.Distribution] | dist.Distribution) -> bool:
    """Whether x is one distribution."""
    return isinstance(x, dist.Distribution)
