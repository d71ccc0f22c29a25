"""The law of a local site given a normal prior and a quadratic potential: what conjugacy gives in closed form.

Terms: prior N(loc, P^-1), P diagonal or dense; potential l(x) = c + g'(x - z) + (x - z)'A (x - z) / 2, an expansion at z, where A
may be singular, and is one of diagonal, dense, or U'U. Output: the normal law of density proportional to prior x exp(-l),
precision P + A, mean loc + (P + A)^-1 (A (z - loc) - g).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import cho_solve

from ...ppl._precision import full_precision
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
            return x * (1 / self.scale**2)  # the reciprocal leaves the loop of an inner program
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
    """c + g'(x - z) + (x - z)'A (x - z) / 2 with A = diag(diagonal), matrix, or factor' factor: one of the three is given.

    Attributes:
        at: z, where the potential is expanded, [*batch, d].
        slope: g, its gradient there, [*batch, d].
        diagonal: [*batch, d], or None.
        matrix: [*batch, d, d], or None.
        factor: [*batch, m, d], or None.
    """

    at: Array
    slope: Array
    diagonal: Array | None = None
    matrix: Array | None = None
    factor: Array | None = None


@full_precision
def posterior(prior: NormalPrior, potential: Potential) -> dist.Distribution:
    """The normal law of a vector proportional to prior x exp(-potential); event shape (d,)."""
    offset, slope = potential.at - prior.loc, potential.slope
    if potential.matrix is None and prior.scale is not None:
        if potential.diagonal is not None:
            precision = 1 / prior.scale**2 + potential.diagonal
            shift = potential.diagonal * offset - slope
            return dist.Normal(prior.loc + shift / precision, precision**-0.5).to_event(1)
        assert potential.factor is not None
        law = PrecisionFactorNormal(prior.loc, prior.scale, potential.factor)
        # Through G = 1 + U S U', which does not depend on loc: (P + U'U)^-1 (U'U offset - g) = -S g + S U' G^-1 U (offset + S g).
        step = law.scale**2 * slope
        seen = (potential.factor @ (potential.at - law.loc + step)[..., None])[..., 0]
        law.loc = law.loc - step + law.spread(seen)
        return law
    matrix = _matrix(potential)
    precision = prior.precision() + matrix
    root = jnp.linalg.cholesky(precision)
    shift = (matrix @ offset[..., None])[..., 0] - slope
    loc = prior.loc + cho_solve((root, True), shift[..., None])[..., 0]
    return dist.MultivariateNormal(loc, precision_matrix=precision)


@full_precision
def _matrix(potential: Potential) -> Array:
    if potential.matrix is not None:
        return potential.matrix
    if potential.diagonal is not None:
        return potential.diagonal[..., None] * jnp.eye(potential.diagonal.shape[-1])
    assert potential.factor is not None
    return potential.factor.mT @ potential.factor
