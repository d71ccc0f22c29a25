"""Arrays whose elements are all equal, carried along as one number.

An enumerated site whose rows separate takes one value in all rows of a state. What is looked up there, `means[k]` or the
log-probability of class k, is then one slice of the table instead of one element a row, and so is its derivative: XLA
does not find out by itself. The number stays one through elementwise operations on such arrays and numbers and through changes of
shape; elsewhere the array is made.

The integers that a number takes in the states of its site are known (`States`). Checks of them cost nothing then, and
looking up 0, 1, ..., n - 1 in a table of n rows is the table itself, and its derivative no scatter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from .._compat import Equation, aval_of, bind
from ..jaxprs import ELEMENTWISE

Array = jax.Array
SHAPES = frozenset("broadcast_in_dim reshape squeeze expand_dims transpose slice rev copy".split())


class States(NamedTuple):
    """What an integer is in each state of an enumerated site: shape (states,). `name` tells equal ones."""

    name: Any
    numbers: np.ndarray


class Uniform(NamedTuple):
    """A replacement for a site's value by one number, in all of its elements."""

    value: Array
    states: States | None = None
    mask = None  # as of `Forced`: everywhere


@dataclasses.dataclass(frozen=True)
class Same:
    """An array of `shape` whose elements are all `value`, a scalar."""

    value: Array
    shape: tuple[int, ...]
    states: States | None = None

    @property
    def dtype(self) -> np.dtype:
        """The array's dtype."""
        return self.value.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, _: int) -> Same:
        return Same(self.value, self.shape[1:], self.states)

    def whole(self) -> Array:
        """The array."""
        return jnp.broadcast_to(self.value, self.shape)


def on_same(eqn: Equation, args: list[PyTree]) -> list[PyTree] | None:
    """An equation of which some operands are `Same`; None where it needs them whole."""
    name = eqn.primitive.name
    if len(eqn.outvars) > 1:
        return None
    shape = tuple(aval_of(eqn.outvars[0]).shape)
    # A condition that is known everywhere takes one operand as it is.
    if name == "select_n":
        chosen = _selected(args)
        if chosen is not None and (isinstance(chosen, Same) or jnp.shape(chosen) == shape):
            return [chosen]
    if name in SHAPES:
        return [Same(args[0].value, shape, args[0].states)]
    if name in ELEMENTWISE and all(isinstance(a, Same) or jnp.ndim(a) == 0 for a in args):
        values = [a.value if isinstance(a, Same) else a for a in args]
        return [Same(bind(eqn, values)[0], shape)]
    if name == "gather" and isinstance(args[1], Same) and args[1].shape[-1] == 1:
        return [_gather(eqn, whole(args[0]), args[1])]
    if name == "dynamic_slice":
        return _slice(eqn, args)
    return None


def whole(x: PyTree) -> PyTree:
    """An operand that may be one number, as an array."""
    return x.whole() if isinstance(x, Same) else x


_KNOWN: dict[str, Callable[..., PyTree]] = {
    "add": np.add,
    "and": np.bitwise_and,
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
    "convert_element_type": lambda x: x,
    "copy": lambda x: x,
    "eq": np.equal,
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "not": np.invert,
    "or": np.bitwise_or,
    "rem": lambda x, y: np.fmod(x, np.where(y == 0, 1, y)),
    "select_n": lambda which, *cases: np.choose(which.astype(int), cases),
    "sub": np.subtract,
}


def known_number(eqn: PyTree, args: list[PyTree]) -> Same | None:
    """An elementwise equation on integers that are known: everywhere, or in each state of one site. None if it is none."""
    name, out = eqn.primitive.name, eqn.outvars[0].aval
    if name not in _KNOWN or not _is_countable(out.dtype):
        return None
    # Integers in the states of one site, [states], or everywhere, []: NumPy's broadcasting does both.
    states = {a.states.name for a in args if isinstance(a, Same) and a.states}
    numbers = [_numbers(a) for a in args]
    if len(states) > 1 or any(n is None or not _is_countable(n.dtype) for n in numbers):
        return None
    # A remainder by zero is the device's own.
    if name == "rem" and not np.all(numbers[1]):
        return None
    with np.errstate(over="ignore"):
        found = np.asarray(_KNOWN[name](*numbers)).astype(out.dtype)
    # Unlike in the states: the number stays an array of the state, beside what it is in each.
    if found.ndim and np.any(found != found[0]):
        values = [a.value if isinstance(a, Same) else a for a in args]
        return Same(bind(eqn, values)[0], tuple(out.shape), States(states.pop(), found))
    return Same(found.reshape(-1)[0], tuple(out.shape))


def _is_countable(dtype: DTypeLike) -> bool:
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)


def _numbers(x: PyTree) -> np.ndarray | None:
    """What an operand is in each state, or everywhere; None where that is not known."""
    if isinstance(x, Same):
        if x.states:
            return x.states.numbers
        x = x.value
    if isinstance(x, jax.Array) or np.ndim(x):
        return None
    return np.asarray(x)


def _selected(args: list[PyTree]) -> Array | Same | None:
    """The operand that a selection takes everywhere; None where that is not known."""
    which = _numbers(args[0])
    return None if which is None or which.ndim else args[1 + int(which)]


def _shows_all(index: object, size: int) -> bool:
    """Whether an index is 0, 1, ..., size - 1 in the states of its site."""
    return (
        isinstance(index, Same)
        and index.states is not None
        and np.array_equal(index.states.numbers, np.arange(size))
    )


def _slice(eqn: Equation, args: list[PyTree]) -> list[PyTree] | None:
    """One row of a table, where the rows in all states together are the table."""
    operand, *starts = args
    sizes = eqn.params["slice_sizes"]
    if isinstance(operand, Same):
        return None
    # table[k] with k = 0, 1, ..., n - 1 in the n states of its site is the table itself, with the states in front.
    axes = [a for a, n in enumerate(sizes) if n != operand.shape[a]]
    if (
        len(axes) != 1
        or sizes[axes[0]] != 1
        or not _shows_all(starts[axes[0]], operand.shape[axes[0]])
    ):
        return None
    return [jnp.expand_dims(_row(operand, starts[axes[0]].value, axes[0]), axes[0])]


def _row(operand: Array, number: Array, axis: int) -> Array:
    """`operand` at `number` along an axis; `number` is 0, 1, ... in its states, so that all of them together are `operand`."""
    plain = lambda x, i: jax.lax.dynamic_index_in_dim(x, i, axis, keepdims=False)
    row = jax.custom_batching.custom_vmap(plain)

    @row.def_vmap
    def _(size: int, batched: list[bool], operand: Array, number: Array) -> tuple[Array, bool]:
        # A vmap over anything else than the number's own site keeps looking; the one over its states moves the axis in front.
        if not batched[1]:
            return _row(operand, number, axis + 1), True
        if batched[0]:
            return jax.vmap(plain)(operand, number), True
        return jnp.moveaxis(operand, axis, 0), True

    return row(operand, number)


def _gather(eqn: PyTree, operand: Array, indices: Same) -> Array | Same:
    """A slice that is the same everywhere: taken once, and repeated."""
    numbers, shape = eqn.params["dimension_numbers"], tuple(aval_of(eqn.outvars[0]).shape)
    batched = numbers.operand_batching_dims
    sizes = list(eqn.params["slice_sizes"])
    for axis in batched:
        sizes[axis] = operand.shape[axis]
    kept = [a for a in range(operand.ndim) if a not in numbers.collapsed_slice_dims]
    (axis,) = numbers.start_index_map
    others = [a for a in range(operand.ndim) if a != axis]
    if (
        sizes[axis] == 1
        and all(sizes[a] == operand.shape[a] for a in others)
        and _shows_all(indices, operand.shape[axis])
    ):
        found = _row(operand, indices.value, axis)
        if axis in kept:
            found = jnp.expand_dims(found, axis)
        gone = [a for a in others if a not in kept]
        found = jnp.squeeze(found, [a - (a > axis and axis not in kept) for a in gone])
    else:
        found = jax.lax.gather(
            operand,
            indices.value[None],
            jax.lax.GatherDimensionNumbers(
                offset_dims=tuple(range(len(kept))),
                collapsed_slice_dims=numbers.collapsed_slice_dims,
                start_index_map=numbers.start_index_map,
            ),
            tuple(sizes),
            mode=eqn.params["mode"],
            fill_value=eqn.params["fill_value"],
        )
    # Put the axes of the one slice where the gather's output has them, and broadcast it over the rows of indices.
    rows = [a for a in range(len(shape)) if a not in numbers.offset_dims]
    places = dict(zip(batched, (rows[i] for i in numbers.start_indices_batching_dims), strict=True))
    offsets = iter(numbers.offset_dims)
    where = [places[a] if a in places else next(offsets) for a in kept]
    if not where:
        return Same(found, shape)
    order = sorted(range(len(where)), key=where.__getitem__)
    found = jnp.transpose(found, order)
    return jax.lax.broadcast_in_dim(found, shape, [where[a] for a in order])
