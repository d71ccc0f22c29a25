"""Whether indices out of range, and whole numbers of NaN or that wrap, count: the program is run with others there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from .._compat import CALLS, ClosedJaxpr, Equation, while_counts
from .._types import Key
from ..jaxprs import Interpreter, called, inner_jaxpr, scan_again
from ._casts import Cast, nan_as_whole
from ._known import walk
from ._lookups import Lookup, out_of_range
from ._wraps import Wrap, wrapped

Suspect = Lookup | Cast | Wrap


def suspects(
    closed: ClosedJaxpr, values: Sequence[Array | Key | np.ndarray | None]
) -> list[Suspect]:
    """Indices out of range, NaN that becomes a whole number, whole numbers that wrap round.

    Args:
        closed: the program.
        values: of its inputs; None where one is not known.
    """
    return [
        suspect
        for eqn, operands in walk(closed, values)
        for find in (out_of_range, nan_as_whole, wrapped)
        for suspect in find(eqn, operands)
    ]


def heard(
    closed: ClosedJaxpr,
    inputs: Sequence[Array | Key | np.ndarray],
    values: Sequence[Array | np.ndarray | None],
) -> list[Suspect]:
    """Those of `suspects` on which the outputs depend: they differ where other elements, or other whole numbers, are read.

    Args:
        closed: the program.
        inputs: a value for each of its inputs.
        values: those of them that are known ahead, None elsewhere.
    """
    flat = jax.make_jaxpr(lambda *xs: _Inlined(closed, xs).outputs())(*inputs)
    return [suspect for suspect in suspects(flat, values) if _counts(flat, suspect, inputs)]


def _counts(
    flat: ClosedJaxpr, suspect: Suspect, inputs: Sequence[Array | Key | np.ndarray]
) -> bool:
    if not isinstance(suspect, Lookup):
        run = jax.jit(lambda other, *xs: _OtherMade(flat, xs, suspect, other).outputs())
        first, *rest = (run(other, *inputs) for other in suspect.others)
        return not all(all(map(_equal, first, one)) for one in rest)
    one, other = (jax.jit(_read_at(flat, suspect, i))(*inputs) for i in (False, True))
    return suspect.size == 1 or not all(map(_equal, one, other))


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


class _OtherMade(_Nested):
    """One equation makes another whole number of NaN, or where it wraps; of truth values both are tried."""

    def __init__(
        self, closed: ClosedJaxpr, inputs: PyTree, suspect: Cast | Wrap, other: Array
    ) -> None:
        super().__init__(closed, inputs)
        self.suspect, self.other = suspect, other

    def within(self, closed: ClosedJaxpr, inputs: Sequence[Array]) -> Interpreter:
        return _OtherMade(closed, inputs, self.suspect, self.other)

    def results(self, eqn: Equation, args: list[PyTree]) -> list[PyTree]:
        found = super().results(eqn, args)
        if eqn is not self.suspect.eqn:
            return found
        (made,) = found
        other = self.other % 2 == 1 if made.dtype == bool else jnp.asarray(self.other, made.dtype)
        return [jnp.where(self.suspect.where(args, made), other, made)]


def _told_apart(x: Array) -> Array:
    """Numbers that differ from element to element, near those that are there: a table may begin with equal ones."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    shift = (jnp.arange(x.size, dtype=x.dtype).reshape(x.shape) % 97 + 1) / 1000
    return x * (1 + shift) + shift
