"""A Gauss-Newton matrix of many outputs, seen in a few directions.

Terms: outputs h(x) in R^m with Jacobian U = dh/dx, m large; N(loc, S) the prior of x, S diagonal; W = U S^1/2. Output: rows F,
r of them, with F'F = S^-1/2 Q Q' W'W Q Q' S^-1/2, Q an orthonormal basis of r directions that hold most of W'W.

Invariants: F'F = U'U where the rank of U is at most r. The eigenvalues of S^1/2 F'F S^1/2 are at most those of W'W, one by one:
what is left out leaves a law too wide in volume, never one too narrow. No array of m rows and d columns is made.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def truncated_factor(outputs: Callable[[Array], Array], x: Array, scale: Array, rank: int) -> Array:
    """F of every row, [*batch, rank, d], by a random range finder with one power iteration.

    Args:
        outputs: `x [*batch, d] -> [*batch, m]`, row by row.
        x: where the Jacobian is taken.
        scale: square root of the diagonal of S, [*batch, d].
        rank: r, at most d.

    The random start is the same at all calls: the result is a function of its arguments.
    Reference: Halko, Martinsson and Tropp 2011, arXiv:0909.4061, algorithms 4.4 and 5.1.
    """
    out, pull = jax.vjp(outputs, x)
    push = jax.linearize(outputs, x)[1]
    start = jax.random.normal(jax.random.key(0), (out.shape[-1], rank), x.dtype)

    def pulled(columns: Array) -> Array:
        """W' columns: [*batch, m, k] to [*batch, d, k]."""
        return scale[..., None] * jax.vmap(lambda v: pull(v)[0], -1, -1)(columns)

    def pushed(columns: Array) -> Array:
        """W columns: [*batch, d, k] to [*batch, m, k]."""
        return jax.vmap(push, -1, -1)(scale[..., None] * columns)

    basis = jnp.linalg.qr(pulled(jnp.broadcast_to(start, (*out.shape, rank))))[0]
    basis = jnp.linalg.qr(pulled(pushed(basis)))[0]
    root = jnp.linalg.qr(pushed(basis), mode="r")
    return (root @ basis.mT) / scale[..., None, :]
