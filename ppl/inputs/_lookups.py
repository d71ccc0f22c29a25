"""Indices that lie outside of what they index, where they are known before the program runs.

JAX reads another element then, without a word: -1 is the last one, as in Python, and what is too large becomes the last one, too.
In a program that is written that is meant; in data it is a missing code, or a group that is not there.

Input: an equation, and what is known of its operands. Output: each place where an index (of `gather`, `dynamic_slice`, and of
`scatter`, which writes) is out of range. What is clipped, filled, dropped or wrapped on purpose (`mode=`) is not, unless JAX
takes a negative number from the end first; nor is a number of the program's own that counts from the end, `x[-1]`, see
`_is_from_the_end` (an array that the program closes over is data, too). What is read so may not count, as in
`jnp.where(g >= 0, e[g], 0.0)`: `heard` runs the program with other elements there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import PyTree

from .._compat import Equation, aval_of
from ._known import Known

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


def out_of_range(eqn: Equation, operands: Sequence[Known | None]) -> Iterator[Lookup]:
    """Indices of one equation that are out of range.

    Args:
        eqn: of a program.
        operands: what is known of its operands, see `walk`.
    """
    for axis, index in _indices(eqn, operands):
        shape, sizes = aval_of(eqn.invars[0]).shape, eqn.params.get("slice_sizes")
        size = shape[axis] - (sizes[axis] if sizes else 1) + 1
        raw, wrap = _unwrapped(index)
        lookup = _judged(eqn, raw, wrap, axis, size)
        if lookup is not None:
            yield lookup


def _indices(eqn: Equation, operands: Sequence[Known | None]) -> list[tuple[int, Known]]:
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
