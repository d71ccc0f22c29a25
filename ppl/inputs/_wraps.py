"""Whole numbers that wrap round where a program computes with its arguments, as the square of 50,000 does in 32 bits.

Input: an equation, and what is known of its operands. Output: sums, differences, products (of matrices, too), powers and casts
that do not fit into their type. They may not count, as where a guard leaves them out: `heard` runs the program with other whole
numbers there. Unsigned numbers of 32 and 64 bits are those of hashes and random bits, which wrap on purpose; infinity as a whole
number is the largest one, and no accident of its type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._compat import Equation, aval_of, bind
from ._known import Known

_ELEMENTWISE: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "square": np.square,
}  # fmt: skip
_OVER_AXES: dict[str, Callable[..., np.ndarray]] = {"reduce_sum": np.sum, "reduce_prod": np.prod}
_ALONG: dict[str, Callable[..., np.ndarray]] = {"cumsum": np.cumsum, "cumprod": np.cumprod}
_NAMES = {
    *_ELEMENTWISE, *_OVER_AXES, *_ALONG, "integer_pow", "dot_general", "convert_element_type",
}  # fmt: skip


class Wrap(NamedTuple):
    """Whole numbers that do not fit into their type.

    Attributes:
        value: what the first should be.
        dtype: the type.
        place: of the first, behind the axes of steps.
        count: how many there are.
        inputs: numbers of the inputs from which they are computed.
        eqn: the equation that makes them.
    """

    value: float
    dtype: np.dtype
    place: tuple[int, ...]
    count: int
    inputs: frozenset[int]
    eqn: Equation

    @property
    def others(self) -> tuple[int, ...]:
        """Whole numbers to try in their place, small ones and large ones: a program may divide by a unit."""
        most = int(np.iinfo(self.dtype).max)
        return (0, 1, most // 2, most)

    def where(self, args: Sequence[Array], _: Array) -> Array:
        """Which results wrap, in a run."""
        wide = _in_real_numbers(self.eqn, [jnp.asarray(x, float) for x in args])
        ends = np.iinfo(self.dtype)
        return (wide < ends.min) | (wide > ends.max)


def wrapped(eqn: Equation, operands: Sequence[Known | None]) -> Iterator[Wrap]:
    """What wraps round in the result of one equation.

    Args:
        eqn: of a program.
        operands: what is known of its operands, see `walk`.
    """
    known = [o for o in operands if o is not None]
    if eqn.primitive.name not in _NAMES or len(known) < len(operands):
        return
    dtype = np.dtype(aval_of(eqn.outvars[0]).dtype)
    if dtype.kind not in "iu" or dtype.kind == "u" and dtype.itemsize >= 4:
        return
    if eqn.primitive.name == "convert_element_type" and np.can_cast(
        aval_of(eqn.invars[0]).dtype, dtype
    ):
        return
    wide, ends = _wide(eqn, known), np.iinfo(dtype)
    if wide is None:
        return
    beyond = np.isfinite(wide) & ((wide < ends.min) | (wide > ends.max))
    if not beyond.any():
        return
    place = tuple(int(i) for i in np.argwhere(beyond)[0])
    inputs = frozenset().union(*(o.inputs for o in known))
    yield Wrap(float(wide[place]), dtype, place, int(beyond.sum()), inputs, eqn)


def _wide(eqn: Equation, operands: Sequence[Known]) -> np.ndarray | None:
    """The result in double precision; None where steps of several scans meet."""
    name, depths = eqn.primitive.name, {o.depth for o in operands} - {0}
    if len(depths) > 1:
        return None
    values, depth = [o.value().astype(float) for o in operands], max(depths, default=0)
    if name in _ELEMENTWISE:
        return np.asarray(_ELEMENTWISE[name](*values))
    if name == "dot_general":
        return None if depth else _product(eqn, *values)
    (x,) = values
    if name == "convert_element_type":
        return x
    if name == "integer_pow":
        return x ** float(eqn.params["y"])
    if name in _OVER_AXES:
        return np.asarray(_OVER_AXES[name](x, tuple(a + depth for a in eqn.params["axes"])))
    axis = eqn.params["axis"] + depth
    x = np.flip(x, axis) if eqn.params["reverse"] else x
    found = _ALONG[name](x, axis)
    return np.flip(found, axis) if eqn.params["reverse"] else found


def _product(eqn: Equation, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product of two arrays over some axes: those of the batch, of the first and of the second in this order."""
    (over, over_too), (batch, batch_too) = eqn.params["dimension_numbers"]
    first, second = list(range(a.ndim)), list(range(a.ndim, a.ndim + b.ndim))
    for i, j in zip((*over, *batch), (*over_too, *batch_too), strict=True):
        second[j] = first[i]
    left = [i for i in first if i not in (*over, *batch)]
    right = [i for i in second if i >= a.ndim]
    return np.einsum(a, first, b, second, [first[i] for i in batch] + left + right, optimize=True)


def _in_real_numbers(eqn: Equation, args: Sequence[Array]) -> Array:
    """The result that an equation of whole numbers would have in real ones."""
    if eqn.primitive.name == "convert_element_type":
        return args[0]
    if eqn.primitive.name == "dot_general":
        first, second = args
        return jax.lax.dot_general(first, second, eqn.params["dimension_numbers"])
    return bind(eqn, list(args))[0]
