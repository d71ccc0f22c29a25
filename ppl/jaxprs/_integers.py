"""Between which bounds the integers of a traced program lie, as far as that shows.

Sums of integers are additive only where they do not wrap. A range is read off the supports of discrete sites, literals and
comparisons, and carried through arithmetic. What is known to leave its dtype wraps, and so may anything unknown in a dtype of
fewer than 32 bits. Of 32 bits and more, an unknown number (an unbounded count, data) is taken to be at most 2^15 in size where it
is multiplied, and sums of such numbers are taken not to wrap: a program whose counts add up to 2^31 has no sensible value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._compat import Atom, Equation, Jaxpr, Literal, Var
from ._axis_rules import shape_of
from ._primitive import site_p

SAME = frozenset(
    "reshape squeeze transpose copy rev broadcast_in_dim slice dynamic_slice gather reduce_max reduce_min stop_gradient "
    "optimization_barrier sort".split()
)
UNION = frozenset("concatenate stack max min clamp pad".split())
SIZE = 2**15


class IntegerRange(NamedTuple):
    """Bounds, both included; assumed where nothing is known."""

    low: int
    high: int
    is_assumed: bool = False


class IntegerRanges:
    """The ranges of a jaxpr's integers.

    Args:
        jaxpr: of the program.
        bounds: site index -> bounds of its values, for discrete sites where they are known.
    """

    def __init__(self, jaxpr: Jaxpr, bounds: Mapping[int, tuple[int, int]]) -> None:
        self.bounds = bounds
        self._origin = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
        self._known: dict[Var, IntegerRange] = {}

    def of(self, atom: PyTree) -> IntegerRange:
        """The range of an atom's elements."""
        if isinstance(atom, Literal):
            return IntegerRange(int(np.min(atom.val)), int(np.max(atom.val)))
        stack = [atom]
        while stack:  # no recursion: programs may be long
            var = stack[-1]
            eqn = self._origin.get(var)
            is_leaf = eqn is None or eqn.primitive is site_p
            read = [] if is_leaf or eqn is None else eqn.invars
            missing = [v for v in read if self._is_needed(v)]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            self._known[var] = self._clipped(var, None if eqn is None else self._out(eqn))
        return self._known[atom]

    def wraps(self, eqn: Equation) -> bool:
        """Whether an integer equation may leave its dtype."""
        var = eqn.outvars[0]
        if not jnp.issubdtype(_dtype(var), jnp.signedinteger):
            return False
        self.of(var)
        out, full = self._out(eqn), _full(var)
        if out is None:
            return True
        if out.is_assumed and jnp.iinfo(_dtype(var)).bits >= 32 and eqn.primitive.name != "mul":
            return False
        return out.low < full.low or out.high > full.high

    def _is_needed(self, atom: Atom) -> bool:
        return isinstance(atom, Var) and atom not in self._known and is_integer(atom)

    def _clipped(self, var: Var, out: IntegerRange | None) -> IntegerRange:
        if out is None:
            return _limits(var)
        full = _full(var)
        if full.low <= out.low and out.high <= full.high:
            return out
        return _limits(var) if out.is_assumed else full

    def _operand(self, atom: object) -> IntegerRange:
        if not is_integer(atom):
            return _limits(atom)
        return self.of(atom)

    def _out(self, eqn: Equation) -> IntegerRange | None:
        """The range of the first output as if numbers had no limits; None where nothing is known."""
        name = eqn.primitive.name
        if eqn.primitive is site_p:
            known = self.bounds.get(eqn.params["index"])
            return None if known is None else IntegerRange(*known)
        if name == "iota":
            return IntegerRange(0, max(0, eqn.params["shape"][eqn.params["dimension"]] - 1))
        if name in ("argmax", "argmin"):
            return IntegerRange(0, max(0, math.prod(shape_of(eqn.invars[0])) - 1))
        operands = eqn.invars[1:] if name == "select_n" else eqn.invars
        if any(not is_integer(v) for v in operands) and name != "convert_element_type":
            return None
        if name in ("select_n", *UNION):
            ranges = [self._operand(v) for v in operands]
            return _over([r.low for r in ranges] + [r.high for r in ranges], ranges)
        if name in (*SAME, "convert_element_type"):
            if jnp.issubdtype(_dtype(eqn.invars[0]), jnp.inexact):
                return None
            return self._operand(eqn.invars[0])
        if name == "neg":
            (a,) = (self._operand(v) for v in operands)
            return IntegerRange(-a.high, -a.low, a.is_assumed)
        if name in ("add", "add_any", "sub", "mul"):
            a, b = (self._operand(v) for v in operands)
            return _combined(name, a, b)
        if name in ("reduce_sum", "cumsum"):
            (a,) = (self._operand(v) for v in operands)
            count = math.prod(shape_of(eqn.invars[0])) // max(
                1, math.prod(shape_of(eqn.outvars[0]))
            )
            count = shape_of(eqn.invars[0])[eqn.params["axis"]] if name == "cumsum" else count
            return IntegerRange(
                min(a.low, a.low * count), max(a.high, a.high * count), a.is_assumed
            )
        return None


def is_integer(atom: PyTree) -> bool:
    """Whether an atom holds integers (booleans included)."""
    dtype = _dtype(atom)
    return jnp.issubdtype(dtype, jnp.integer) or dtype == jnp.bool_


def _dtype(atom: PyTree) -> np.dtype:
    return atom.aval.dtype


def _combined(name: str, a: IntegerRange, b: IntegerRange) -> IntegerRange:
    if name == "sub":
        a, b, name = a, IntegerRange(-b.high, -b.low, b.is_assumed), "add"
    if name == "mul":
        return _over([x * y for x in a[:2] for y in b[:2]], [a, b])
    return IntegerRange(a.low + b.low, a.high + b.high, a.is_assumed or b.is_assumed)


def _over(values: list[int], ranges: list[IntegerRange]) -> IntegerRange:
    return IntegerRange(min(values), max(values), any(r.is_assumed for r in ranges))


def _limits(atom: PyTree) -> IntegerRange:
    """What is taken of a number of which nothing is known."""
    if not is_integer(atom):
        return IntegerRange(-SIZE, SIZE, True)
    full = _full(atom)
    if full.high < 2**31 - 1:
        return full
    return IntegerRange(-SIZE if full.low else 0, SIZE, True)


def _full(atom: Var) -> IntegerRange:
    """What the dtype of an integer holds."""
    if _dtype(atom) == jnp.bool_:
        return IntegerRange(0, 1)
    limits = jnp.iinfo(_dtype(atom))
    return IntegerRange(int(limits.min), int(limits.max))
