"""A Gauss-Newton matrix of many outputs, seen in a few directions of the outputs.

Terms: outputs h(x) in R^m with Jacobian U = dh/dx, m large; N(loc, S) the prior of x, S diagonal. Output: F = Q'U, r rows, Q
[m, r] an orthonormal basis of directions that hold most of U S U'.

Invariants: F'F = U'QQ'U is at most U'U as a matrix, and equal to it where the rank of U is at most r: what is left out leaves a
law too wide, in no direction one too narrow. No array of m rows and d columns is made.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ...ppl._precision import full_precision

Array = jax.Array


def truncated_factor(
    pull: Callable[[Array], Array], push: Callable[[Array], Array], m: int, scale: Array, rank: int
) -> Array:
    """F of every row, [*batch, rank, d], by a random range finder.

    Args:
        pull: `[*batch, m] -> [*batch, d]`, U' times a vector of every row.
        push: `[*batch, d] -> [*batch, m]`, U times a vector of every row.
        m: number of outputs.
        scale: square root of the diagonal of S, [*batch, d].
        rank: r, at most m.

    The random start is the same at all calls: the result is a function of its arguments.
    Reference: Halko, Martinsson and Tropp 2011, arXiv:0909.4061, algorithm 4.1, for U S U'.
    """
    pulled, pushed = jax.vmap(pull), jax.vmap(push)
    shape = (rank, *(1,) * (scale.ndim - 1), m)
    start = np.random.default_rng(0).standard_normal(shape).astype(scale.dtype)
    vectors = jnp.broadcast_to(start, (rank, *scale.shape[:-1], m))
    return jnp.moveaxis(pulled(_orthonormal(pushed(scale**2 * pulled(vectors)))), 0, -2)


@full_precision
def _orthonormal(vectors: Array) -> Array:
    """Vectors [r, *batch, m] turned into an orthonormal basis of their span, one after the other; zero where they depend.

    By Gram and Schmidt, twice. The QR decomposition of LAPACK runs in threads that wait for each other, and on a machine with
    other work to do these stall for minutes.
    """

    def add(basis: Array, at: Array) -> tuple[Array, None]:
        rest = vectors[at]
        for _ in range(2):
            rest = rest - jnp.einsum(
                "r...m,r...->...m", basis, jnp.einsum("r...m,...m->r...", basis, rest)
            )
        size, whole = (jnp.linalg.norm(v, axis=-1, keepdims=True) for v in (rest, vectors[at]))
        is_new = size > 1e-5 * whole
        return basis.at[at].set(jnp.where(is_new, rest / jnp.where(is_new, size, 1.0), 0.0)), None

    return jax.lax.scan(add, jnp.zeros_like(vectors), jnp.arange(len(vectors)))[0]
