"""The bounds of all coordinates as arrays: those that do not depend on each other are found at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ..._precision import full_precision
from ._elimination import LinearBound, Solved

Array = jax.Array
KINDS = ("free", "lower", "upper", "both")
MAX_LOST = 0.1  # nats that rounding of ends may make of a density


@dataclass(frozen=True, eq=False)
class Stage:
    """Coordinates whose bounds depend on those of earlier stages only.

    A bound is the greatest of `weights @ x + constants` for `lower`, the least for `upper`; a coordinate with fewer rows than
    others has rows of an infinite constant.
    """

    coordinates: np.ndarray  # (m,)
    kinds: np.ndarray  # (m,), indices of KINDS
    lower: tuple[np.ndarray, np.ndarray]  # weights (m, rows, D), constants (m, rows)
    upper: tuple[np.ndarray, np.ndarray]

    def interval(self, x: Array) -> tuple[Array, Array]:
        """Ends of shape (..., m) given x, of which coordinates of earlier stages are read; infinite where there is none."""
        return self._end(x, self.lower, -np.inf), self._end(x, self.upper, np.inf)

    def rounding(self, x: Array) -> tuple[Array, Array]:
        """What rounding may make of the ends, shape (..., m): of a sum half a unit in the last place of each term."""
        x = jnp.abs(jax.lax.stop_gradient(x))
        return tuple(self._end(x, _units(rows, x.dtype), 0.0) for rows in (self.lower, self.upper))  # pyright: ignore[reportReturnType]

    @full_precision
    def _end(self, x: Array, rows: tuple[np.ndarray, np.ndarray], none: float) -> Array:
        weights, constants = rows
        if not constants.shape[1]:
            return jnp.full((*x.shape[:-1], len(self.coordinates)), none, x.dtype)
        values = jnp.einsum("...d,mrd->...mr", x, weights.astype(x.dtype)) + constants.astype(
            x.dtype
        )
        return values.min(-1) if none > 0 else values.max(-1)


def _units(rows: tuple[np.ndarray, np.ndarray], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The rows of what rounding may make of rows; a constant by itself is rounded once, and that is known."""
    weights, constants = rows
    eps = 0.5 * float(jnp.finfo(dtype).eps)
    constants = np.where(np.isfinite(constants), constants, 0.0)
    alone = np.abs(constants - constants.astype(dtype))
    return eps * np.abs(weights), np.where(weights.any(-1), eps * np.abs(constants), alone)


@dataclass(frozen=True, eq=False)
class Fixed:
    """Coordinates that equalities give: x = weights @ x + constants."""

    coordinates: np.ndarray
    weights: np.ndarray  # (m, D)
    constants: np.ndarray  # (m,)

    @full_precision
    def values(self, x: Array) -> Array:
        """Shape (..., m) given x, of which coordinates of earlier stages are read."""
        return x @ self.weights.T.astype(x.dtype) + self.constants.astype(x.dtype)


def stages_of(solved: Sequence[Solved], num: int) -> list[Stage | Fixed]:
    """Coordinates in stages, in an order in which each reads earlier ones only."""
    depth: dict[int, int] = {}
    grouped: dict[tuple[int, bool], list[Solved]] = {}
    for one in solved:
        bounds = (one.fixed,) if one.fixed else (*one.lower, *one.upper)
        read = {j for bound in bounds for j in bound.weights}
        depth[one.coordinate] = 1 + max((depth[j] for j in read), default=-1)
        grouped.setdefault((depth[one.coordinate], one.fixed is not None), []).append(one)
    return [
        _fixed(group, num) if is_fixed else _stage(group, num)
        for (_, is_fixed), group in sorted(grouped.items(), key=lambda item: item[0])
    ]


def _stage(group: list[Solved], num: int) -> Stage:
    kinds = np.array([bool(one.lower) + 2 * bool(one.upper) for one in group])
    return Stage(
        np.array([one.coordinate for one in group], np.int32),
        kinds,
        _rows([one.lower for one in group], num, -np.inf),
        _rows([one.upper for one in group], num, np.inf),
    )


def _fixed(group: list[Solved], num: int) -> Fixed:
    weights, constants = _rows([(one.fixed,) for one in group if one.fixed], num, 0.0)
    return Fixed(
        np.array([one.coordinate for one in group], np.int32), weights[:, 0], constants[:, 0]
    )


def _rows(
    bounds: Sequence[Sequence[LinearBound]], num: int, none: float
) -> tuple[np.ndarray, np.ndarray]:
    most = max(len(rows) for rows in bounds)
    weights, constants = np.zeros((len(bounds), most, num)), np.full((len(bounds), most), none)
    for i, rows in enumerate(bounds):
        for r, bound in enumerate(rows):
            constants[i, r] = float(bound.constant)
            for j, weight in bound.weights.items():
                weights[i, r, j] = float(weight)
    return weights, constants
