"""Wishart and inverse Wishart laws, of their matrices and of Cholesky factors, with all digits at large concentrations.

With X = V^-1/2 S^1/2 for a scale V (of an inverse one X = S^-1/2 V^1/2), lower triangular, and n the concentration:

    log p(S) = log [|X|^n e^(-|X|^2 / 2) / (2^(n p / 2) Gamma_p(n / 2))] - (p + 1) / 2 log |S|.

Halves of squares of X's diagonal are gamma variables, those below it normal ones.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, PyTree

from ..._compat import validate_sample
from ..._precision import full_precision
from ._special import log_gamma_kernel

Array = jax.Array
_MAX_LOST = 0.1  # nats that rounding may make
_FAR_OFF = (
    1e-4  # of the log-density beside them: far from all mass it is of squares of large numbers
)


def _solved(triangle: Array, x: Array) -> Array:
    kind = jnp.result_type(triangle, x)
    triangle, x = jnp.broadcast_arrays(jnp.asarray(triangle, kind), jnp.asarray(x, kind))
    return jax.lax.linalg.triangular_solve(triangle, x, left_side=True, lower=True)


def _log_diagonal(x: Array) -> Array:
    return jnp.log(jnp.diagonal(x, axis1=-2, axis2=-1))


def _log_density(concentration: Array, x: Array, root: Array, *, is_inverse: bool) -> Array:
    """Log-density of S, given X and the Cholesky factor of S."""
    dim = x.shape[-1]
    # x_ii^2 / 2 ~ Gamma((n - i) / 2), i = 0, 1, ..., of an inverse law from the last one on; |X|^n has n / 2 in place of that.
    lacks = jnp.arange(dim, dtype=x.dtype)[:: -1 if is_inverse else 1] / 2
    log_half = 2 * _log_diagonal(x) - math.log(2)
    half = jnp.diagonal(x, axis1=-2, axis2=-1) ** 2 / 2
    kernels = log_gamma_kernel(half, log_half, concentration[..., None] / 2 - lacks)
    below = (jnp.tril(x, -1) ** 2).sum((-2, -1)) / 2
    own = (kernels + lacks * log_half).sum(-1) - below
    return (
        own - 0.25 * dim * (dim - 1) * math.log(math.pi) - (dim + 1) * _log_diagonal(root).sum(-1)
    )


@full_precision
def _lost_by_solving(triangle: Array, x: Array) -> Array:
    """Nats that rounding makes in X = A^-1 B: entries below the diagonal move by eps / 2 |A^-1| |A| |X| (Higham 2002, 8.1)."""
    triangle, x = jax.lax.stop_gradient(jnp.broadcast_arrays(triangle, x))
    unit = jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), x.shape)
    moved = jnp.abs(_solved(triangle, unit)) @ (jnp.abs(triangle) @ jnp.abs(x))
    return jnp.finfo(x.dtype).eps / 2 * jnp.sqrt((jnp.tril(x * moved, -1) ** 2).sum((-2, -1)))


def _of_root(law: PyTree, root: Array, *, is_inverse: bool) -> Array:
    """Log-density of the matrix with a Cholesky factor, under a law of factors; NaN where rounding makes a tenth of a nat."""
    triangle, other = (root, law.scale_tril) if is_inverse else (law.scale_tril, root)
    x = _solved(triangle, other)
    concentration = jnp.asarray(law.concentration, x.dtype)
    found = _log_density(concentration, x, root, is_inverse=is_inverse)
    is_known = _lost_by_solving(triangle, x) <= _MAX_LOST + _FAR_OFF * jnp.abs(found)
    return jnp.where(is_known, found, jnp.nan)


def _of_factor(law: PyTree, root: Array, *, is_inverse: bool) -> Array:
    """Log-density of a factor: that of its matrix, of which p - i entries move with column i."""
    dim = root.shape[-1]
    moved = ((dim - jnp.arange(dim)) * _log_diagonal(root)).sum(-1) + dim * math.log(2)
    return _of_root(law, root, is_inverse=is_inverse) + moved


@full_precision
def _lost(law: PyTree, root: Array, is_drawn: bool, *, is_inverse: bool) -> Array:
    """Nats that rounding makes: of the entries of S, but for one made of this factor, and of those of V, where V is given."""
    scale, root = jax.lax.stop_gradient(jnp.broadcast_arrays(law.scale_tril, root))
    n = jax.lax.stop_gradient(jnp.asarray(law.concentration, root.dtype))[..., None, None]
    unit = jnp.broadcast_to(jnp.eye(root.shape[-1], dtype=root.dtype), root.shape)
    # Derivatives: of S (n - p - 1) / 2 S^-1 - V^-1 / 2, of V -n / 2 V^-1 + V^-1 S V^-1 / 2; of an inverse law the two change
    # places: of V n / 2 V^-1 - S^-1 / 2, of S -(n + p + 1) / 2 S^-1 + S^-1 V S^-1 / 2.
    one, other = (scale, root) if is_inverse else (root, scale)
    of_one, of_other = _solved(one, unit), _solved(other, unit)
    turned = _solved(other, one)
    inside = (of_other.mT @ turned) @ (of_other.mT @ turned).mT
    more = root.shape[-1] + 1
    times, other_times = (n, n + more) if is_inverse else (n - more, n)
    slope = (times * of_one.mT @ of_one - of_other.mT @ of_other) / 2
    other_slope = (inside - other_times * of_other.mT @ of_other) / 2
    is_given = bool({"scale_matrix", "rate_matrix"} & vars(law).keys())
    of_value, of_scale = (other_slope, slope) if is_inverse else (slope, other_slope)
    total = 0.0
    for is_rounded, slopes, factor in ((not is_drawn, of_value, root), (is_given, of_scale, scale)):
        if is_rounded:  # an entry moves by its share of the lengths of two rows
            length = jnp.sqrt((factor**2).sum(-1))
            moves = slopes * length[..., None] * length[..., None, :]
            total = total + (moves**2).sum((-2, -1))
    return jnp.finfo(root.dtype).eps * jnp.sqrt(total)


def _of_matrix(self: PyTree, value: ArrayLike, intermediates: PyTree, *, is_inverse: bool) -> Array:
    law, is_drawn = self.base_dist, intermediates is not None
    root = intermediates[-1][0] if is_drawn else jnp.linalg.cholesky(jnp.asarray(value))
    found = _of_root(law, root, is_inverse=is_inverse)
    is_known = _lost(law, root, is_drawn, is_inverse=is_inverse) <= _MAX_LOST
    return jnp.where(is_known, found, jnp.nan)


@validate_sample
def wishart_cholesky(self: PyTree, value: ArrayLike) -> Array:
    """Log-density of the Cholesky factor of a Wishart matrix."""
    return _of_factor(self, jnp.asarray(value), is_inverse=False)


@validate_sample
def inverse_wishart_cholesky(self: PyTree, value: ArrayLike) -> Array:
    """Log-density of the Cholesky factor of an inverse Wishart matrix."""
    return _of_factor(self, jnp.asarray(value), is_inverse=True)


@validate_sample
def wishart(self: PyTree, value: ArrayLike, intermediates: PyTree = None) -> Array:
    """Log-density of a Wishart matrix; NaN where rounding of entries makes a tenth of a nat of it."""
    return _of_matrix(self, value, intermediates, is_inverse=False)


@validate_sample
def inverse_wishart(self: PyTree, value: ArrayLike, intermediates: PyTree = None) -> Array:
    """Log-density of an inverse Wishart matrix; NaN where rounding of entries makes a tenth of a nat of it."""
    return _of_matrix(self, value, intermediates, is_inverse=True)
