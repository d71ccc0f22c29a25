"""Independent laws, truncated one after the other so that linear statements hold."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from ..._types import Key
from ._bounds import KINDS, MAX_LOST, Fixed
from ._constraint import LinearConstraints

Array = jax.Array
_BASES = (dist.Normal, dist.Laplace, dist.Cauchy, dist.Logistic, dist.StudentT)


class TruncatedInTurn(dist.Distribution):
    """Each coordinate's own law, truncated to where it can be given those before it.

        p(x) = prod_i  p_i(x_i) / (F_i(h_i(x_{<i})) - F_i(l_i(x_{<i}))),    l_i <= x_i <= h_i,

    with the bounds l, h of the constraint. It is normalised and drawn exactly, without rejection.

    Args:
        base: Normal, Laplace, Cauchy, Logistic or StudentT of batch shape (..., D), one law for each coordinate. The laws of
            coordinates that equalities give are not used.
        constraint: `LinearConstraints` on D coordinates.

    Raises:
        ValueError: another base, or one of another shape.

    Validity:
        Not the base given that the statements hold: that law has no closed normaliser, and its density is the base's under
        `ImproperUniform(constraint)`. The two differ by the product of the normalisers above, and in general with the order of
        coordinates. The density is with respect to the coordinates that equalities leave. It is NaN where rounding of bounds
        makes a tenth of a nat of it, as in room of but some roundings: take double precision, or differences for coordinates.

    Example:
        >>> from lapilli import ppl
        >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> inside = ppl.distributions.LinearConstraints(["0 <= low <= high"], names=["low", "high"])
        >>> law = ppl.distributions.TruncatedInTurn(dist.Normal(jnp.zeros(2), 1.0), inside)
        >>> bool(inside(law.sample(jax.random.key(0), (100,))).all())
        True
    """

    arg_constraints = {}
    pytree_data_fields = ("base",)
    pytree_aux_fields = ("constraint",)

    def __init__(
        self,
        base: dist.Distribution,
        constraint: LinearConstraints,
        *,
        validate_args: bool | None = None,
    ) -> None:
        num = len(constraint.names)
        if type(base) not in _BASES:
            raise ValueError(
                f"TruncatedInTurn: the base is {type(base).__name__}, whose truncation is not known: use one of "
                f"{', '.join(law.__name__ for law in _BASES)}."
            )
        if base.batch_shape[-1:] != (num,):
            raise ValueError(
                f"TruncatedInTurn: the base has batch shape {base.batch_shape}; the last axis must have length {num}, one law "
                f"for each of the coordinates {list(constraint.names)}: give its parameters that shape."
            )
        self.base, self.constraint = base, constraint
        super().__init__(base.batch_shape[:-1], (num,), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)  # pyright: ignore[reportArgumentType]
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The vectors that keep the statements."""
        return self.constraint

    def _law(self, kind: int, where: np.ndarray, low: Array, high: Array) -> Any:
        """The truncated laws of some coordinates, which have the same kind of bounds."""
        shape = self.base.batch_shape
        parameters = {
            name: jnp.broadcast_to(getattr(self.base, name), shape)[..., where]
            for name in self.base.arg_constraints
        }
        law = type(self.base)(**parameters, validate_args=False)
        if KINDS[kind] == "free":
            return law
        ends = {}
        if KINDS[kind] in ("lower", "both"):
            ends["low"] = low
        if KINDS[kind] in ("upper", "both"):
            ends["high"] = high
        return dist.TruncatedDistribution(law, **ends, validate_args=False)

    def _walk(self, x: Array, key: Key | None) -> tuple[Array, Array]:
        """Draw the coordinates in turn, or with `key=None` score those of x: vectors and log-density."""
        total = lost = jnp.zeros(x.shape[:-1], x.dtype)
        for stage in self.constraint.stages:
            if isinstance(stage, Fixed):
                value = stage.values(x)
                if key is not None:
                    x = x.at[..., stage.coordinates].set(value)
                continue
            low, high = stage.interval(x)
            rounding = stage.rounding(x)
            for kind in np.unique(stage.kinds):
                of_kind = np.flatnonzero(stage.kinds == kind)
                where = stage.coordinates[of_kind]
                law = self._law(int(kind), where, low[..., of_kind], high[..., of_kind])
                if key is not None:
                    key, use = jax.random.split(key)
                    num_more = len(x.shape[:-1]) - len(law.batch_shape[:-1])
                    drawn = law.sample(use, x.shape[:num_more])
                    # An interval of a few units in the last place rounds to its ends.
                    drawn = jnp.clip(drawn, low[..., of_kind], high[..., of_kind])
                    x = x.at[..., where].set(drawn)
                else:
                    within = jnp.clip(x[..., where], low[..., of_kind], high[..., of_kind])
                    total = total + law.log_prob(within).sum(-1)
                    # The log-mass of a window moves with an end as the law's density there.
                    for name, off in zip(("low", "high"), rounding, strict=True):
                        if hasattr(law, name):
                            end = jax.lax.stop_gradient(law.log_prob(getattr(law, name)))
                            lost = lost + (jnp.exp(end) * off[..., of_kind]).sum(-1)
        return x, jnp.where(lost <= MAX_LOST, total, jnp.nan)

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """By inverse distribution functions, one stage of coordinates after the other."""
        start = jnp.zeros(
            (*sample_shape, *self.batch_shape, *self.event_shape), self.base.mean.dtype
        )
        return self._walk(start, key)[0]

    def log_prob(self, value: Array) -> Array:
        """The sum of the truncated laws' log-densities; -inf where a statement fails."""
        value = jnp.asarray(value, jnp.result_type(float, value))
        shape = jnp.broadcast_shapes(value.shape, (*self.batch_shape, *self.event_shape))
        value = jnp.broadcast_to(value, shape)
        inside = self.constraint(value)
        # Outside, a point inside takes the value's place, so that derivatives stay finite.
        safe = jnp.where(inside[..., None], value, self.constraint.feasible_like(value))
        return jnp.where(inside, self._walk(safe, None)[1], -jnp.inf)
