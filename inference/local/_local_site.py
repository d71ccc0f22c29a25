"""The law of a local site given a normal prior and a quadratic potential: what conjugacy gives in closed form.

Terms: prior N(loc, P^-1), P diagonal or dense; potential l(x) = c - b'x + x'A x / 2, in natural form so that A may be singular, A
one of diagonal, dense, or U'U. Output: the normal law of density proportional to prior x exp(-l), precision P + A, mean
loc + (P + A)^-1 (b - A loc).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import cho_solve

from ._precision_normal import PrecisionFactorNormal

Array = jax.Array


class NormalPrior(NamedTuple):
    """N(loc, P^-1); exactly one of the two scales is given.

    Attributes:
        loc: [*batch, d].
        scale: standard deviations [*batch, d], or None.
        scale_tril: Cholesky factor of P^-1, [*batch, d, d], or None.
    """

    loc: Array
    scale: Array | None
    scale_tril: Array | None

    def precision_times(self, x: Array) -> Array:
        """P x."""
        if self.scale is not None:
            return x / self.scale**2
        assert self.scale_tril is not None
        return cho_solve((self.scale_tril, True), x[..., None])[..., 0]

    def precision(self) -> Array:
        """P as a matrix, [*batch, d, d]."""
        eye = jnp.eye(self.loc.shape[-1])
        if self.scale is not None:
            return eye / self.scale[..., None] ** 2
        assert self.scale_tril is not None
        return cho_solve((self.scale_tril, True), jnp.broadcast_to(eye, self.scale_tril.shape))


class Potential(NamedTuple):
    """c - b'x + x'A x / 2 with A = diag(diagonal), matrix, or factor' factor: one of the three is given.

    Attributes:
        linear: b, [*batch, d].
        diagonal: [*batch, d], or None.
        matrix: [*batch, d, d], or None.
        factor: [*batch, m, d], or None.
    """

    linear: Array
    diagonal: Array | None = None
    matrix: Array | None = None
    factor: Array | None = None

    def times(self, x: Array) -> Array:
        """A x."""
        if self.diagonal is not None:
            return self.diagonal * x
        if self.matrix is not None:
            return (self.matrix @ x[..., None])[..., 0]
        assert self.factor is not None
        return (self.factor.mT @ (self.factor @ x[..., None]))[..., 0]


def expand(gradient: Array, at: Array, curvature: Potential) -> Potential:
    """The potential with curvature A whose gradient at `at` is `gradient`: b = A at - gradient."""
    return curvature._replace(linear=curvature.times(at) - gradient)


def posterior(prior: NormalPrior, potential: Potential) -> dist.Distribution:
    """The normal law of a vector proportional to prior x exp(-potential); event shape (d,)."""
    shift = potential.linear - potential.times(prior.loc)
    if potential.matrix is None and prior.scale is not None:
        if potential.diagonal is not None:
            precision = 1 / prior.scale**2 + potential.diagonal
            return dist.Normal(prior.loc + shift / precision, precision**-0.5).to_event(1)
        assert potential.factor is not None
        law = PrecisionFactorNormal(prior.loc, prior.scale, potential.factor)
        # The factor's Cholesky does not depend on loc.
        law.loc = prior.loc + law.covariance_times(shift)
        return law
    precision = prior.precision() + _matrix(potential)
    root = jnp.linalg.cholesky(precision)
    loc = prior.loc + cho_solve((root, True), shift[..., None])[..., 0]
    return dist.MultivariateNormal(loc, precision_matrix=precision)


def _matrix(potential: Potential) -> Array:
    if potential.matrix is not None:
        return potential.matrix
    if potential.diagonal is not None:
        return potential.diagonal[..., None] * jnp.eye(potential.diagonal.shape[-1])
    assert potential.factor is not None
    return potential.factor.mT @ potential.factor
