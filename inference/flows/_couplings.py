"""Coupling layers: some coordinates are moved by an elementwise map whose parameters a network makes of the others."""

from __future__ import annotations

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from ._splines import Knots

Array = jax.Array
_LARGEST_LOG_SCALE = (
    3.0  # of one layer: exp of more than that is a step too far for float32 over several layers
)


class Coupling(Transform):
    """Abstract: y = x where `kept`, else f(x; net([x where kept, context])), coordinate by coordinate.

    Args:
        net: from R^max(k + c, 1) to R^(m (d - k)), k coordinates being kept, m numbers for each of the others. A single 1 goes
            in where there is neither a kept coordinate nor a context.
        kept: booleans [d], NumPy.
        context: what the law depends on, [*batch, c], or None.
    """

    domain = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    codomain = constraints.real_vector  # pyright: ignore[reportAssignmentType]

    def __init__(self, net: object, kept: np.ndarray, context: Array | None = None) -> None:
        self.net, self.kept, self.context = net, kept, context
        self._moved = np.flatnonzero(~kept)

    @abc.abstractmethod
    def move(self, x: Array, numbers: Array) -> Array:
        """Values f(x), [*batch, d - k], of numbers [*batch, d - k, m]."""

    @abc.abstractmethod
    def move_back(self, y: Array, numbers: Array) -> Array:
        """The inverse of `move`."""

    @abc.abstractmethod
    def log_derivatives(self, x: Array, numbers: Array) -> Array:
        """The logarithm of f'(x), [*batch, d - k]."""

    def __call__(self, x: Array) -> Array:
        """The value y of a draw x, [*batch, d]."""
        return self._put(x, self.move(x[..., self._moved], self._numbers(x)))

    def _inverse(self, y: Array) -> Array:
        return self._put(y, self.move_back(y[..., self._moved], self._numbers(y)))

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: PyTree = None) -> Array:
        """The sum of log f', [*batch]."""
        return self.log_derivatives(x[..., self._moved], self._numbers(x)).sum(-1)

    def _put(self, x: Array, moved: Array) -> Array:
        whole = jnp.broadcast_to(x, (*moved.shape[:-1], x.shape[-1]))
        return whole.at[..., self._moved].set(moved)

    def _numbers(self, x: Array) -> Array:
        seen = x[..., np.flatnonzero(self.kept)]
        if self.context is not None:
            shape = np.broadcast_shapes(seen.shape[:-1], self.context.shape[:-1])
            parts = [jnp.broadcast_to(a, (*shape, a.shape[-1])) for a in (seen, self.context)]
            seen = jnp.concatenate(parts, -1)
        if seen.shape[-1] == 0:
            seen = jnp.ones((*seen.shape[:-1], 1))
        out = jnp.vectorize(self.net, signature="(i)->(o)")(seen)
        return jnp.moveaxis(out.reshape(*out.shape[:-1], -1, len(self._moved)), -2, -1)

    def tree_flatten(self) -> PyTree:
        """Arrays and structure, as of NumPyro's transforms."""
        arrays, static = eqx.partition(self.net, eqx.is_array)
        names = ("arrays", "context")
        return (arrays, self.context), (names, {"static": static, "kept": tuple(self.kept)})

    @classmethod
    def tree_unflatten(cls, aux: PyTree, leaves: PyTree) -> Coupling:
        """The inverse of `tree_flatten`."""
        arrays, context = leaves
        known = aux[1]
        return cls(eqx.combine(arrays, known["static"]), np.array(known["kept"]), context)


class AffineCoupling(Coupling):
    """y = x where `kept`, else x exp(s) + t with s, t = net([x where kept, context]), s = 3 tanh(s' / 3).

    Args:
        net: from R^max(k + c, 1) to R^(2 (d - k)), k coordinates being kept: s' and t of each of the others.
        kept: booleans [d], NumPy.
        context: what the law depends on, [*batch, c], or None.

    Reference: Dinh, Sohl-Dickstein and Bengio 2017, arXiv:1605.08803, equations 7 and 8.
    """

    def move(self, x: Array, numbers: Array) -> Array:
        """See `Coupling`."""
        return x * jnp.exp(self.log_derivatives(x, numbers)) + numbers[..., 1]

    def move_back(self, y: Array, numbers: Array) -> Array:
        """See `Coupling`."""
        return (y - numbers[..., 1]) * jnp.exp(-self.log_derivatives(y, numbers))

    def log_derivatives(self, x: Array, numbers: Array) -> Array:
        """See `Coupling`."""
        return _LARGEST_LOG_SCALE * jnp.tanh(numbers[..., 0] / _LARGEST_LOG_SCALE)


class SplineCoupling(Coupling):
    """y = x where `kept`, else s(x), a monotone rational-quadratic spline of K bins on [-5, 5] and the identity outside.

    Args:
        net: from R^max(k + c, 1) to R^((3 K - 1) (d - k)), k coordinates being kept: of each of the others K widths, K heights
            and K - 1 derivatives, unconstrained. All zero is the identity.
        kept: booleans [d], NumPy.
        context: what the law depends on, [*batch, c], or None.

    Reference: Durkan, Bekasov, Murray and Papamakarios 2019, arXiv:1906.04032, section 3.1.
    """

    def move(self, x: Array, numbers: Array) -> Array:
        """See `Coupling`."""
        return Knots.of(numbers).value(x)

    def move_back(self, y: Array, numbers: Array) -> Array:
        """See `Coupling`."""
        return Knots.of(numbers).inverse(y)

    def log_derivatives(self, x: Array, numbers: Array) -> Array:
        """See `Coupling`."""
        return Knots.of(numbers).log_derivative(x)
