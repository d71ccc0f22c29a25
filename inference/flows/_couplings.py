"""Coupling layers: some coordinates are moved by an elementwise curve whose parameters a network makes of the others.

A density asks a layer for a value and then for the derivative there, with a network's numbers in both: they are made once.
"""

from __future__ import annotations

import abc
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from ...ppl._compat import trace_state
from ._splines import Knots

Array = jax.Array
_LARGEST_LOG_SCALE = (
    3.0  # of one layer: exp of more than that is a step too far for float32 over several layers
)


class Coupling[Curve](Transform):
    """Abstract: y = x where `kept`, else f(x; net([x where kept, context])), coordinate by coordinate.

    Args:
        net: from R^max(k + c, 1) to R^(m (d - k)), k coordinates being kept, m numbers for each of the others. A single 1 goes
            in where there is neither a kept coordinate nor a context.
        kept: booleans [d], NumPy.
        context: what the law depends on, [*batch, c], or None.
    """

    domain = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    codomain = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    # Of the latest inverse: the state of tracing, the x, and the curve. Intermediates are those of a draw alone.
    _latest: tuple[PyTree, Array, Curve] | None = None

    def __init__(self, net: object, kept: np.ndarray, context: Array | None = None) -> None:
        self.net, self.kept, self.context = net, kept, context
        self._moved = np.flatnonzero(~kept)

    @abc.abstractmethod
    def curve_of(self, numbers: Array) -> Curve:
        """The parameters of f, arrays [*batch, d - k, ...], made of a network's numbers [*batch, d - k, m]."""

    @abc.abstractmethod
    def move(self, x: Array, curve: Curve) -> Array:
        """Values f(x), [*batch, d - k]."""

    @abc.abstractmethod
    def move_back(self, y: Array, curve: Curve) -> Array:
        """The inverse of `move`."""

    @abc.abstractmethod
    def log_derivatives(self, x: Array, curve: Curve) -> Array:
        """The logarithm of f'(x), [*batch, d - k]."""

    def __call__(self, x: Array) -> Array:
        """The value y of a draw x, [*batch, d]."""
        return self.call_with_intermediates(x)[0]

    def call_with_intermediates(self, x: Array) -> tuple[Array, Curve]:
        """The value y of a draw x, [*batch, d], and the curve."""
        curve = self.curve_of(self._numbers(x))
        return self._put(x, self.move(x[..., self._moved], curve)), curve

    def _inverse(self, y: Array) -> Array:
        curve = self.curve_of(self._numbers(y))
        x = self._put(y, self.move_back(y[..., self._moved], curve))
        self._latest = trace_state(), x, curve
        return x

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Curve | None = None) -> Array:
        """The sum of log f', [*batch]."""
        latest, self._latest = self._latest, None  # no tracer stays here
        if intermediates is not None:
            curve = intermediates
        elif latest is not None and latest[1] is x and latest[0] == trace_state():
            curve = latest[2]
        else:
            curve = self.curve_of(self._numbers(x))
        return self.log_derivatives(x[..., self._moved], curve).sum(-1)

    def __getstate__(self) -> dict[str, PyTree]:
        """For copies and files, without the latest curve."""
        return {**super().__getstate__(), "_latest": None}

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


class AffineCurve(NamedTuple):
    """x exp(log_scale) + shift."""

    log_scale: Array
    shift: Array


class AffineCoupling(Coupling[AffineCurve]):
    """y = x where `kept`, else x exp(s) + t with s, t = net([x where kept, context]), s = 3 tanh(s' / 3).

    Args:
        net: from R^max(k + c, 1) to R^(2 (d - k)), k coordinates being kept: s' and t of each of the others.
        kept: booleans [d], NumPy.
        context: what the law depends on, [*batch, c], or None.

    Reference: Dinh, Sohl-Dickstein and Bengio 2017, arXiv:1605.08803, equations 7 and 8.
    """

    def curve_of(self, numbers: Array) -> AffineCurve:
        """See `Coupling`."""
        log_scale = _LARGEST_LOG_SCALE * jnp.tanh(numbers[..., 0] / _LARGEST_LOG_SCALE)
        return AffineCurve(log_scale, numbers[..., 1])

    def move(self, x: Array, curve: AffineCurve) -> Array:
        """See `Coupling`."""
        return x * jnp.exp(curve.log_scale) + curve.shift

    def move_back(self, y: Array, curve: AffineCurve) -> Array:
        """See `Coupling`."""
        return (y - curve.shift) * jnp.exp(-curve.log_scale)

    def log_derivatives(self, x: Array, curve: AffineCurve) -> Array:
        """See `Coupling`."""
        return curve.log_scale


class SplineCoupling(Coupling[Knots]):
    """y = x where `kept`, else s(x), a monotone rational-quadratic spline of K bins on [-5, 5] and the identity outside.

    Args:
        net: from R^max(k + c, 1) to R^((3 K - 1) (d - k)), k coordinates being kept: of each of the others K widths, K heights
            and K - 1 derivatives, unconstrained. All zero is the identity.
        kept: booleans [d], NumPy.
        context: what the law depends on, [*batch, c], or None.

    Reference: Durkan, Bekasov, Murray and Papamakarios 2019, arXiv:1906.04032, section 3.1.
    """

    def curve_of(self, numbers: Array) -> Knots:
        """See `Coupling`."""
        return Knots.of(numbers)

    def move(self, x: Array, curve: Knots) -> Array:
        """See `Coupling`."""
        return curve.value(x)

    def move_back(self, y: Array, curve: Knots) -> Array:
        """See `Coupling`."""
        return curve.inverse(y)

    def log_derivatives(self, x: Array, curve: Knots) -> Array:
        """See `Coupling`."""
        return curve.log_derivative(x)
