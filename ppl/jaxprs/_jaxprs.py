"""What a jaxpr holds: jaxprs inside its equations, markers, and the equations that count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from jaxtyping import PyTree

from .._compat import ClosedJaxpr, Equation, Jaxpr, Literal, Var
from ._primitive import MARKERS


def inner_jaxpr(value: object) -> Jaxpr | None:
    """The open jaxpr behind an equation parameter, or None."""
    if isinstance(value, ClosedJaxpr):
        return value.jaxpr
    return value if isinstance(value, Jaxpr) else None


def inner_jaxprs(eqn: Equation) -> Iterator[Jaxpr]:
    """The open jaxprs among an equation's parameters."""
    for param in eqn.params.values():
        for item in param if isinstance(param, tuple | list) else (param,):
            if (jaxpr := inner_jaxpr(item)) is not None:
                yield jaxpr


def holds_marker(eqn: PyTree) -> bool:
    """Whether an equation is a marker or has one inside."""
    return eqn.primitive in MARKERS or any(
        holds_marker(inner) for jaxpr in inner_jaxprs(eqn) for inner in jaxpr.eqns
    )


def needed(
    eqns: Sequence[Equation],
    read: Iterable[PyTree],
    inputs: Callable[..., PyTree] = lambda eqn: eqn.invars,
    given: Iterable[Var] = (),
) -> tuple[list[PyTree], set[PyTree]]:
    """Those of `eqns` that `read` depends on, in order, and those with effects; all variables that count.

    `inputs`: the atoms that an equation reads. `given`: variables that are known without their equations.
    """
    given = set(given)
    live = {v for v in read if not isinstance(v, Literal)} - given
    found = []
    for eqn in reversed(eqns):
        if eqn.effects or not live.isdisjoint(eqn.outvars):
            found.append(eqn)
            live |= {v for v in inputs(eqn) if not isinstance(v, Literal)} - given
    return found[::-1], live
