"""Multivariate normal laws whose matrix is given, where rounding leaves a density; and that of low rank without a difference.

An entry of a matrix C is known to its last digit, and log |C| and y^T C^-1 y then to some

    eps / 2 sum_i C_ii (C^-1)_ii    nats,

y being a draw of the law; the sum is the number of dimensions where they are independent, and of the size of the condition number
of correlations where they are not. Of n draws it is sqrt(n) times as much, since both errors have means that cancel. A factor
that is given has all of its digits. The same goes for laws that hold such a law inside (copulas, state-space models); a
conditional autoregression has a quadratic form without a difference.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import ArrayLike, PyTree
from numpyro.distributions.kl import kl_divergence

from ..._compat import lazy_property, validate_sample
from ..._precision import full_precision

Array = jax.Array
_MAX_LOST = 1.0  # nats
_GOLDEN = 0.6180339887
_log_prob, _entropy = dist.MultivariateNormal.log_prob, dist.MultivariateNormal.entropy
_divergence = kl_divergence.dispatch(dist.MultivariateNormal, dist.MultivariateNormal)
_of_steps, _of_circle = dist.GaussianStateSpace.log_prob, dist.CirculantNormal.log_prob
_of_neighbours = dist.CAR.log_prob


class _NotKept(lazy_property):
    """A matrix that is made of the factor, and not kept beside it, where it would look like one that was given."""

    def __get__(self, instance: PyTree, obj_type: type | None = None) -> PyTree:
        return self if instance is None else self.wrapped(instance)


for _name in ("covariance_matrix", "precision_matrix"):
    setattr(dist.MultivariateNormal, _name, _NotKept(vars(dist.MultivariateNormal)[_name].wrapped))
_row = vars(dist.CirculantNormal)["covariance_row"]
dist.CirculantNormal.covariance_row = _NotKept(_row.wrapped)  # pyright: ignore[reportAttributeAccessIssue]


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
    """The numbers found, of the draws that share a matrix; NaN where rounding of it makes a nat of them all."""
    nats = lost(law)
    rows = max(1, found.size // max(1, nats.size))
    return jnp.where(nats * rows**0.5 <= _MAX_LOST, found, jnp.nan)


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
def state_space(self: PyTree, value: ArrayLike) -> Array:
    """Log-density of a path; NaN where rounding of the noise's matrix, if one is given, makes a nat of all steps."""
    law = self.base_dist
    while not isinstance(law, dist.MultivariateNormal):
        law = law.base_dist
    nats = jnp.sqrt((jnp.atleast_1d(lost(law)) ** 2).sum(-1))
    return jnp.where(nats <= _MAX_LOST, _of_steps(self, value), jnp.nan)


@full_precision
def circulant(self: PyTree, value: ArrayLike) -> Array:
    """Log-density of a circulant normal law; NaN where rounding of its row, if that is given, makes a nat of it."""
    found = jnp.asarray(_of_circle(self, value))
    if "covariance_row" not in vars(self):
        return found
    row, spectrum = jax.lax.stop_gradient((self.covariance_row, self.covariance_rfft))
    size = self.event_shape[0]
    inner = spectrum[..., 1 : (size + 1) // 2]  # there twice
    inverse = (1 / spectrum).sum(-1) + (1 / inner).sum(-1)
    nats = jnp.finfo(row.dtype).eps / 2 * row[..., 0] * inverse
    return jnp.where(nats <= _MAX_LOST, found, jnp.nan)


@full_precision
@validate_sample
def autoregression(self: PyTree, value: ArrayLike) -> Array:
    """Log-density of a conditional autoregression, whose quadratic form is a sum of squares.

    With phi the distance from the mean, degrees D, neighbours W,

        phi^T (D - rho W) phi = (1 - |rho|) sum_i D_i phi_i^2 + |rho| / 2 sum_ij W_ij (phi_i - sign(rho) phi_j)^2.

    As a difference it would lose all digits where all are far from the mean together.
    """
    phi, rho = jnp.asarray(value) - self.loc, jnp.asarray(self.correlation)[..., None]
    sign = jnp.where(rho < 0, -1.0, 1.0).astype(phi.dtype)
    if self.is_sparse:
        pairs = self.adj_matrix.tocoo()
        degrees = np.asarray(self.adj_matrix.sum(-1)).squeeze(-1)
        apart = (pairs.data * (phi[..., pairs.row] - sign * phi[..., pairs.col]) ** 2).sum(-1)
    else:
        degrees = self.adj_matrix.sum(-1)
        gaps = phi[..., :, None] - sign[..., None] * phi[..., None, :]
        apart = (self.adj_matrix * gaps**2).sum((-2, -1))
    own = (degrees * phi**2).sum(-1)
    size = jnp.abs(rho[..., 0])
    quadratic = (1 - size) * own + size / 2 * apart
    at_mean = _of_neighbours(self, jnp.broadcast_to(self.loc, phi.shape))
    return at_mean - 0.5 * self.conditional_precision * quadratic


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
