"""Free numbers to vectors that keep linear statements, one coordinate after the other."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform, biject_to

from ._bounds import KINDS, Fixed
from ._constraint import LinearConstraints

Array = jax.Array
_FREE, _LOWER, _UPPER, _BOTH = range(len(KINDS))


class TriangularTransform(Transform):
    """x_i = l_i + softplus(u_i), h_i - softplus(-u_i), l_i + (h_i - l_i) sigmoid(u_i) or u_i, bounds l_i, h_i given x_{<i}.

    Args:
        constraint: the set of vectors.

    Validity:
        The Jacobian is triangular: log|det| is the sum of log dx_i / du_i. All increasing.
    """

    domain = constraints.real_vector  # pyright: ignore[reportAssignmentType]

    def __init__(self, constraint: LinearConstraints) -> None:
        self.constraint = constraint

    @property
    def codomain(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The set of vectors."""
        return self.constraint

    def _run(self, u: Array | None, x: Array | None) -> tuple[Array, Array, Array]:
        """Both from one: u (..., free), x (..., D) and log dx / du (..., free)."""
        given = u if u is not None else x
        assert given is not None
        given = jnp.asarray(given, jnp.result_type(float, given))
        batch = given.shape[:-1]
        made = jnp.zeros((*batch, len(self.constraint.names)), given.dtype) if x is None else given
        frees, slopes, at = [], [], 0
        for stage in self.constraint.stages:
            where = stage.coordinates
            if isinstance(stage, Fixed):
                if x is None:
                    value = stage.values(made)
                    made = made.at[..., where].set(value)
                continue
            low, high = stage.interval(made)
            kinds = stage.kinds
            # Infinite ends stay out of what is differentiated.
            low = jnp.where((kinds == _LOWER) | (kinds == _BOTH), low, 0.0)
            high = jnp.where((kinds == _UPPER) | (kinds == _BOTH), high, 1.0)
            if x is None:
                free = given[..., at : at + len(where)]
                at += len(where)
                made = made.at[..., where].set(_forward(kinds, free, low, high))
            else:
                free = _backward(kinds, made[..., where], low, high)
            frees.append(free)
            slopes.append(_log_slope(kinds, free, low, high))
        empty = jnp.zeros((*batch, 0), given.dtype)
        return jnp.concatenate([empty, *frees], -1), made, jnp.concatenate([empty, *slopes], -1)

    def __call__(self, x: Any) -> Array:
        return self._run(x, None)[1]

    def _inverse(self, y: Any) -> Array:
        return self._run(None, y)[0]

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Array:
        return self._run(x, None)[2].sum(-1)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], len(self.constraint.names))

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], self.constraint.num_free)

    def tree_flatten(self) -> Any:
        return (), ((), {"constraint": self.constraint})

    def eq(self, other: object, static: bool = False) -> bool:
        return isinstance(other, TriangularTransform) and self.constraint == other.constraint

    __eq__ = eq

    def __hash__(self) -> int:
        return hash((TriangularTransform, self.constraint))


def _forward(kinds: Any, u: Array, low: Array, high: Array) -> Array:
    # From the nearer end, so that values do not round onto the other one.
    between = jnp.where(
        u < 0, low + (high - low) * jax.nn.sigmoid(u), high - (high - low) * jax.nn.sigmoid(-u)
    )
    cases = [u, low + jax.nn.softplus(u), high - jax.nn.softplus(-u), between]
    return jnp.select([kinds == kind for kind in range(len(KINDS))], cases)


def _backward(kinds: Any, x: Array, low: Array, high: Array) -> Array:
    def unsoftplus(y: Array) -> Array:
        return y + jnp.log(-jnp.expm1(-y))

    above = jnp.where(kinds == _LOWER, x - low, 1.0)
    under = jnp.where(kinds == _UPPER, high - x, 1.0)
    inside = kinds == _BOTH
    rise, fall = jnp.where(inside, x - low, 1.0), jnp.where(inside, high - x, 1.0)
    cases = [x, unsoftplus(above), -unsoftplus(under), jnp.log(rise) - jnp.log(fall)]
    return jnp.select([kinds == kind for kind in range(len(KINDS))], cases)


def _log_slope(kinds: Any, u: Array, low: Array, high: Array) -> Array:
    rising, falling = jax.nn.log_sigmoid(u), jax.nn.log_sigmoid(-u)
    width = jnp.log(jnp.where(kinds == _BOTH, high - low, 1.0))
    cases = [jnp.zeros_like(u), rising, falling, width + rising + falling]
    return jnp.select([kinds == kind for kind in range(len(KINDS))], cases)


biject_to.register(LinearConstraints, TriangularTransform)
