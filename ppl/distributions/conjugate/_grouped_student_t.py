"""Student t laws of vectors in groups: what is left of normal vectors that share a variance, when it is integrated out."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from ..._types import Key
from ..mends import log_gamma_ratio
from ._groups import Groups

LOG_PI = 1.1447298858494002


class GroupedStudentT(dist.Distribution):
    """A vector of independent groups, each a multivariate Student t with a diagonal scale matrix.

        x_j = loc_j + scale_j z_j / sqrt(tau_g),   z_j ~ Normal(0, 1),   tau_g ~ Gamma(df_g / 2, df_g / 2),   g the group of j.

    One event has shape (d,). Elements of a group are uncorrelated, and large together.

    Args:
        df: degrees of freedom, positive, [*batch, G] or one number.
        loc: shape [*batch, d].
        scale: positive, [*batch, d] or one number.
        group: number of the group of each element, d whole numbers 0 ... G - 1.

    Raises:
        ValueError: the shapes do not fit, or a group has no element.

    Validity: `sample` is differentiable in all parameters; that of `df` is the implicit derivative of JAX's gamma sampler.
    Reference: Kotz and Nadarajah 2004, Multivariate t distributions and their applications, section 1.1.

    Example:
        >>> from lapilli import ppl
        >>> import jax.numpy as jnp
        >>> law = ppl.distributions.GroupedStudentT(3.0, jnp.zeros(3), 1.0, group=[0, 0, 1])
        >>> round(float(law.log_prob(jnp.zeros(3))), 4)
        -2.8388
    """

    arg_constraints = {
        "df": constraints.independent(constraints.positive, 1),
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    reparametrized_params = ["df", "loc", "scale"]
    pytree_data_fields = ("df", "loc", "scale")
    pytree_aux_fields = ("groups",)

    def __init__(
        self,
        df: Float[Array, "*batch groups"] | float,
        loc: Float[Array, "*batch elements"],
        scale: Float[Array, "*batch elements"] | float,
        *,
        group: Sequence[int],
        validate_args: bool | None = None,
    ) -> None:
        df, loc, scale = (jnp.asarray(x, float) for x in (df, loc, scale))
        self.groups = Groups.of("GroupedStudentT", group, loc, {"df": df})
        batch = jnp.broadcast_shapes(df.shape[:-1], loc.shape[:-1], scale.shape[:-1])
        d = loc.shape[-1]
        self.df = jnp.broadcast_to(df, (*batch, self.groups.count))
        self.loc = jnp.broadcast_to(loc, (*batch, d))
        self.scale = jnp.broadcast_to(scale, (*batch, d))
        super().__init__(batch, (d,), validate_args=validate_args)

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws, shape [*sample_shape, *batch, d]."""
        key_normal, key_gamma = jax.random.split(key)
        shape = (*sample_shape, *self.batch_shape, self.groups.count)
        half = jnp.broadcast_to(0.5 * self.df, shape)
        # On the log scale, since gamma draws of few degrees of freedom underflow.
        log_tau = jax.random.loggamma(key_gamma, half, shape) - jnp.log(half)
        noise = jax.random.normal(key_normal, self.shape(sample_shape), self.loc.dtype)
        return self.loc + self.scale * noise * self.groups.spread(jnp.exp(-0.5 * log_tau))

    def log_prob(self, value: Array) -> Array:
        """Log-density, nats [*batch]."""
        distance = self.groups.total(((value - self.loc) / self.scale) ** 2)
        n = self.groups.sizes
        peak = log_gamma_ratio(0.5 * self.df, 0.5 * n) - 0.5 * n * (LOG_PI + jnp.log(self.df))
        by_group = peak - 0.5 * (self.df + n) * jnp.log1p(distance / self.df)
        return by_group.sum(-1) - jnp.log(self.scale).sum(-1)

    @property
    def mean(self) -> Array:
        """Loc, where a group has more than one degree of freedom; else NaN."""
        return jnp.where(self.groups.spread(self.df) > 1, self.loc, jnp.nan)

    @property
    def variance(self) -> Array:
        """Variance of each element: infinite with two degrees of freedom or fewer, NaN with one or fewer."""
        df = self.groups.spread(self.df)
        finite = self.scale**2 * df / jnp.where(df > 2, df - 2, 1.0)
        return jnp.where(df > 2, finite, jnp.where(df > 1, jnp.inf, jnp.nan))
