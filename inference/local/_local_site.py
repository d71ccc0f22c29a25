"""The law of a local site given a normal prior and a quadratic potential: what conjugacy gives in closed form.

Terms: prior N(loc, P^-1), P diagonal or dense; potential l(x) = c + g'(x - z) + (x - z)'A (x - z) / 2, an expansion at z, where A
may be singular, and is one of diagonal, dense, or U'U. Output: the normal law of density proportional to prior x exp(-l),
precision P + A, mean z - (P + A)^-1 (P (z - loc) + g), a step that is short where z is near it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import cho_solve, solve_triangular

from ...ppl._precision import full_precision
from ...ppl.gaussian.beliefs import orthogonal_triangular
from ._precision_normal import PrecisionFactorNormal

Array = jax.Array
stop = jax.lax.stop_gradient
MAX_ROUNDED = 0.1  # of a scale; beyond, the law is NaN


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

    def root_of_precision(self) -> Array:
        """R with R'R = P, [*batch, d, d]."""
        eye = jnp.eye(self.loc.shape[-1], dtype=self.loc.dtype)
        if self.scale is not None:
            return eye / self.scale[..., None]
        assert self.scale_tril is not None
        return solve_triangular(
            self.scale_tril, jnp.broadcast_to(eye, self.scale_tril.shape), lower=True
        )


class Potential(NamedTuple):
    """c + g'(x - z) + (x - z)'A (x - z) / 2 with A one of diag(diagonal), matrix, factor' factor, root' root: that is given.

    Attributes:
        at: z, where the potential is expanded, [*batch, d].
        slope: g, its gradient there, [*batch, d].
        diagonal: [*batch, d], or None.
        matrix: [*batch, d, d], or None.
        factor: [*batch, m, d], or None.
        root: the same for a law of which all covariances are known, [*batch, m, d], or None.
        slopes: r with factor' r = slope, [*batch, m], or None where that is not known.
    """

    at: Array
    slope: Array
    diagonal: Array | None = None
    matrix: Array | None = None
    factor: Array | None = None
    root: Array | None = None
    slopes: Array | None = None


@full_precision
def posterior(prior: NormalPrior, potential: Potential) -> dist.Distribution:
    """The normal law of a vector proportional to prior x exp(-potential); event shape (d,)."""
    offset, slope = potential.at - prior.loc, potential.slope
    if potential.matrix is None and prior.scale is not None and potential.root is None:
        if potential.diagonal is not None:
            precision = 1 / prior.scale**2 + potential.diagonal
            shift = potential.diagonal * offset - slope
            return dist.Normal(prior.loc + shift / precision, precision**-0.5).to_event(1)
        assert potential.factor is not None
        law = PrecisionFactorNormal(prior.loc, prior.scale, potential.factor)
        seen = lambda x: (potential.factor @ x[..., None])[..., 0]
        if potential.slopes is not None:
            # S g, which may be larger than the step by the condition number, drops out: the step is S U' G^-1 (U offset - r).
            law.loc = law.loc + law.spread(seen(potential.at - law.loc) - potential.slopes)
            return law
        # Through G = 1 + U S U', which does not depend on loc: (P + U'U)^-1 (U'U offset - g) = -S g + S U' G^-1 U (offset + S g).
        step = law.scale**2 * slope
        law.loc = law.loc - step + law.spread(seen(potential.at - law.loc + step))
        return law
    root = _root_of_covariance(prior, potential)
    # A step from z, of which only the step itself is rounded in units of the condition number.
    slope = slope + prior.precision_times(offset)
    step = root @ (root.mT @ slope[..., None])
    return dist.MultivariateNormal(potential.at - step[..., 0], scale_tril=root)


def _root_of_covariance(prior: NormalPrior, potential: Potential) -> Array:
    """The lower triangular L with L L' = (P + A)^-1, shape [*batch, d, d].

    By M' M = P + A, M lower triangular, whose columns in the other order are the triangle of U and a root of P; where A is known
    as a matrix alone, by its Cholesky factor, which squares the condition number.
    """
    eye = jnp.eye(prior.loc.shape[-1], dtype=prior.loc.dtype)
    rows = potential.factor if potential.root is None else potential.root
    if rows is None:
        root = jnp.linalg.cholesky((prior.precision() + _matrix(potential))[..., ::-1, ::-1])
        lower = root[..., ::-1, ::-1].mT
    else:
        rows = jnp.concatenate([rows, prior.root_of_precision()], -2)
        lower = orthogonal_triangular(rows[..., ::-1])[1][..., ::-1, ::-1]
    found = solve_triangular(lower, jnp.broadcast_to(eye, lower.shape), lower=True)
    # What is rounded in units of a column of M is so of a scale in units of what the two have in common.
    grown = stop((lower**2).sum(-2) * (found**2).sum(-1))
    error = jnp.finfo(found.dtype).eps * (grown if rows is None else jnp.sqrt(grown))
    found = jnp.where((error <= MAX_ROUNDED).all(-1)[..., None, None], found, jnp.nan)
    sign = jnp.where(jnp.diagonal(found, axis1=-2, axis2=-1) < 0, -1, 1)
    return jnp.tril(found * sign[..., None, :])


def _matrix(potential: Potential) -> Array:
    if potential.matrix is not None:
        return potential.matrix
    assert potential.diagonal is not None
    return potential.diagonal[..., None] * jnp.eye(potential.diagonal.shape[-1])
