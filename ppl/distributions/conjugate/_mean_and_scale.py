"""Supports of means packed with scales, [mean, scale], [means, scales], [mean | Cholesky factor], and their free forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from numpyro.distributions import constraints
from numpyro.distributions.transforms import LowerCholeskyTransform, Transform, biject_to

from ..._compat import SingletonConstraint

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

    def __call__(self, x: Array) -> PyTree:
        return constraints.lower_cholesky(x[..., 1:])

    def feasible_like(self, prototype: Array) -> Array:
        d = prototype.shape[-2]
        packed = jnp.eye(d, d + 1, 1, dtype=prototype.dtype)
        return jnp.broadcast_to(packed, jnp.shape(prototype))


class MeansAndScales(constraints.Constraint):
    """Vectors [means, scales] of lengths d and G, scales > 0.

    Args:
        num_means: d.
        num_scales: G.
    """

    event_dim = 1

    def __init__(self, num_means: int, num_scales: int) -> None:
        self.num_means, self.num_scales = num_means, num_scales

    def __call__(self, x: Array) -> PyTree:
        if x.shape[-1] != self.num_means + self.num_scales:
            return jnp.zeros(x.shape[:-1], bool)
        return (x[..., self.num_means :] > 0).all(-1)

    def feasible_like(self, prototype: Array) -> Array:
        ones = jnp.arange(self.num_means + self.num_scales) >= self.num_means
        return jnp.broadcast_to(ones.astype(prototype.dtype), jnp.shape(prototype))

    def tree_flatten(self) -> PyTree:
        return (), ((), {"num_means": self.num_means, "num_scales": self.num_scales})

    def eq(self, other: object, static: bool = False) -> bool:
        sizes = self.num_means, self.num_scales
        return isinstance(other, MeansAndScales) and sizes == (other.num_means, other.num_scales)

    def __hash__(self) -> int:
        return hash((MeansAndScales, self.num_means, self.num_scales))


mean_and_scale = _MeanAndScale()
mean_and_cholesky = _MeanAndCholesky()


class _Free(Transform):
    """Abstract: a transform without parameters."""

    def tree_flatten(self) -> PyTree:
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

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: PyTree = None) -> Array:
        return x[..., 1]


class _PackScales(Transform):
    """(means, log scales) -> [means, scales]."""

    domain = constraints.real_vector  # pyright: ignore[reportAssignmentType]

    def __init__(self, packed: MeansAndScales) -> None:
        self.packed = packed

    @property
    def codomain(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.packed

    def __call__(self, x: Array) -> Array:
        d = self.packed.num_means
        return jnp.concatenate([x[..., :d], jnp.exp(x[..., d:])], -1)

    def _inverse(self, y: Array) -> Array:
        d = self.packed.num_means
        return jnp.concatenate([y[..., :d], jnp.log(y[..., d:])], -1)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: PyTree = None) -> Array:
        return x[..., self.packed.num_means :].sum(-1)

    def tree_flatten(self) -> PyTree:
        return (), ((), {"packed": self.packed})

    def eq(self, other: object, static: bool = False) -> bool:
        return isinstance(other, _PackScales) and self.packed == other.packed


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

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: PyTree = None) -> PyTree:
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
biject_to.register(MeansAndScales, _PackScales)
biject_to.register(_MeanAndCholesky, lambda constraint: _PackCholesky())
