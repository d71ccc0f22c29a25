"""Laws of correlation matrices, and the move from free numbers to their Cholesky factors, without a square taken from 1.

A row of a factor L has length 1. From free numbers x, a row of which is x_1, ..., x_{i-1},

    L_ij = tanh(x_j) prod_{k<j} sech(x_k),    L_ii = prod_k sech(x_k),    L_ij = r_{j+1} sinh(x_j), r_j^2 = L_ij^2 + ... + L_ii^2.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, PyTree

from ..._compat import matrix_to_tril_vec, validate_sample, vec_to_tril_matrix
from ..._precision import full_precision
from ._special import continuous, log_gamma_ratio

Array = jax.Array
_MAX_LOST = 0.1  # nats that rounding may make of the log-determinant of a matrix
_SCALE = (
    2.0**55
)  # squares of numbers down to 1e-35 do not underflow in its units, and those of 1 do not overflow


@continuous
def log_sech(x: Array) -> Array:
    """The value -log cosh(x)."""
    is_small = jnp.abs(x) < 1
    near = -0.5 * jnp.log1p(jnp.sinh(jnp.where(is_small, x, 0)) ** 2)
    far = jnp.where(is_small, 1, x)
    return jnp.where(is_small, near, math.log(2) - far - jax.nn.softplus(-2 * far))


def _left(logs: Array) -> Array:
    """The sums of those before, along the last axis."""
    sums = jnp.cumsum(logs, -1)[..., :-1]
    return jnp.pad(sums, [(0, 0)] * (logs.ndim - 1) + [(1, 0)])


def factor(self: PyTree, x: Array) -> Array:
    """The Cholesky factor of free numbers."""
    rows = vec_to_tril_matrix(jnp.asarray(x, jnp.result_type(float, x)), diagonal=-1)
    unit = jnp.eye(rows.shape[-1], dtype=rows.dtype)
    return (jnp.tanh(rows) + unit) * jnp.tril(jnp.exp(_left(log_sech(rows))))


def free_numbers(self: PyTree, y: Array) -> Array:
    """The free numbers of a Cholesky factor."""
    rows = _SCALE * jnp.tril(y)
    sums = jnp.flip(jnp.cumsum(jnp.flip(rows**2, -1), -1), -1)[..., 1:]
    rest = jnp.pad(sums, [(0, 0)] * (y.ndim - 1) + [(0, 1)], constant_values=1)
    below = matrix_to_tril_vec(rows, diagonal=-1)
    return jnp.arcsinh(below / jnp.sqrt(matrix_to_tril_vec(rest, diagonal=-1)))


def log_det(self: PyTree, x: Array, y: Array, intermediates: PyTree = None) -> Array:
    """The log-determinant of the entries below the diagonal as functions of the free numbers."""
    logs = log_sech(vec_to_tril_matrix(jnp.asarray(x, jnp.result_type(float, x)), diagonal=-1))
    return (2 * logs + jnp.tril(_left(logs), -1)).sum((-2, -1))


@continuous
def log_diagonal(root: Array) -> Array:
    """The logarithms of a factor's diagonal but for its first 1; by what is beside it where that is little."""
    beside = (jnp.tril(root, -1) ** 2).sum(-1)[..., 1:]
    diagonal = jnp.diagonal(root, axis1=-2, axis2=-1)[..., 1:]
    is_near = beside < 0.5
    near = 0.5 * jnp.log1p(-jnp.where(is_near, beside, 0))
    return jnp.where(is_near, near, jnp.log(jnp.where(is_near, 1, diagonal)))


def log_normaliser(concentration: Array, dim: int) -> Array:
    """The logarithm of the integral of det(M)^(concentration - 1) over correlation matrices M."""
    j = jnp.arange(1, dim, dtype=concentration.dtype)
    ratios = log_gamma_ratio(concentration[..., None] + 0.5 * (dim - 1 - j), 0.5 * j)
    return 0.25 * dim * (dim - 1) * math.log(math.pi) - ratios.sum(-1)


@validate_sample
def lkj_cholesky(self: PyTree, value: ArrayLike) -> Array:
    """Log-density of a Cholesky factor: with respect to its entries below the diagonal."""
    root = jnp.asarray(value)
    concentration = jnp.asarray(self.concentration, jnp.result_type(float, root))
    order = 2 * (concentration[..., None] - 1) + jnp.arange(self.dimension - 2, -1, -1)
    return (order * log_diagonal(root)).sum(-1) - log_normaliser(concentration, self.dimension)


@validate_sample
def lkj(self: PyTree, value: ArrayLike, intermediates: PyTree = None) -> Array:
    """Log-density of a correlation matrix; NaN where rounding of its entries makes a tenth of a nat of it."""
    root = jnp.linalg.cholesky(value) if intermediates is None else intermediates[-1][0]
    concentration = jnp.asarray(self.concentration, jnp.result_type(float, root))
    power = concentration - 1
    found = 2 * power * log_diagonal(root).sum(-1) - log_normaliser(concentration, self.dimension)
    if intermediates is not None:
        return found
    # Changes of M's entries by shares e of themselves move log det(M) by tr(M^-1 (e M)), where the diagonal's 1 is exact:
    # as sum_j M_ij (M^-1)_ij = 1, by shares of (M^-1)_ii - 1 for each row.
    with full_precision():
        fixed = jax.lax.stop_gradient(root)
        unit = jnp.broadcast_to(jnp.eye(root.shape[-1], dtype=root.dtype), root.shape)
        inverse = jax.scipy.linalg.solve_triangular(fixed, unit, lower=True)
    beyond = (inverse**2).sum((-2, -1)) - self.dimension
    is_known = jnp.abs(power) * beyond * jnp.finfo(root.dtype).eps <= _MAX_LOST
    return jnp.where(is_known | (power == 0), found, jnp.nan)


def _log_shares(self: PyTree, key: Array, size: tuple[int, ...]) -> Array:
    """Logarithms of draws of a law's beta variables and of what they leave of 1, along the last axis."""
    both = jnp.broadcast_arrays(self._beta.concentration1, self._beta.concentration0)
    sizes = jnp.stack(both, -1)
    logs = jax.random.loggamma(key, sizes, (*size, *sizes.shape))
    return jax.nn.log_softmax(logs, -1)


def onion(self: PyTree, key: Array, size: tuple[int, ...]) -> Array:
    """Draws of Cholesky factors by the onion method, with diagonals that do not round to 0."""
    key_beta, key_normal = jax.random.split(key)
    lengths = jnp.exp(0.5 * _log_shares(self, key_beta, size))
    num = self.dimension * (self.dimension - 1) // 2
    normal = jax.random.normal(key_normal, (*size, *self.batch_shape, num), lengths.dtype)
    rows = vec_to_tril_matrix(normal, diagonal=0)
    rows = rows / jnp.linalg.norm(rows, axis=-1, keepdims=True) * lengths[..., :1]
    first = jnp.zeros((*rows.shape[:-2], 1, self.dimension), rows.dtype).at[..., 0].set(1)
    last = jnp.zeros((*rows.shape[:-1], 1), rows.dtype)
    placed = jnp.eye(self.dimension, dtype=rows.dtype)[1:] * lengths[..., 1:]
    return jnp.concatenate([first, jnp.concatenate([rows, last], -1) + placed], -2)


def cvine(self: PyTree, key: Array, size: tuple[int, ...]) -> Array:
    """Draws of Cholesky factors by the vine method: partial correlations tanh(x) of beta variables (1 + tanh(x)) / 2."""
    logs = _log_shares(self, key, size)
    return factor(self, 0.5 * (logs[..., 0] - logs[..., 1]))
