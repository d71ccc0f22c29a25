"""A normal vector whose precision is diagonal plus low rank."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float, PyTree
from numpyro.distributions import constraints
from numpyro.distributions.kl import kl_divergence

from ...ppl._precision import full_precision
from ...ppl._types import Key
from ._gram import gram, gram_transposed, known_gram

LOG_2PI = 1.8378770664093453


def on_rows(shape: tuple[int, ...], *arrays: Array) -> Any:
    """Arrays broadcast to a shape, materialised.

    XLA's CPU compiler fuses the sum over rows, in a derivative, with all that it sums, into a loop that runs down the columns and
    is not vectorised: several times slower.
    """
    return jax.lax.optimization_barrier([jnp.broadcast_to(x, shape) for x in arrays])


@jax.custom_jvp
def inverse_and_log_det(matrix: Array) -> tuple[Array, Array]:
    """Inverse and log-determinant of a positive definite matrix [*batch, m, m]: [*batch, m, m] and [*batch].

    One factorisation; derivatives are products: d G^-1 = -G^-1 dG G^-1, d log |G| = tr(G^-1 dG).
    """
    tril = jnp.linalg.cholesky(matrix)
    log_det = 2 * jnp.log(jnp.diagonal(tril, axis1=-2, axis2=-1)).sum(-1)
    eye = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
    return cho_solve((tril, True), eye), log_det


@inverse_and_log_det.defjvp
@full_precision
def _(primals: PyTree, tangents: PyTree) -> PyTree:
    inverse, log_det = inverse_and_log_det(*primals)
    change = inverse @ tangents[0]
    return (inverse, log_det), (-change @ inverse, jnp.trace(change, axis1=-2, axis2=-1))


class PrecisionFactorNormal(dist.Distribution):
    """N(loc, Lambda^-1) with Lambda = diag(1 / scale^2) + U'U, at a cost of O(d m^2 + m^3) for m rows of U.

    The posterior of a normal vector of independent coordinates after m linear observations. All is computed through the m x m
    matrix G = 1 + U S U', S = diag(scale^2): Lambda^-1 = S - S U' G^-1 U S, log |Lambda| = -log |S| + log |G|.

    Args:
        loc: shape [*batch, d].
        scale: standard deviations without the factor, positive, [*batch, d].
        factor: U, [*batch, m, d].

    Attributes:
        log_det_precision: log |Lambda|, [*batch].

    Validity: `sample` (Matheron's rule: an unconditional draw, corrected by what it would have observed) is differentiable in all
    parameters.
    Reference: Matheron's rule: Journel and Huijbregts 1978; Wilson et al. 2021, arXiv:2011.04026.
    """

    arg_constraints = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
        "factor": constraints.real_matrix,
    }
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    reparametrized_params = ["loc", "scale", "factor"]
    pytree_data_fields = ("loc", "scale", "factor", "log_det_precision", "_seen", "_inverse")

    def __init__(
        self,
        loc: Float[Array, "*batch d"],
        scale: Float[Array, "*batch d"],
        factor: Float[Array, "*batch m d"],
        *,
        validate_args: bool | None = None,
    ) -> None:
        batch = jnp.broadcast_shapes(loc.shape[:-1], scale.shape[:-1], factor.shape[:-2])
        d = loc.shape[-1]
        self.loc, self.scale = on_rows((*batch, d), loc, scale)
        self.factor = jnp.broadcast_to(factor, (*batch, *factor.shape[-2:]))
        self._seen = gram(self.factor, self.scale**2)
        eye = jnp.eye(self._seen.shape[-1], dtype=self._seen.dtype)
        self._inverse, log_det = inverse_and_log_det(eye + self._seen)
        log_scale = jnp.broadcast_to(jnp.log(scale), jnp.broadcast_shapes(scale.shape, (d,)))
        self.log_det_precision = log_det - 2 * log_scale.sum(-1)
        super().__init__(batch, (d,), validate_args=validate_args)

    @full_precision
    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws, shape [*sample_shape, *batch, d]."""
        shape = (*sample_shape, *self.batch_shape)
        d, m = self.loc.shape[-1], self.factor.shape[-2]
        key_prior, key_noise = jax.random.split(key)
        # Not recomputed in every kernel of a derivative.
        normal = jax.random.normal(key_prior, (*shape, d), self.loc.dtype)
        prior = self.scale * jax.lax.optimization_barrier(normal)
        noise = jax.random.normal(key_noise, (*shape, m), self.loc.dtype)
        seen = (self.factor @ prior[..., None])[..., 0] + noise
        return self.loc + prior - self.spread(seen)

    @full_precision
    def spread(self, seen: Array) -> Array:
        """S U' G^-1 seen, [*batch, d], for seen of shape [*batch, m]: what observations move the vector by."""
        solved = (self._inverse @ seen[..., None])[..., 0]
        return self.scale**2 * (solved[..., None, :] @ self.factor)[..., 0, :]

    @full_precision
    def log_prob(self, value: Array) -> Array:
        """Log-density, nats [*batch]."""
        offset = value - self.loc
        seen = (self.factor @ offset[..., None])[..., 0]
        quadratic = ((offset / self.scale) ** 2).sum(-1) + (seen**2).sum(-1)
        return 0.5 * (self.log_det_precision - quadratic - self.loc.shape[-1] * LOG_2PI)

    @property
    def mean(self) -> Array:
        """[*batch, d]."""
        return self.loc

    @property
    def variance(self) -> Array:
        """The diagonal of Lambda^-1, [*batch, d]."""
        # A difference, which rounding may take below what it cannot be less than, and which all of it is for d = 1.
        given_others = 1 / (1 / self.scale**2 + (self.factor**2).sum(-2))
        if self.loc.shape[-1] == 1:
            return given_others
        found = self.scale**2 * (1 - self.scale**2 * gram_transposed(self.factor, self._inverse))
        return jnp.maximum(found, given_others)

    def trace_over(self, scale: Array) -> Array:
        """tr(diag(1 / scale^2) Lambda^-1), [*batch], for a scale of shape [*batch, d], in m x m matrices."""
        spread = (self.scale / scale) ** 2
        # From its prior a posterior diverges by its own scale: U S U' is at hand.
        is_own = (scale == self.scale).all()
        seen = known_gram(self.factor, spread * self.scale**2, self._seen, is_own)
        return spread.sum(-1) - (self._inverse * seen).sum((-1, -2))

    def entropy(self) -> Array:
        """-E[log_prob], nats [*batch]."""
        return 0.5 * (self.loc.shape[-1] * (1 + LOG_2PI) - self.log_det_precision)


def _kl_to_independent(p: PrecisionFactorNormal, q: dist.Independent) -> Array:
    """KL(p || q) for q a normal law of independent coordinates, nats."""
    base: Any = q.base_dist
    while isinstance(base, dist.ExpandedDistribution):
        base = base.base_dist
    if not isinstance(base, dist.Normal) or q.event_dim != 1:
        raise NotImplementedError
    scale: Any = base.scale
    log_scale = jnp.log(scale)  # before it is repeated on all rows
    log_scale = jnp.broadcast_to(log_scale, jnp.broadcast_shapes(log_scale.shape, q.event_shape))
    mean, own = on_rows(p.loc.shape, q.mean, scale)
    quadratic = (((p.loc - mean) / own) ** 2 - 1).sum(-1)
    log_ratio = 0.5 * p.log_det_precision + log_scale.sum(-1)
    return 0.5 * (p.trace_over(own) + quadratic) + log_ratio


kl_divergence.register(PrecisionFactorNormal, dist.Independent)(_kl_to_independent)
