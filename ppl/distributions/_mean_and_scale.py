"""Supports of a mean packed with its scale, [mean, scale] and [mean | Cholesky factor], and their unconstrained forms."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import constraints
from numpyro.distributions.transforms import LowerCholeskyTransform, Transform, biject_to

from .._compat import SingletonConstraint

Array = jax.Array


class _MeanAndScale(SingletonConstraint):
    """Pairs [mean, scale], shape (2,), scale > 0."""

    event_dim = 1

    def __call__(self, x: Array) -> Array:
        return (x[..., 1] > 0) & (x.shape[-1] == 2)

    def feasible_like(self, prototype: Array) -> Array:
        return jnp.broadcast_to(jnp.array([0.0, 1.0], prototype.dtype), jnp.shape(prototype))


class _MeanAndCholesky(SingletonConstraint):
    """Matrices [mean | L], shape (d, d + 1), L lower triangular with a positive diagonal."""

    event_dim = 2

    def __call__(self, x: Array) -> Any:
        return constraints.lower_cholesky(x[..., 1:])

    def feasible_like(self, prototype: Array) -> Array:
        d = prototype.shape[-2]
        packed = jnp.eye(d, d + 1, 1, dtype=prototype.dtype)
        return jnp.broadcast_to(packed, jnp.shape(prototype))


mean_and_scale = _MeanAndScale()
mean_and_cholesky = _MeanAndCholesky()


class _Free(Transform):
    """Abstract: a transform without parameters."""

    def tree_flatten(self) -> Any:
        return (), ((), {})

    def eq(self, other: object, static: bool = False) -> bool:
        return type(other) is type(self)


class _PackScale(_Free):
    """(mean, log scale) -> [mean, scale]."""

    domain = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    codomain = mean_and_scale  # pyright: ignore[reportAssignmentType]

    def __call__(self, x: Array) -> Array:
        return jnp.stack([x[..., 0], jnp.exp(x[..., 1])], -1)

    def _inverse(self, y: Array) -> Array:
        return jnp.stack([y[..., 0], jnp.log(y[..., 1])], -1)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        return x[..., 1]


class _PackCholesky(_Free):
    """(mean, free entries of L) of length d + d (d + 1) / 2 -> [mean | L]."""

    domain = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    codomain = mean_and_cholesky  # pyright: ignore[reportAssignmentType]
    tril = LowerCholeskyTransform()

    def __call__(self, x: Array) -> Array:
        d = _dimension(x.shape[-1])
        return jnp.concatenate([x[..., :d, None], self.tril(x[..., d:])], -1)

    def _inverse(self, y: Array) -> Array:
        return jnp.concatenate([y[..., 0], self.tril.inv(y[..., 1:])], -1)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Any:
        return self.tril.log_abs_det_jacobian(x[..., _dimension(x.shape[-1]) :], y[..., 1:])

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        d = _dimension(shape[-1])
        return (*shape[:-1], d, d + 1)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        d = shape[-2]
        return (*shape[:-2], d + d * (d + 1) // 2)


def _dimension(length: int) -> int:
    """The d of d + d (d + 1) / 2 = length."""
    return round((-3 + (9 + 8 * length) ** 0.5) / 2)


biject_to.register(_MeanAndScale, lambda constraint: _PackScale())
biject_to.register(_MeanAndCholesky, lambda constraint: _PackCholesky())
