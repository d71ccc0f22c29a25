"""The noise of Poisson flows: isotropic with heavy tails, and Normal noise as its limit."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from ...ppl._checks import check_counts, check_event
from ...ppl._types import Key


class PoissonNoise(dist.Distribution):
    """Noise of the electric field of data in D extra dimensions (PFGM++): Student's t with D degrees of freedom.

    For points of N coordinates, with |eps| the Euclidean norm over all of them,

        p(eps) = Gamma((N + D) / 2) / (Gamma(D / 2) (pi D)^(N/2)) (1 + |eps|^2 / D)^(-(N + D) / 2),

    which is the field's kernel (|x - y|^2 + r^2)^(-(N + D) / 2) at x = y + sigma eps and radius r = sigma sqrt(D). D = 1 is the
    Poisson flow; as D grows the noise tends to Normal(0, I).

    With it in place of Normal noise (`score_matching(noise=)`, `from_network(noise=)`) what a network learns is still
    E[x_0 | x_t], and dx / d sigma = (x - E[x_0 | x_t]) / sigma still carries the marginals: `heun` and `ddim` without noise,
    `flow_sample` and `flow_log_likelihood` hold unchanged. There is no reverse process with noise of its own, so that samplers
    with noise, and correctors, refuse such models.

    Args:
        shape: shape of a point.
        num_extra: D, extra dimensions; at most 2 leave the noise without a variance.

    Example:
        >>> from lapilli.models import diffusion
        >>> noise = diffusion.PoissonNoise((2,), 1)
        >>> round(float(noise.log_prob(jnp.zeros(2))), 4)  # 1 / 2 pi
        -1.8379

    Reference: Xu et al. 2023, arXiv:2302.04265, equation 3 and proposition 3.1; as Student's t: by comparison of densities.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_aux_fields = ("num_extra",)

    def __init__(
        self, shape: tuple[int, ...], num_extra: int, *, validate_args: bool | None = None
    ) -> None:
        check_counts("PoissonNoise", num_extra=num_extra)
        self.num_extra = num_extra
        super().__init__((), tuple(shape), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=None)  # pyright: ignore[reportArgumentType]
    def support(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All points."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*shape"]:
        """Normal noise over the root of an independent chi^2 / D."""
        normal_key, chi2_key = jax.random.split(key)
        normal = jax.random.normal(normal_key, (*sample_shape, *self.event_shape))
        chi2 = 2 * jax.random.gamma(chi2_key, 0.5 * self.num_extra, sample_shape)
        scale = jnp.sqrt(self.num_extra / chi2)
        return normal * scale.reshape(*sample_shape, *(1 for _ in self.event_shape))

    def log_prob(self, value: Float[Array, "*shape"]) -> Float[Array, "*batch"]:
        """Log density in nats."""
        check_event("PoissonNoise: a value", value, self.event_shape)
        size, extra = math.prod(self.event_shape), self.num_extra
        axes = tuple(range(-len(self.event_shape), 0))
        square = jnp.sum(jnp.square(value), axes)
        constant = math.lgamma(0.5 * (size + extra)) - math.lgamma(0.5 * extra)
        constant = constant - 0.5 * size * math.log(math.pi * extra)
        return constant - 0.5 * (size + extra) * jnp.log1p(square / extra)
