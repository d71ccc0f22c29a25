"""Refuse a derivative that would be silently biased, where it is taken; values pass unchanged."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ....ppl._compat import linear_call


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def underived(message: str, x: Array) -> PyTree:
    """`x`; a derivative with respect to it raises a TypeError with `message`."""
    return x


@underived.defjvp
def _(message: str, *_: PyTree) -> PyTree:
    raise TypeError(message)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def drawn(message: str, value: jax.Array, parameters: list[jax.Array]) -> jax.Array:
    """`value`, a draw whose law has these parameters; a derivative with respect to them raises likewise."""
    return value


@drawn.defjvp
def _(message: str, *_: PyTree) -> PyTree:
    raise TypeError(message)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def unused(message: str, x: jax.Array) -> jax.Array:
    """`x`; its derivative may be formed but not used: reverse mode raises a TypeError with `message`, forward mode gives NaN."""
    return x


@unused.defjvp
def _(message: str, primals: PyTree, tangents: PyTree) -> PyTree:
    def refuse(*_: PyTree) -> PyTree:
        raise TypeError(message)

    return primals[0], linear_call(lambda _, t: t * jnp.nan, refuse, (), tangents[0])


def floats(tree: PyTree) -> list[jax.Array]:
    """The leaves that can have a derivative."""
    leaves = [
        jnp.asarray(x) for x in jax.tree.leaves(tree) if hasattr(x, "dtype") or isinstance(x, float)
    ]
    return [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
