"""What of a lifted program is still read, and what a statement depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._compat import Jaxpr, Literal
from ._lift import holds_statement


def last_reads(jaxpr: Jaxpr) -> dict[Any, int]:
    """The number of the equation that reads a variable last; deterministic statements do not count."""
    last: dict[Any, int] = {}
    for number, eqn in enumerate(jaxpr.eqns):
        statement = eqn.params.get("statement")
        if statement is None or statement.treedef is not None:
            last.update({v: number for v in eqn.invars if not isinstance(v, Literal)})
    last.update({v: len(jaxpr.eqns) for v in jaxpr.outvars if not isinstance(v, Literal)})
    return last


def counting(jaxpr: Jaxpr, is_read: Sequence[bool]) -> set[Any]:
    """The variables that a statement depends on; deterministic ones do not count."""
    found = {
        v
        for v, flag in zip(jaxpr.outvars, is_read, strict=True)
        if flag and not isinstance(v, Literal)
    }
    for eqn in reversed(jaxpr.eqns):
        statement = eqn.params.get("statement")
        is_made = holds_statement(eqn) and (statement is None or statement.treedef is not None)
        if is_made or any(v in found for v in eqn.outvars):
            found.update(v for v in eqn.invars if not isinstance(v, Literal))
    return found
