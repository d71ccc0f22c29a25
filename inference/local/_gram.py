"""The m x m matrix through which a vector of d numbers is seen by m linear observations, U diag(v) U', for d much larger than m.

Invariant: no second array of m rows and d columns is made, in value or derivative, where U is a constant. U is read a block of
columns at a time, and what is made of a block stays in the cache of a processor: several times faster than whole matrix products,
for which XLA's CPU compiler writes out U diag(v), and its transpose entry by entry.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ...ppl._compat import SymbolicZero
from ...ppl._precision import full_precision

Array = jax.Array
BLOCK = 512  # columns
WHOLE = 4096  # columns, of which no blocks are made
FEW = 12  # rows, for which products with vectors are faster than one of matrices


@jax.custom_jvp
def gram(factor: Array, diagonal: Array) -> Array:
    """U diag(v) U', [*batch, m, m], for U [*batch, m, d] and v [*batch, d]."""
    return _by_blocks(factor, diagonal)


def _jvp(primals: PyTree, tangents: PyTree) -> Any:
    found = gram(*primals)
    return found, _change(found, primals, tangents)


gram.defjvp(_jvp, symbolic_zeros=True)


@jax.custom_jvp
def known_gram(factor: Array, diagonal: Array, known: Array, is_known: Array) -> Array:
    """`gram(factor, diagonal)`, whose value is `known` if `is_known`; its derivatives are those of `gram` in either case."""
    return jax.lax.cond(is_known, lambda: known, lambda: _by_blocks(factor, diagonal))


def _known_jvp(primals: PyTree, tangents: PyTree) -> Any:
    found = known_gram(*primals)
    return found, _change(found, primals[:2], tangents[:2])


known_gram.defjvp(_known_jvp, symbolic_zeros=True)


@full_precision
def _change(found: Array, primals: PyTree, tangents: PyTree) -> Array:
    factor, diagonal = primals
    of_factor, of_diagonal = tangents
    change = jnp.zeros_like(found)
    if not isinstance(of_diagonal, SymbolicZero):
        change = change + _by_blocks(factor, of_diagonal)
    if not isinstance(of_factor, SymbolicZero):
        half = of_factor @ (factor * diagonal[..., None, :]).mT
        change = change + half + half.mT
    return change


def gram_transposed(factor: Array, matrix: Array) -> Array:
    """The diagonal of U'XU, [*batch, d], for X [*batch, m, m]: the transpose of `gram` as a linear function of v."""
    shape = jax.ShapeDtypeStruct((*factor.shape[:-2], factor.shape[-1]), factor.dtype)
    return jax.linear_transpose(lambda v: _by_blocks(factor, v), shape)(matrix)[0]


def _by_blocks(factor: Array, diagonal: Array) -> Array:
    count = 0 if factor.shape[-1] <= WHOLE else factor.shape[-1] // BLOCK
    whole = count * BLOCK
    blocks = diagonal[..., :whole].reshape(*diagonal.shape[:-1], count, BLOCK)

    @jax.checkpoint  # a derivative reads U again, in place of a copy of it by blocks
    def add(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        at, v = block
        u = jax.lax.dynamic_slice_in_dim(factor, at * BLOCK, BLOCK, -1)
        return total + _product(u, v), None

    # Else a derivative sums over m in the loop that lays out all d columns, for every column anew.
    rest = jax.lax.optimization_barrier(diagonal[..., whole:])
    total = _product(factor[..., whole:], rest)
    if count == 0:
        return total
    return jax.lax.scan(add, total, (jnp.arange(count), jnp.moveaxis(blocks, -2, 0)))[0]


@full_precision
def _product(u: Array, v: Array) -> Array:
    if u.shape[-2] <= FEW:
        columns = [(u @ (v * u[..., j, :])[..., None])[..., 0] for j in range(u.shape[-2])]
        return jnp.stack(columns, -1)
    # Not by `@ u.mT`, whose derivative would transpose u.
    return jnp.einsum("...md,...nd->...mn", u * v[..., None, :], u)
