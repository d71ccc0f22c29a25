"""The set of vectors that keep linear statements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from numpyro.distributions import constraints

from ..._precision import full_precision
from ._bounds import Fixed, Stage, stages_of
from ._elimination import solve
from ._statements import Row, Statement, rows_of, rows_of_matrix
from ._triangular import solved

Array = jax.Array


class LinearConstraints(constraints.Constraint):
    """Vectors x whose coordinates keep linear statements: sum_i w_i x_i >= c, >, <=, < or ==.

    Statements are solved for one coordinate after the other, so that x_i lies between bounds that are affine in those before it:

        max_r (l_r' x_{<i} + a_r)  <=  x_i  <=  min_r (u_r' x_{<i} + b_r).

    Three things can be made of them, under three names:

    - a *bijection* from free numbers, registered with NumPyro's `biject_to`, so that it serves as the constraint of a parameter,
      as the support of an `ImproperUniform`, and under NUTS and guides: softplus away from one bound, sigmoid between two;
    - a *law*, `TruncatedInTurn`, which truncates a coordinate at a time and is normalised;
    - a *projection*, `project`, which clamps a coordinate at a time. It leaves atoms on the faces and has no density: it is for
      what is drawn, never for what is scored.

    Args:
        statements: texts such as `"a + 2 * b >= c"`, `"0 <= a <= 1"`, `"a == b"`, or tuples such as
            `({"a": 1, "b": 2}, ">=", 0.5)`, where names may be any strings.
        names: the coordinates' names, as long as x.
        order: the names in the order in which coordinates are given bounds; by default as in `names`. Any order gives the same
            set, another bijection, another truncated law and another projection.

    Raises:
        ValueError: a statement is not linear or names an unknown coordinate; no vector keeps all of them (with the sum of
            statements that proves it); some can only hold with equality; elimination makes too many rows.

    Validity:
        Bounds are exact (fractions) and evaluated in floating point: a statement holds up to `margin`, 8 units in the last place
        of |c| + sum_i |w_i x_i|; relations between two coordinates of weights 1 hold exactly. Strict and weak inequalities have
        the same density. An equality takes away a coordinate, and densities are with respect to those left.
        Source: Stoian et al. 2024 (ICLR, "How realistic is your synthetic data? Constraining deep generative models for tabular
        data"), with the constants of weighted eliminations, cancelled terms and strictness of either side right.

    Example:
        >>> from lapilli import ppl
        >>> import jax.numpy as jnp
        >>> inside = ppl.distributions.LinearConstraints(["0 <= mean <= worst", "worst <= 10"], names=["mean", "worst"])
        >>> inside(jnp.array([[1.0, 2.0], [3.0, 2.0]])).tolist()
        [True, False]
        >>> inside.project(jnp.array([3.0, 2.0])).tolist()
        [3.0, 3.0]
    """

    event_dim = 1

    def __init__(
        self,
        statements: Sequence[Statement],
        names: Sequence[str],
        *,
        order: Sequence[str] | None = None,
    ) -> None:
        self._set(rows_of(statements, _different(names)), tuple(names), order)

    @classmethod
    def from_matrix(
        cls,
        weights: np.ndarray,
        bounds: list[float] | np.ndarray,
        *,
        names: Sequence[str] | None = None,
        order: Sequence[str] | None = None,
    ) -> LinearConstraints:
        """Vectors with W x >= c.

        Args:
            weights: W of shape (rows, coordinates).
            bounds: c, one number per row.
            names: as in the class; "x0", "x1", ... by default.
            order: as in the class.

        Returns:
            The constraint.

        Raises:
            ValueError: shapes that do not fit or numbers that are not finite; otherwise as in the class.
        """
        num = np.shape(weights)[-1] if np.ndim(weights) == 2 else 0
        names = tuple(names) if names is not None else tuple(f"x{i}" for i in range(num))
        self = cls.__new__(cls)
        self._set(rows_of_matrix(weights, bounds, _different(names)), names, order)
        return self

    def _set(self, rows: list[Row], names: tuple[str, ...], order: Sequence[str] | None) -> None:
        order = tuple(order) if order is not None else names
        if sorted(order) != sorted(names):
            raise ValueError(
                f"LinearConstraints: order={list(order)} is no arrangement of the coordinates {list(names)}: name each once."
            )
        self.names, self.rows, self.order = names, tuple(rows), order
        solved = solve(rows, names, [names.index(name) for name in order])
        self.stages: list[Stage | Fixed] = stages_of(solved, len(names))

    @property
    def num_free(self) -> int:
        """How many coordinates equalities leave."""
        return sum(len(stage.coordinates) for stage in self.stages if isinstance(stage, Stage))

    def bounds(self, x: Array) -> tuple[Array, Array]:
        """The ends between which each coordinate lies, given those before it.

        Args:
            x: shape (..., D).

        Returns:
            Lower and upper ends of shape (..., D), infinite where there is none; both the value itself where an equality gives
            it.
        """
        x = self._vector(x)
        low = high = x
        for stage in self.stages:
            if isinstance(stage, Fixed):
                value = stage.values(x)
                ends = value, value
            else:
                ends = stage.interval(x)
            low = low.at[..., stage.coordinates].set(ends[0])
            high = high.at[..., stage.coordinates].set(ends[1])
        return low, high

    def project(self, x: Array) -> Array:
        """Clamp one coordinate after the other between its bounds, given the clamped ones before it.

        Args:
            x: shape (..., D).

        Returns:
            Vectors that keep all statements (the strict ones weakly); x itself where it keeps them.

        Validity:
            Not the nearest point of the set. It moves mass onto faces: the law of what it returns has no density.
        """
        x = self._vector(x)
        for stage in self.stages:
            if isinstance(stage, Fixed):
                new = stage.values(x)
            else:
                low, high = stage.interval(x)
                new = jnp.minimum(jnp.maximum(x[..., stage.coordinates], low), high)
            x = x.at[..., stage.coordinates].set(new)
        return x

    @full_precision
    def shortfall(self, x: Array) -> Array:
        """By how much statements fail, beyond what rounding explains.

        Args:
            x: shape (..., D).

        Returns:
            Shape (..., statements): max(0, c - w'x - margin), |c - w'x| in place of the difference for an equality. A text with
            two relations counts as two statements.
        """
        x = self._vector(x)
        weights = np.array([[float(w) for w in row.weights] for row in self.rows], x.dtype)
        constants = np.array([float(row.constant) for row in self.rows], x.dtype)
        if not self.rows:
            return jnp.zeros((*x.shape[:-1], 0), x.dtype)
        gap = constants - x @ weights.T
        gap = jnp.where(np.array([row.is_equality for row in self.rows]), jnp.abs(gap), gap)
        margin = 8 * jnp.finfo(x.dtype).eps * (np.abs(constants) + jnp.abs(x) @ np.abs(weights).T)
        return jnp.maximum(gap - margin, 0.0)

    def __call__(self, x: Array) -> Array:
        """Whether vectors of shape (..., D) keep all statements, up to rounding."""
        x = jnp.asarray(x)
        if x.ndim < 1 or x.shape[-1] != len(self.names):
            return jnp.zeros(x.shape[:-1], bool)
        return (self.shortfall(x) == 0).all(-1) & jnp.isfinite(x).all(-1)

    def feasible_like(self, prototype: Array) -> Array:
        """What the bijection makes of zeros."""
        zeros = jnp.zeros(self.num_free, jnp.result_type(float, prototype))
        _, inside, _ = solved(self.stages, len(self.names), zeros, None)
        return jnp.broadcast_to(inside, jnp.shape(prototype))

    def _vector(self, x: Array) -> Array:
        x = jnp.asarray(x, jnp.result_type(float, x))
        if x.ndim < 1 or x.shape[-1] != len(self.names):
            raise ValueError(
                f"LinearConstraints: an array of shape {x.shape} for the {len(self.names)} coordinates {list(self.names)}: "
                "put the coordinates along the last axis."
            )
        return x

    def __repr__(self) -> str:
        texts = list(dict.fromkeys(row.text for row in self.rows))
        shown = texts if len(texts) <= 6 else [*texts[:5], f"... {len(texts) - 5} more"]
        return f"LinearConstraints({', '.join(shown)})"

    def tree_flatten(self) -> PyTree:
        return (), (
            (),
            {"names": self.names, "rows": self.rows, "order": self.order, "stages": self.stages},
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LinearConstraints) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> Any:
        return self.names, self.rows, self.order


def _different(names: Sequence[str]) -> Sequence[str]:
    twice = next((name for i, name in enumerate(names) if name in list(names)[:i]), None)
    if twice is not None:
        raise ValueError(
            f"LinearConstraints: two coordinates are called {twice!r}: give each a name of its own."
        )
    return names
