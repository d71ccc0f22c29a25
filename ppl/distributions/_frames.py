"""Orthonormal columns: a constraint for parameters, and the uniform law of such frames as a prior.

A frame is a matrix W of shape (d, n), n < d, with W'W = 1. It is made of n free vectors v_1, ..., v_n of lengths d, d - 1, ... by
reflections (Householder 1958): with r(v) the reflection that maps the first axis to v / |v|,

    W(v_1, ..., v_n) = r(v_1) [1, 0; 0, W(v_2, ..., v_n)],    first column v_1 / |v_1|.

Standard normal vectors make W uniform (Stewart 1980, SIAM J. Numer. Anal. 17, 403). Their lengths have no say in W: under a prior
on frames they keep their own law, so that the density of v is that of W times normal ones, and an integral over v is one over W.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PyTree
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform, biject_to

from .._precision import full_precision
from .._types import Key

Array = jax.Array


class Orthonormal(constraints.Constraint):
    """Matrices of shape (d, n) with orthonormal columns, n < d.

    Args:
        d: number of rows.
        n: number of columns.

    Raises:
        ValueError: n is not between 1 and d - 1. (A square one has a sign that no path of parameters changes: leave its last
            column out.)

    Example:
        >>> from lapilli import ppl
        >>> import jax, jax.numpy as jnp
        >>> constraint = ppl.distributions.Orthonormal(4, 2)
        >>> program = ppl.model(lambda: ppl.param("w", jnp.eye(4, 2), constraint=constraint))
        >>> w = program.simulate(jax.random.key(0)).retval
        >>> bool(jnp.allclose(w.T @ w, jnp.eye(2), atol=1e-6))
        True
    """

    event_dim = 2

    def __init__(self, d: int, n: int) -> None:
        if not 1 <= n < d:
            raise ValueError(
                f"Orthonormal({d}, {n}): the number of columns must be at least 1 and less than the number of rows. For a square "
                "matrix leave the last column out: it is given by the others up to its sign."
            )
        self.d, self.n = d, n

    @full_precision
    def __call__(self, x: Array) -> Array:
        x = jnp.asarray(x)
        if x.shape[-2:] != (self.d, self.n):
            return jnp.zeros(x.shape[:-2], bool)
        away = jnp.abs(x.mT @ x - jnp.eye(self.n, dtype=x.dtype)).max((-2, -1))
        return away < 1e2 * math.sqrt(self.d) * jnp.finfo(x.dtype).eps

    def feasible_like(self, prototype: Array) -> Array:
        """The first columns of the unit matrix."""
        unit = jnp.eye(self.d, self.n, dtype=jnp.result_type(float, prototype))
        return jnp.broadcast_to(unit, jnp.shape(prototype))

    def tree_flatten(self) -> PyTree:
        return (), ((), {"d": self.d, "n": self.n})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Orthonormal) and (self.d, self.n) == (other.d, other.n)

    def __hash__(self) -> int:
        return hash((Orthonormal, self.d, self.n))


class FrameTransform(Transform):
    """Free vectors, one after the other, to the frame that they make."""

    domain = constraints.real_vector  # pyright: ignore[reportAssignmentType]

    def __init__(self, d: int, n: int) -> None:
        self.d, self.n = d, n
        self.lengths = [d - i for i in range(n)]

    @property
    def codomain(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Frames."""
        return Orthonormal(self.d, self.n)

    def _parts(self, x: Array) -> list[Array]:
        starts = [sum(self.lengths[:i]) for i in range(1, self.n)]
        return jnp.split(x, starts, -1)

    def __call__(self, x: Array) -> Array:
        frame = None
        for v in reversed(self._parts(x)):
            v = v / jnp.linalg.norm(v, axis=-1, keepdims=True)
            if frame is None:
                frame = v[..., None]
                continue
            above = jnp.zeros((*v.shape[:-1], 1, frame.shape[-1]), v.dtype)
            rest = _reflected(v, jnp.concatenate([above, frame], -2))
            frame = jnp.concatenate([v[..., None], rest], -1)
        assert frame is not None
        return frame

    def _inverse(self, y: Array) -> Array:
        found, frame = [], jnp.asarray(y)
        for length in self.lengths:
            v = frame[..., 0]
            found.append(math.sqrt(length) * v)  # the length that a normal vector has
            frame = _reflected(v, frame[..., 1:])[..., 1:, :]
        return jnp.concatenate(found, -1)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: PyTree = None) -> Array:
        """The log-density of standard normal vectors: that of x under the uniform law of y, see the head of this file."""
        return -0.5 * (x**2).sum(-1) - 0.5 * x.shape[-1] * math.log(2 * math.pi)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], self.d, self.n)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-2], sum(self.lengths))

    def tree_flatten(self) -> PyTree:
        return (), ((), {"d": self.d, "n": self.n, "lengths": self.lengths})

    def eq(self, other: object, static: bool = False) -> bool:
        return isinstance(other, FrameTransform) and (self.d, self.n) == (other.d, other.n)

    __eq__ = eq

    def __hash__(self) -> int:
        return hash((FrameTransform, self.d, self.n))


def _reflected(v: Array, x: Array) -> Array:
    """The columns of x, reflected by -(1 - 2 u u' / u'u), u = v + first axis: it maps the first axis to v, |v| = 1.

    u is 0 at the one point v = -(first axis), of which nothing is drawn.
    """
    u = v.at[..., 0].add(1.0)
    scale = 2 / (u**2).sum(-1)
    return scale[..., None, None] * u[..., None] * (u[..., None] * x).sum(-2, keepdims=True) - x


class UniformFrames(dist.Distribution):
    """The uniform law of matrices with orthonormal columns (Haar's on the Stiefel manifold).

    The density is that with respect to itself, so that the log-density is 0 on frames.

    Args:
        d: number of rows.
        n: number of columns, less than d.

    Raises:
        ValueError: n is not between 1 and d - 1.

    Example:
        Principal components with a prior on directions: the uniform law, and weights of their own.

        >>> from lapilli import ppl
        >>> import jax
        >>> law = ppl.distributions.UniformFrames(5, 2)
        >>> w = law.sample(jax.random.key(0))
        >>> w.shape, float(law.log_prob(w))
        ((5, 2), 0.0)
    """

    arg_constraints = {}
    pytree_aux_fields = ("d", "n")

    def __init__(self, d: int, n: int, *, validate_args: bool | None = None) -> None:
        self.d, self.n = d, n
        Orthonormal(d, n)  # refuses what is none
        super().__init__((), (d, n), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=2)  # pyright: ignore[reportArgumentType]
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Frames."""
        return Orthonormal(self.d, self.n)

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """By reflections of normal vectors."""
        transform = FrameTransform(self.d, self.n)
        return transform(jax.random.normal(key, (*sample_shape, sum(transform.lengths))))

    def log_prob(self, value: Array) -> Array:
        """0 on frames, -inf elsewhere."""
        return jnp.where(Orthonormal(self.d, self.n)(value), 0.0, -jnp.inf)


biject_to.register(Orthonormal, lambda constraint: FrameTransform(constraint.d, constraint.n))
