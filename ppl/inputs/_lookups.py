"""Indices that lie outside of what they index, where they are known before the program runs.

JAX reads another element then, without a word: -1 is the last one, as in Python, and what is too large becomes the last one, too.
In a program that is written that is meant; in data it is a missing code, or a group that is not there.

Input: a jaxpr and the values of its arguments. Output: each place where an index (of `gather`, `dynamic_slice`, and of `scatter`,
which writes) is out of range. What is clipped, filled, dropped or wrapped on purpose (`mode=`) is not, unless JAX takes a
negative number from the end first; nor is a number of the program's own that counts from the end, `x[-1]`, see `_is_from_the_end`
(an array that the program closes over is data, too). What is read so may not count, as in `jnp.where(g >= 0, e[g], 0.0)`: `heard`
runs the program with other elements there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from .._compat import CALLS, ClosedJaxpr, Equation, aval_of, while_counts
from .._types import Key
from ..jaxprs import Interpreter, called, inner_jaxpr, scan_again
from ._known import Known, walk

_SAME = frozenset(
    "broadcast_in_dim reshape squeeze expand_dims copy copy_p convert_element_type".split()
)
LEAST_TURN = 5


class Lookup(NamedTuple):
    """An index out of range.

    Attributes:
        value: the first such number.
        place: where it stands in the index, behind the axes of steps.
        count: how many there are.
        size: numbers from 0 to size - 1 are in range.
        inputs: numbers of the inputs from which the index is computed.
        is_given: whether it is an input itself.
        wrap: the equation that makes negative numbers positive; None where there is none.
        eqn: the equation that reads.
        axis: of what is read.
    """

    value: int
    place: tuple[int, ...]
    count: int
    size: int
    inputs: frozenset[int]
    is_given: bool
    wrap: Equation | None
    eqn: Equation
    axis: int


def out_of_range(
    closed: ClosedJaxpr, values: Sequence[Array | Key | np.ndarray | None]
) -> list[Lookup]:
    """Indices out of range.

    Args:
        closed: the program.
        values: of its inputs; None where one is not known.
    """
    found = []
    for eqn, operands in walk(closed, values):
        for axis, index in _indices(eqn, operands):
            shape, sizes = aval_of(eqn.invars[0]).shape, eqn.params.get("slice_sizes")
            size = shape[axis] - (sizes[axis] if sizes else 1) + 1
            raw, wrap = _unwrapped(index)
            lookup = _judged(eqn, raw, wrap, axis, size)
            found += [] if lookup is None else [lookup]
    return found


def _indices(eqn: Equation, operands: list[Known | None]) -> list[tuple[int, Known]]:
    """(axis, index) of what an equation looks up by known numbers."""
    name = eqn.primitive.name
    if name == "dynamic_slice":
        return [(axis, k) for axis, k in enumerate(operands[1:]) if k is not None]
    is_written = name.startswith("scatter")
    if name != "gather" and not is_written or operands[1] is None:
        return []
    numbers = eqn.params["dimension_numbers"]
    axes = numbers.scatter_dims_to_operand_dims if is_written else numbers.start_index_map
    return list(zip(axes, _parts(operands[1], len(axes)), strict=True))


def _parts(index: Known, number: int) -> list[Known]:
    """The indices of several axes, which stand side by side."""
    if number == 1:
        return [index]
    if index.name == "concatenate" and len(index.operands) == number:
        return list(index.operands)
    values = index.value()
    made = [Known(index.name, index.operands, index.inputs, index.depth) for _ in range(number)]
    for i, part in enumerate(made):
        part._value = values[..., i]
    return made


def _unwrapped(index: Known) -> tuple[Known, Equation | None]:
    """The index before negative numbers were made positive, and the equation that did it."""
    while index.name in _SAME and index.operands[0].value().dtype.kind in "iu":
        index = index.operands[0]
    if index.name == "select_n" and len(index.operands) == 3:
        which, same, shifted = index.operands
        is_wrap = which.name in ("lt", "constant") and shifted.name == "add"
        if is_wrap and shifted.operands[0] is same:
            return _source(same), index.eqn
    return index, None


def _source(index: Known) -> Known:
    while index.name in _SAME and index.operands[0].value().dtype.kind in "iu":
        index = index.operands[0]
    return index


def _judged(eqn: PyTree, raw: Known, wrap: Equation | None, axis: int, size: int) -> Lookup | None:
    array = raw.value()
    if array.size == 0 or array.dtype.kind not in "iu":
        return None
    low, high = int(array.min()), int(array.max())
    # Asked for, except where a dynamic slice was batched, which leaves its axes.
    mode = str(eqn.params.get("mode", ""))
    numbers = eqn.params.get("dimension_numbers")
    is_batched = eqn.primitive.name == "gather" and axis not in numbers.collapsed_slice_dims
    is_filled = ("FILL" in mode or "CLIP" in mode) and not is_batched
    least = -size if not raw.inputs and _is_from_the_end(raw, array, size) else 0
    if is_filled and wrap is None:
        return None
    if (
        eqn.primitive.name == "dynamic_slice"
        and eqn.params["slice_sizes"][axis] > 1
        and not raw.inputs
    ):
        return None
    most = high if is_filled else size - 1
    if low >= least and high <= most:
        return None
    bad = (array < least) | (array > most)
    place = tuple(int(i) for i in np.argwhere(bad)[0]) if array.ndim else ()
    value, count = int(array[place]), int(bad.sum())
    is_given = raw.name == "input"
    return Lookup(value, place, count, size, raw.inputs, is_given, wrap, eqn, axis)


def _is_from_the_end(raw: Known, array: np.ndarray, size: int) -> bool:
    """Whether negative numbers that come from no argument are meant to count from the end.

    A number by itself is, and numbers computed of such, `jnp.arange(n) - 1`, of which none is there twice. An array that is
    written down or closed over may hold codes of rows, -1 where one is missing: what is computed of it counts from the end if all
    numbers do, or if they are one whole turn of what is indexed, `np.arange(n) - 1`, which five rows are by accident once in 120
    times. Arrays of 8 or 16 bits are codes, as pandas keeps those of categories.
    """
    numbers = array.ravel()
    if array.ndim == 0:
        return True
    if array.dtype.itemsize < 4 or numbers.size > size or np.unique(numbers).size < numbers.size:
        return False
    is_turn = numbers.size == size >= LEAST_TURN and (np.diff(numbers) == 1).all()
    return bool((numbers < 0).all()) or is_turn or not _holds_array(raw)


def _holds_array(known: Known) -> bool:
    """Whether something is computed of an array that is written down or closed over."""
    todo, seen = [known], set()
    while todo:
        one = todo.pop()
        if one.name == "constant" and one.value().ndim:
            return True
        todo += [o for o in one.operands if id(o) not in seen]
        seen |= set(map(id, one.operands))
    return False


# Whether it counts


def heard(
    closed: ClosedJaxpr,
    inputs: Sequence[Array | Key | np.ndarray],
    values: Sequence[Array | np.ndarray | None],
) -> list[Lookup]:
    """Those indices out of range on whose elements the outputs depend: they differ where others are read.

    Args:
        closed: the program.
        inputs: a value for each of its inputs.
        values: those of them that are known ahead, None elsewhere.
    """
    flat = jax.make_jaxpr(lambda *xs: _Inlined(closed, xs).outputs())(*inputs)
    found = []
    for lookup in out_of_range(flat, values):
        one, other = (jax.jit(_read_at(flat, lookup, i))(*inputs) for i in (False, True))
        if lookup.size == 1 or not all(map(_equal, one, other)):
            found.append(lookup)
    return found


def _equal(a: Array, b: Array) -> bool:
    if jnp.issubdtype(a.dtype, jax.dtypes.extended):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    return bool(jnp.array_equal(a, b, equal_nan=jnp.issubdtype(a.dtype, jnp.inexact)))


def _read_at(closed: ClosedJaxpr, lookup: Lookup, is_other: bool) -> Callable[..., PyTree]:
    return lambda *inputs: _LookupRead(closed, inputs, lookup, is_other).outputs()


class _Nested(Interpreter):
    """Runs calls, scans, branches and loops by itself; calls dissolve."""

    def within(self, closed: ClosedJaxpr, inputs: Sequence[PyTree] | tuple[Array]) -> Interpreter:
        return type(self)(closed, inputs)

    def results(self, eqn: Equation, args: list[PyTree]) -> list[PyTree]:
        name = eqn.primitive.name
        if name in CALLS and inner_jaxpr(eqn.params[CALLS[name]]) is not None:
            return self.within(called(eqn), args).outputs()
        if name == "scan":
            body = eqn.params["jaxpr"]
            return scan_again(eqn, args, lambda xs, _: self.within(body, xs).outputs())
        if name == "cond":
            branches = [self._branch(branch) for branch in eqn.params["branches"]]
            return jax.lax.switch(args[0], branches, *args[1:])
        if name == "while":
            return self._looped(eqn.params, args)
        return super().results(eqn, args)

    def _branch(self, closed: ClosedJaxpr) -> Callable[..., list[PyTree]]:
        return lambda *args: self.within(closed, args).outputs()

    def _looped(self, params: dict[str, PyTree], args: list[PyTree]) -> list[Array]:
        first, own = while_counts(params)
        second = first + own
        test, body = self._branch(params["cond_jaxpr"]), self._branch(params["body_jaxpr"])
        return jax.lax.while_loop(
            lambda x: test(*args[:first], *x)[0],
            lambda x: body(*args[first:second], *x),
            list(args[second:]),
        )


class _Inlined(_Nested):
    """Each equation is there once then, so that it is known by itself."""


class _LookupRead(_Nested):
    """One lookup reads other elements, if `is_other`, where its index is out of range; all that it reads from differs."""

    def __init__(self, closed: ClosedJaxpr, inputs: PyTree, lookup: Lookup, is_other: bool) -> None:
        super().__init__(closed, inputs)
        self.lookup, self.is_other = lookup, is_other

    def within(self, closed: ClosedJaxpr, inputs: Sequence[Array]) -> Interpreter:
        return _LookupRead(closed, inputs, self.lookup, self.is_other)

    def results(self, eqn: Equation, args: list[PyTree]) -> list[PyTree]:
        lookup = self.lookup
        if eqn is lookup.wrap:
            index, (found,) = args[1], super().results(eqn, args)
            return [self._moved(index, found)]
        if eqn is lookup.eqn:
            args = [_told_apart(args[0]), *args[1:]]
            if lookup.wrap is None:
                args = self._with_index(eqn, args)
        return super().results(eqn, args)

    def _moved(self, index: Array, found: Array) -> ArrayLike:
        if not self.is_other:
            return found
        size = jnp.asarray(self.lookup.size, found.dtype)
        inside = jnp.clip(found, 0, size - 1)
        return jnp.where((index < 0) | (index >= size), (inside + 1) % size, found)

    def _with_index(self, eqn: Equation, args: list[PyTree]) -> list[PyTree]:
        axis = self.lookup.axis
        if eqn.primitive.name == "dynamic_slice":
            index = args[1 + axis]
            return [*args[: 1 + axis], self._moved(index, index), *args[2 + axis :]]
        place = eqn.params["dimension_numbers"].start_index_map.index(axis)
        index = args[1][..., place]
        return [args[0], args[1].at[..., place].set(self._moved(index, index)), *args[2:]]


def _told_apart(x: Array) -> Array:
    """Numbers that differ from element to element, near those that are there: a table may begin with equal ones."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    shift = (jnp.arange(x.size, dtype=x.dtype).reshape(x.shape) % 97 + 1) / 1000
    return x * (1 + shift) + shift
