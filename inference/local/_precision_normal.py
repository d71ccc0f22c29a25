"""A normal vector whose precision is diagonal plus low rank."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float
from numpyro.distributions import constraints
from numpyro.distributions.kl import kl_divergence

LOG_2PI = 1.8378770664093453


class PrecisionFactorNormal(dist.Distribution):
    """N(loc, Lambda^-1) with Lambda = diag(1 / scale^2) + U'U, at a cost of O(d m + m^3) for m rows of U.

    The posterior of a normal vector of independent coordinates after m linear observations. All is computed through the m x m
    matrix G = 1 + U S U', S = diag(scale^2): Lambda^-1 = S - S U' G^-1 U S, log |Lambda| = -log |S| + log |G|.

    Args:
        loc: shape [*batch, d].
        scale: standard deviations without the factor, positive, [*batch, d].
        factor: U, [*batch, m, d].

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
    pytree_data_fields = ("loc", "scale", "factor", "_tril")

    def __init__(
        self,
        loc: Float[Array, "*batch d"],
        scale: Float[Array, "*batch d"],
        factor: Float[Array, "*batch m d"],
        *,
        validate_args: bool | None = None,
    ) -> None:
        batch = jnp.broadcast_shapes(loc.shape[:-1], scale.shape[:-1], factor.shape[:-2])
        d, m = loc.shape[-1], factor.shape[-2]
        self.loc = jnp.broadcast_to(loc, (*batch, d))
        self.scale = jnp.broadcast_to(scale, (*batch, d))
        self.factor = jnp.broadcast_to(factor, (*batch, m, d))
        root = self.factor * self.scale[..., None, :]
        self._tril = jnp.linalg.cholesky(jnp.eye(m) + root @ root.mT)
        super().__init__(batch, (d,), validate_args=validate_args)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws, shape [*sample_shape, *batch, d]."""
        shape = (*sample_shape, *self.batch_shape)
        d, m = self.loc.shape[-1], self.factor.shape[-2]
        key_prior, key_noise = jax.random.split(key)
        prior = self.scale * jax.random.normal(key_prior, (*shape, d), self.loc.dtype)
        noise = jax.random.normal(key_noise, (*shape, m), self.loc.dtype)
        seen = (self.factor @ prior[..., None])[..., 0] + noise
        return self.loc + prior - self._correction(seen)

    def _correction(self, seen: Array) -> Array:
        """S U' G^-1 seen."""
        tril = jnp.broadcast_to(self._tril, (*seen.shape, seen.shape[-1]))
        solved = cho_solve((tril, True), seen[..., None])
        return self.scale**2 * (self.factor.mT @ solved)[..., 0]

    def covariance_times(self, x: Array) -> Array:
        """Lambda^-1 x for x of shape [*batch, d]."""
        spread = self.scale**2 * x
        return spread - self._correction((self.factor @ spread[..., None])[..., 0])

    @property
    def log_det_precision(self) -> Array:
        """Log |Lambda|, [*batch]."""
        diagonal = jnp.log(jnp.diagonal(self._tril, axis1=-2, axis2=-1))
        return 2 * (diagonal.sum(-1) - jnp.log(self.scale).sum(-1))

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
        root = self.factor * self.scale[..., None, :]
        # G^-1 is m x m with eigenvalues in (0, 1]; a triangular solve for d columns would cost more than all else.
        inverse = cho_solve(
            (self._tril, True), jnp.broadcast_to(jnp.eye(root.shape[-2]), self._tril.shape)
        )
        return self.scale**2 * (1 - ((inverse @ root) * root).sum(-2))

    def entropy(self) -> Array:
        """-E[log_prob], nats [*batch]."""
        return 0.5 * (self.loc.shape[-1] * (1 + LOG_2PI) - self.log_det_precision)


def _kl_to_independent(p: PrecisionFactorNormal, q: dist.Independent) -> Array:
    """KL(p || q) for q a normal law of independent coordinates, nats."""
    base = q.base_dist
    while isinstance(base, dist.ExpandedDistribution):
        base = base.base_dist
    if not isinstance(base, dist.Normal) or q.event_dim != 1:
        raise NotImplementedError
    variance = q.variance
    spread = (p.variance + (p.loc - q.mean) ** 2) / variance - 1 + jnp.log(variance)
    return 0.5 * (spread.sum(-1) + p.log_det_precision)


kl_divergence.register(PrecisionFactorNormal, dist.Independent)(_kl_to_independent)
