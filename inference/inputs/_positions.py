"""Whether an array is matched to rows by position, `z[jnp.arange(n)]` or `z[:n]`, rather than by indices that the data hold.

No shape tells such an array from a table of groups: it has one length, whatever the number of rows. Two traces of a program, with
more rows in the second, do: the array stays, and what is taken out of it at places that no argument tells grows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from ...ppl._compat import CALLS, Jaxpr, Literal
from ...ppl.jaxprs import inner_jaxpr
from .._arguments import Arguments
from .._depends import walk

# What takes entries out of an array, or lines them up with others, at places that another operand or no operand tells.
_TAKES = frozenset("gather slice dynamic_slice concatenate pad dot_general".split())


def by_position(
    run: Callable[..., PyTree],
    arrays: Sequence[PyTree],
    known: PyTree,
    before: PyTree,
    after: PyTree,
) -> list[bool]:
    """Which of some arrays are matched to rows by position; all, where the program cannot be traced so with more rows.

    Args:
        run: a function (arrays, known, args) -> anything.
        arrays: about which is asked.
        known: other inputs that are no data.
        before: arguments of some rows.
        after: of more rows.
    """

    def traced(args: PyTree) -> Jaxpr:
        split = Arguments(args)
        fn = lambda arrays, known, data: run(arrays, known, split.join(data))
        return jax.make_jaxpr(fn)(list(arrays), known, split.arrays(args)).jaxpr

    one = traced(before)
    try:
        two = traced(after)
    except Exception:
        return [True] * len(arrays)
    num_known = len(jax.tree.leaves(known))
    found = []
    for asked in range(len(arrays)):
        is_asked = [i == asked for i in range(len(one.invars))]
        is_data = [i >= len(arrays) + num_known for i in range(len(one.invars))]
        found.append(_lines_up(one, two, is_asked, is_data, grows=False))
    return found


def _lines_up(
    one: Jaxpr, two: Jaxpr, asked: Sequence[bool], data: Sequence[bool], *, grows: bool
) -> bool:
    """Whether entries of the marked array are taken at places that do not depend on data, more of them in the second trace.

    Args:
        one: of some rows.
        two: of more.
        asked: inputs that are the array.
        data: inputs that depend on data.
        grows: inside of a loop that has more steps in the second.
    """
    if len(one.eqns) != len(
        two.eqns
    ):  # a loop over rows, say: then it is counted how often entries are taken
        return _num_takes(one, asked, data) != _num_takes(two, asked, data)
    pairs = zip(_marked(one, asked, data), two.eqns, strict=True)
    for (eqn, own, told), other in pairs:
        if any(own) and (
            eqn.primitive is not other.primitive or _found(eqn, other, own, told, grows)
        ):
            return True
    return False


def _num_takes(jaxpr: Jaxpr, asked: Sequence[bool], data: Sequence[bool]) -> int:
    """How often entries of the marked array are taken at places that do not depend on data."""
    count = 0
    for eqn, own, told in _marked(jaxpr, asked, data):
        inner = (
            inner_jaxpr(eqn.params[CALLS[eqn.primitive.name]])
            if eqn.primitive.name in CALLS
            else None
        )
        if any(own) and inner is not None:
            count += _num_takes(inner, own, told)
        elif any(own) and eqn.primitive.name in _TAKES:
            count += not _is_told(own, told)
    return count


def _marked(
    jaxpr: Jaxpr, asked: Sequence[bool], data: Sequence[bool]
) -> Iterator[tuple[Any, list[bool], list[bool]]]:
    """Equations with, for each operand, whether it depends on the array, and whether on data."""
    envs = [dict(zip(jaxpr.invars, marks, strict=True)) for marks in (asked, data)]
    for eqn in jaxpr.eqns:
        is_known = lambda env, eqn=eqn: [
            not isinstance(v, Literal) and env.get(v, False) for v in eqn.invars
        ]
        own, told = map(is_known, envs)
        yield eqn, own, told
        for env in envs:
            walk([eqn], env)


def _is_told(own: list[bool], told: list[bool]) -> bool:
    """Whether data say which entries are taken."""
    return any(t for t, mark in zip(told, own, strict=True) if not mark)


def _found(eqn: PyTree, other: PyTree, own: list[bool], told: list[bool], grows: bool) -> bool:
    name = eqn.primitive.name
    if name in CALLS:
        one, two = (inner_jaxpr(e.params[CALLS[name]]) for e in (eqn, other))
        return one is None or two is None or _lines_up(one, two, own, told, grows=grows)
    if name == "scan":
        lengths = {e.params["length"] for e in (eqn, other)}
        one, two = (e.params["jaxpr"].jaxpr for e in (eqn, other))
        return _lines_up(one, two, own, told, grows=grows or len(lengths) > 1)
    if name == "cond":
        pairs = zip(eqn.params["branches"], other.params["branches"], strict=True)
        return any(_lines_up(a.jaxpr, b.jaxpr, own[1:], told[1:], grows=grows) for a, b in pairs)
    if name not in _TAKES:
        return False
    shapes = [[v.aval.shape for v in e.invars] for e in (eqn, other)]
    stays = all(shapes[0][i] == shapes[1][i] for i, mark in enumerate(own) if mark)
    more = eqn.outvars[0].aval.shape != other.outvars[0].aval.shape
    return stays and (more or grows) and not _is_told(own, told)
