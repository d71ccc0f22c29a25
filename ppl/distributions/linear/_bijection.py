"""Free numbers to vectors that keep linear statements, one coordinate after the other."""

from __future__ import annotations

import jax
from jaxtyping import ArrayLike, PyTree
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform, biject_to

from ._constraint import LinearConstraints
from ._triangular import solved

Array = jax.Array


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
    def codomain(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The set of vectors."""
        return self.constraint

    def _solved(self, u: PyTree, x: PyTree) -> tuple[Array, Array, Array]:
        return solved(self.constraint.stages, len(self.constraint.names), u, x)

    def __call__(self, x: Array) -> Array:
        return self._solved(x, None)[1]

    def _inverse(self, y: ArrayLike) -> Array:
        return self._solved(None, y)[0]

    def log_abs_det_jacobian(self, x: Array, y: ArrayLike, intermediates: PyTree = None) -> Array:
        return self._solved(x, None)[2].sum(-1)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], len(self.constraint.names))

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], self.constraint.num_free)

    def tree_flatten(self) -> PyTree:
        return (), ((), {"constraint": self.constraint})

    def eq(self, other: object, static: bool = False) -> bool:
        return isinstance(other, TriangularTransform) and self.constraint == other.constraint

    __eq__ = eq

    def __hash__(self) -> int:
        return hash((TriangularTransform, self.constraint))


biject_to.register(LinearConstraints, TriangularTransform)
