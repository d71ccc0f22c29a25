"""Codes of pandas' categories that a program reads as what they are not: measurements, counts, or entries of another list.

Input: a traced program, and the levels of those of its arguments that are categories. Output: what is wrong, by argument.
Followed are whole numbers that are made of one argument's codes, until an index, a comparison or a law of classes reads them,
which is what codes are for. Where they become real numbers they would be measurements: of two levels that is 0 and 1, as one
wants it, and levels that are their own codes are numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ...ppl._compat import CALLS, ClosedJaxpr, Equation, Jaxpr, Literal, Var, aval_of, scan_counts
from ...ppl.jaxprs import inner_jaxpr
from ...ppl.traces import Trace

Levels = Mapping[str, tuple]
_COUNTS = ("Poisson", "Binomial", "Geometric", "ZeroInflated", "NegativeBinomial", "Multinomial")
_SAME = frozenset("convert_element_type copy copy_p stop_gradient".split())
# What makes whole numbers that are no codes: places, and random ones.
_OTHERS = frozenset("argmax argmin iota random_bits sort".split())
_SHOWN = 6


class Origin(NamedTuple):
    """Where a number of a program comes from.

    Attributes:
        names: arguments of whose codes it is made.
        source: what it is another form of.
        is_drawn: whether it depends on the key of the run.
    """

    names: frozenset[str]
    source: object
    is_drawn: bool


def levels_of(raw: PyTree, names: Sequence[str]) -> dict[str, tuple]:
    """The levels of the leaves that are categories, by their names."""
    kinds = [getattr(x, "dtype", None) for x in jax.tree.leaves(raw)]
    found = {n: getattr(kind, "categories", None) for n, kind in zip(names, kinds, strict=True)}
    return {n: tuple(levels.tolist()) for n, levels in found.items() if levels is not None}


def misread(
    closed: ClosedJaxpr, trace: Trace, names: Sequence[str], levels: Levels
) -> Iterator[str]:
    """What is wrong with codes in a program, in words that begin with the argument's.

    Args:
        closed: the traced run, of a key and arrays.
        trace: with shapes for what it returns.
        names: of the arrays.
        levels: of the arguments that are categories, by name.
    """
    given = [frozenset([name] if name in levels else []) for name in names]
    key, *arrays = closed.jaxpr.invars
    inputs = [Origin(g, v, False) for g, v in zip(given, arrays, strict=True)]
    found: list[tuple[Equation, list[Origin]]] = []
    results = _followed(closed.jaxpr, [Origin(frozenset(), key, True), *inputs], found)
    observed = jax.tree.unflatten(jax.tree.structure(trace), results).observed
    for site, origin in observed.items():
        law = trace.sites[site].distribution
        for name in sorted(origin.names):
            if _is_counted(law, levels[name]):
                yield (
                    f"argument '{name}' holds categories of pandas, {_told(levels[name])}, and site '{site}' would observe "
                    f"their codes 0, 1, 2, ... under {law}. If the levels are numbers, pass them, {name}.astype(int)."
                )
    of_classes = frozenset().union(*(origin.names for origin in observed.values()))
    tables: dict[object, str] = {}
    for eqn, operands in found:
        if eqn.primitive.name == "convert_element_type" and _is_real(eqn.outvars[0]):
            for name in sorted(operands[0].names - of_classes):
                if not _are_numbers(levels[name]):
                    yield (
                        f"argument '{name}' holds categories of pandas, {_told(levels[name])}, whose codes 0, 1, 2, ... would be "
                        f"computed with as real numbers. If the levels are numbers, pass them, {name}.astype(float), and if the "
                        f"codes are meant, {name}.cat.codes; what each level does by itself is an index, effect[{name}]."
                    )
        elif (
            eqn.primitive.name == "gather" and operands[0].is_drawn and len(operands[1].names) == 1
        ):
            (name,) = operands[1].names
            other = tables.setdefault(operands[0].source, name)
            if levels[other] != levels[name]:
                yield (
                    f"arguments '{other}' and '{name}' index one table, and are categories of different levels, "
                    f"{_told(levels[other])} and {_told(levels[name])}: one entry would stand for two of them. Give both the "
                    f"same, .astype(pd.CategoricalDtype(sorted({{*{other}, *{name}}})))."
                )


def _is_counted(law: str, levels: tuple) -> bool:
    """Whether a law would take codes for counts or truth values that they are not."""
    if law.startswith("Bernoulli"):
        return levels == (1,)
    return any(name in law for name in _COUNTS) and not _are_numbers(levels)


def _are_numbers(levels: tuple) -> bool:
    """Whether codes stand for themselves, or for one of two kinds."""
    if any(isinstance(x, int | float) for x in levels):
        return list(levels) == list(range(len(levels)))
    return len(levels) <= 2


def _told(levels: tuple) -> str:
    more = ", ..." if len(levels) > _SHOWN else ""
    return f"[{', '.join(map(str, levels[:_SHOWN]))}{more}]"


def _followed(
    jaxpr: Jaxpr, inputs: Sequence[Origin], found: list[tuple[Equation, list[Origin]]]
) -> list[Origin]:
    """Origins of what a jaxpr returns; each equation, those of calls, steps and branches too, is added to `found`."""
    env: dict[Var, Origin] = {v: Origin(frozenset(), v, False) for v in jaxpr.constvars}
    env.update(zip(jaxpr.invars, inputs, strict=True))
    read = lambda v: Origin(frozenset(), v, False) if isinstance(v, Literal) else env[v]
    for eqn in jaxpr.eqns:
        operands = [read(v) for v in eqn.invars]
        found.append((eqn, operands))
        env.update(zip(eqn.outvars, _results(eqn, operands, found), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _results(
    eqn: Equation, operands: list[Origin], found: list[tuple[Equation, list[Origin]]]
) -> list[Origin]:
    name = eqn.primitive.name
    if name in CALLS:
        inner = inner_jaxpr(eqn.params[CALLS[name]])
        if inner is not None and len(inner.invars) == len(operands):
            return _followed(inner, operands, found)
    if name == "scan":
        # What steps hand on is taken for what they begin with.
        carried = scan_counts(eqn.params)[1]
        results = _followed(eqn.params["jaxpr"].jaxpr, operands, found)
        return [*map(_renewed, eqn.outvars[:carried], results), *results[carried:]]
    if name == "cond":
        for branch in eqn.params["branches"]:
            _followed(branch.jaxpr, operands[1:], found)
    return [_made(eqn, var, operands) for var in eqn.outvars]


def _renewed(var: Var, origin: Origin) -> Origin:
    return origin._replace(source=var)


def _made(eqn: Equation, var: Var, operands: list[Origin]) -> Origin:
    name, is_drawn = eqn.primitive.name, any(o.is_drawn for o in operands)
    is_whole = jnp.issubdtype(aval_of(var).dtype, jnp.integer)
    if name in _SAME and (is_whole or not operands[0].names):
        return operands[0]
    if name in _OTHERS or not is_whole:
        return Origin(frozenset(), var, is_drawn)
    read = operands[:1] if name in ("gather", "dynamic_slice") else operands
    read = [operands[0], operands[2]] if name.startswith("scatter") else read
    return Origin(frozenset().union(*(o.names for o in read)), var, is_drawn)


def _is_real(var: Var) -> bool:
    return jnp.issubdtype(aval_of(var).dtype, jnp.floating)
