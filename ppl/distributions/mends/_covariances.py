"""Multivariate normal laws whose matrix is given, where rounding leaves a density; and that of low rank without a difference.

An entry of a matrix C is known to its last digit, and log |C| and y^T C^-1 y then to some

    eps / 2 sum_i C_ii (C^-1)_ii    nats,

y being a draw of the law; the sum is the number of dimensions where they are independent, and of the size of the condition number
of correlations where they are not. A factor that is given has all of its digits.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import ArrayLike, PyTree
from numpyro.distributions.kl import kl_divergence

from ..._compat import validate_sample
from ..._precision import full_precision

Array = jax.Array
_MAX_LOST = 1.0  # nats
_GOLDEN = 0.6180339887
_log_prob, _entropy = dist.MultivariateNormal.log_prob, dist.MultivariateNormal.entropy
_divergence = kl_divergence.dispatch(dist.MultivariateNormal, dist.MultivariateNormal)


@full_precision
def lost(law: PyTree) -> Array:
    """Nats that rounding of the given matrix makes of a multivariate normal law's log-density; 0 where a factor is given.

    The diagonal of an inverse R^-T R^-1 is the mean of (R^-T v)^2 over signs v: one sequence of signs stands for it.
    """
    matrix = next((n for n in ("covariance_matrix", "precision_matrix") if n in vars(law)), None)
    if matrix is None:
        return jnp.zeros(())
    root, given = jax.lax.stop_gradient((law.scale_tril, getattr(law, matrix)))
    signs = jnp.where(jnp.arange(root.shape[-1]) * _GOLDEN % 1 < 0.5, 1.0, -1.0).astype(root.dtype)
    signs = jnp.broadcast_to(signs, root.shape[:-1])[..., None]
    if matrix == "covariance_matrix":
        sums = jax.lax.linalg.triangular_solve(
            root, signs, left_side=True, lower=True, transpose_a=True
        )
    else:
        sums = root @ signs
    both = jnp.diagonal(given, axis1=-2, axis2=-1) * sums[..., 0] ** 2
    return jnp.finfo(root.dtype).eps / 2 * both.sum(-1)


def _known(law: PyTree, found: Array) -> Array:
    return jnp.where(lost(law) <= _MAX_LOST, found, jnp.nan)


@full_precision
def multivariate_normal(self: PyTree, value: ArrayLike) -> Array:
    """Log-density of a multivariate normal law; NaN where rounding of a matrix that is given makes a nat of it."""
    return _known(self, _log_prob(self, value))


@full_precision
def entropy(self: PyTree) -> Array:
    """Entropy of a multivariate normal law; NaN where rounding of a matrix that is given makes a nat of it."""
    return _known(self, _entropy(self))


@full_precision
def divergence(p: PyTree, q: PyTree) -> Array:
    """KL divergence of two multivariate normal laws; NaN where rounding of a matrix that is given makes a nat of it."""
    return _known(p, _known(q, _divergence(p, q)))


kl_divergence.add((dist.MultivariateNormal, dist.MultivariateNormal), divergence)


@full_precision
@validate_sample
def low_rank(self: PyTree, value: ArrayLike) -> Array:
    """Log-density of a normal law with covariance W W^T + D.

    With y the distance from the mean, the quadratic form is the smallest value of (y - W b)^T D^-1 (y - W b) + b^T b, taken at
    b = (I + W^T D^-1 W)^-1 W^T D^-1 y: a sum of squares, of which errors of b move the second order only. As the difference
    y^T D^-1 y - b^T W^T D^-1 y it would lose all digits where D is small.
    """
    factor, diagonal, root = self.cov_factor, self.cov_diag, self._capacitance_tril
    y = jnp.asarray(value) - self.loc
    right = (factor.mT / diagonal[..., None, :]) @ y[..., None]
    root = jnp.broadcast_to(root, right.shape[:-2] + root.shape[-2:])
    b = jax.scipy.linalg.cho_solve((root, True), right)
    rest = y - (factor @ b)[..., 0]
    quadratic = (rest**2 / diagonal).sum(-1) + (b**2).sum((-2, -1))
    log_det = 2 * jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)).sum(-1) + jnp.log(diagonal).sum(
        -1
    )
    return -0.5 * (y.shape[-1] * jnp.log(2 * jnp.pi) + log_det + quadratic)
