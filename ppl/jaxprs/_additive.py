"""Split a traced scalar into additive terms.

Input: a jaxpr and one scalar variable. Output: terms `(variable, paths)` such that

    scalar = sum over terms of (sum over paths of coefficient(path)) * sum(variable),

where a coefficient is a product of site-independent scalars. The walk goes backwards through sums,
differences, reductions, reshapes and multiplications by scalars, and stops at every non-linear operation, also at sums
of integers that may wrap (`_integers.py`).
Each term keeps its own shape, so that a score factor can meet it row by row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._compat import Atom, Jaxpr, Literal, Var
from ._axis_rules import shape_of
from ._dependence import Analysis
from ._integers import IntegerRanges

MAX_PATHS = 8
# Linear maps under which the sum over all elements is unchanged, whatever the shape.
SUM_PRESERVING = frozenset(
    "reduce_sum reshape squeeze transpose copy concatenate stack rev".split()
)


class Multiplier(NamedTuple):
    """One scalar factor of a coefficient: multiply by, or divide by, the value of an atom."""

    atom: Atom
    divides: bool = False


Path = tuple[float, tuple[Multiplier, ...]]


class Term(NamedTuple):
    """One additive part of a scalar: `sum(variable)` times the sum of its coefficients."""

    variable: Atom
    paths: tuple[Path, ...]

    def coefficient(self, value_of: Callable[..., PyTree]) -> jax.Array | float:
        """The coefficient, from a function that gives the value of an atom."""
        total: Any = 0.0
        for sign, factors in self.paths:
            product: Any = sign
            for factor in factors:
                value = value_of(factor.atom)
                product = product / value if factor.divides else product * value
            total = total + product
        return total


def split(
    jaxpr: Jaxpr,
    output: Atom,
    analysis: Analysis,
    bounds: Mapping[int, tuple[int, int]] | None = None,
    whole: Collection[Atom] = (),
) -> list[Term]:
    """The additive terms of the scalar `output`.

    Args:
        jaxpr: of the program.
        output: a scalar variable.
        analysis: of the program.
        bounds: smallest and largest value of discrete sites, by index.
        whole: variables that are not opened.
    """
    if isinstance(output, Literal):  # unhashable
        return [Term(output, ((1.0, ()),))]
    ranges = IntegerRanges(jaxpr, bounds or {})
    position = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.outvars}
    pending: dict[Var, list[Path]] = {output: [(1.0, ())]}
    terms: list[Term] = []
    constants: list[tuple[Atom, Path]] = []
    while pending:
        # Latest-produced variable first: all paths to a variable are known before it is opened.
        atom = max(pending, key=lambda v: position.get(v, -1))
        paths = pending.pop(atom)
        parts = None
        is_open = atom in position and atom not in whole and len(paths) <= MAX_PATHS
        if is_open and _depends_on_site(analysis, atom):
            eqn = jaxpr.eqns[position[atom]]
            parts = None if ranges.wraps(eqn) else _open(jaxpr, position, eqn, analysis)
        if parts is None:
            terms.append(Term(atom, tuple(paths)))
            continue
        # sum over paths of c * x with x = sum_i s_i f_i x_i: each path goes on to every part, with its sign and factor.
        for part, sign, factors in parts:
            new = [(sign * s, (*f, *factors)) for s, f in paths]
            if isinstance(part, Literal):  # literals are unhashable and may repeat
                constants.extend((part, path) for path in new)
            else:
                pending.setdefault(part, []).extend(new)
    return terms + [Term(atom, (path,)) for atom, path in constants]


def _depends_on_site(analysis: Analysis, atom: Var) -> bool:
    return any(isinstance(source, int) for source in analysis[atom].relations)


def _open(
    jaxpr: Jaxpr, position: dict[Var, int], eqn: PyTree, analysis: Analysis
) -> list[tuple[PyTree, float, tuple[Multiplier, ...]]] | None:
    """The operands of a linear equation with their signs and factors, or None."""
    name, operands = eqn.primitive.name, eqn.invars
    if not (
        jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating)
        or jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.signedinteger)
    ):
        return None  # sums of unsigned or boolean numbers are not linear over the reals
    if name in ("add", "add_any", "sub"):
        out = math.prod(shape_of(eqn.outvars[0]))
        if any(math.prod(shape_of(v)) != out for v in operands):
            return None
        return [(operands[0], 1.0, ()), (operands[1], -1.0 if name == "sub" else 1.0, ())]
    if name == "neg":
        return [(operands[0], -1.0, ())]
    if name in SUM_PRESERVING:
        return [(v, 1.0, ()) for v in operands]
    if name == "broadcast_in_dim" and math.prod(shape_of(operands[0])) == math.prod(
        shape_of(eqn.outvars[0])
    ):
        return [(operands[0], 1.0, ())]
    if name == "convert_element_type" and jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
        return [(operands[0], 1.0, ())]
    if name == "mul":
        for factor, rest in ((operands[0], operands[1]), (operands[1], operands[0])):
            scalar = _scalar(jaxpr, position, factor, analysis)
            if scalar is not None and shape_of(rest) == shape_of(eqn.outvars[0]):
                return [(rest, 1.0, (Multiplier(scalar),))]
    if name == "div" and jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
        scalar = _scalar(jaxpr, position, operands[1], analysis)
        if scalar is not None and shape_of(operands[0]) == shape_of(eqn.outvars[0]):
            return [(operands[0], 1.0, (Multiplier(scalar, divides=True),))]
    return None


def _scalar(
    jaxpr: Jaxpr, position: dict[Var, int], atom: Atom, analysis: Analysis
) -> PyTree | None:
    """The scalar behind `atom` if it holds one site-independent number in every element."""
    if shape_of(atom) == ():
        return atom if isinstance(atom, Literal) or not _depends_on_site(analysis, atom) else None
    if atom in position:
        eqn = jaxpr.eqns[position[atom]]
        if eqn.primitive.name in ("broadcast_in_dim", "convert_element_type"):
            return _scalar(jaxpr, position, eqn.invars[0], analysis)
    return None
