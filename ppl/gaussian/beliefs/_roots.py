"""Square roots of covariances: lower triangular ones with a density, and any root of what may be singular."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..._precision import full_precision

Array = jax.Array


@full_precision
def times(matrix: Array, vector: Array) -> Array:
    """A matrix times a vector, shapes (*batch, m, k) and (*batch, k)."""
    return (matrix @ vector[..., None])[..., 0]


def lower(a: Array) -> Array:
    """The lower triangular L with L L' = A A' and a positive diagonal, for A of full row rank, shape (*batch, m, k), k >= m."""
    if a.shape[-2] == 1:
        return jnp.sqrt((a**2).sum(-1, keepdims=True))
    found = orthogonal_triangular(a.mT)[1].mT
    return found * jnp.where(jnp.diagonal(found, axis1=-2, axis2=-1) < 0, -1, 1)[..., None, :]


@jax.custom_jvp
def orthogonal_triangular(a: Array) -> tuple[Array, Array]:
    """Q, R with A = Q R, for A of full column rank: JAX's own derivative of it multiplies at the default precision."""
    q, r = jnp.linalg.qr(a)
    return q, r


@orthogonal_triangular.defjvp
@full_precision
def _(primals: PyTree, tangents: PyTree) -> PyTree:
    """With M = Q' A' R^-1, W its strict lower part less that part's transpose: Q' = Q (W - M) + A' R^-1, R' = (M - W) R."""
    (a,), (da,) = primals, tangents
    q, r = orthogonal_triangular(a)
    moved = jax.lax.linalg.triangular_solve(r, da)  # A' R^-1
    along = q.mT @ moved
    below = jnp.tril(along, -1)
    turn = below - below.mT
    return (q, r), (q @ (turn - along) + moved, (along - turn) @ r)


def solved(triangle: Array, x: Array, *, is_lower: bool, transposed: bool = False) -> Array:
    """T^-1 x or T'^-1 x, for T of shape (*batch, m, m) and x of shape (*batch, m, k)."""
    if triangle.shape[-1] == 1:
        return x / triangle
    return jax.lax.linalg.triangular_solve(
        triangle, x, left_side=True, lower=is_lower, transpose_a=transposed
    )


# Roots that move freely. The value is lower triangular, its derivative is not: it is that of *a* root of A A'. The triangular one
# has no derivative where A A' is singular, as it is at known starting values; what is computed of such a root has to be a
# function of A A', by `free_solved` and `free_log_det` where it is inverted.


def compressed(a: Array, top: int = 0) -> Array:
    """A root of A A' with no more columns than rows, shape (*batch, m, min(m, k)); A may be singular.

    `top`: the first rows, of full rank, stay 0 after as many columns, so that the blocks of the root may be used apart.
    """
    return _compressed(a, top)[0]


def turned_root(a: Array, top: int = 0) -> tuple[Array, Array]:
    """A root L of A A' as in `compressed`, and the orthonormal columns Q with A = L Q'."""
    return _compressed(a, top)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _compressed(a: Array, top: int) -> tuple[Array, Array]:
    """L and Q with A = L Q', Q' Q = 1."""
    if not a.shape[-2]:
        return a[..., :0], a.mT
    if a.shape[-2] == 1:
        length = jnp.sqrt((a**2).sum(-1, keepdims=True))
        unit = jnp.zeros_like(a).at[..., 0].set(1)
        return length, jnp.where(length > 0, a / jnp.where(length > 0, length, 1), unit).mT
    q, r = jnp.linalg.qr(a.mT)
    return r.mT, q


@_compressed.defjvp
@full_precision
def _(top: int, primals: PyTree, tangents: PyTree) -> PyTree:
    """The root that moves without turning, L' = A' Q, or turns just so that its upper right block stays 0.

    With an antisymmetric T that has L_11 T_12 = -(A' Q)_12 and zeros elsewhere: L' = A' Q + L T. For derivatives of this one,
    Q' = (1 - Q Q') A'^T L^-T + Q T, which is not finite where L is singular.
    """
    (a,), (da,) = primals, tangents
    root, q = _compressed(a, top)
    moved, rest = da @ q, da.mT - q @ (q.mT @ da.mT)
    if root.shape[-1] == root.shape[-2]:
        turned = jnp.linalg.solve(root, rest.mT).mT
    else:  # no more columns than it had: nothing is left
        turned = jnp.zeros_like(q)
    if top:
        corner = -free_solved(root[..., :top, :top], moved[..., :top, top:])
        left = jnp.concatenate([jnp.zeros_like(root[..., :top, :top]), corner], -1)
        right = jnp.pad(-corner.mT, [(0, 0)] * (corner.ndim - 1) + [(0, corner.shape[-1])])
        turn = jnp.concatenate([left, right], -2)
        moved, turned = moved + root @ turn, turned + q @ turn
    return (root, q), (moved, turned)


@full_precision
def free_solved(root: Array, x: Array) -> Array:
    """root^-1 x for a square root that moves freely; x of shape (*batch, m, k)."""
    if root.shape[-1] == 1:
        return x / root
    return jax.lax.custom_linear_solve(
        lambda y: root @ y,
        x,
        lambda _, b: solved(jax.lax.stop_gradient(root), b, is_lower=True),
        lambda _, b: solved(jax.lax.stop_gradient(root), b, is_lower=True, transposed=True),
    )


@jax.custom_jvp
def free_log_det(root: Array) -> Array:
    """Log |det root| of a root that moves freely, shape batch."""
    return jnp.log(jnp.abs(jnp.diagonal(root, axis1=-2, axis2=-1))).sum(-1)


@free_log_det.defjvp
def _(primals: PyTree, tangents: PyTree) -> PyTree:
    (root,), (moved,) = primals, tangents
    slope = jnp.trace(free_solved(root, moved), axis1=-2, axis2=-1)
    return free_log_det(root), slope
