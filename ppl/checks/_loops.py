"""What loops there are in a program, and how much one evaluation computes."""

from __future__ import annotations

import math

import jax

from .._compat import Jaxpr
from ..jaxprs import inner_jaxprs, shape_of

BATCH = 8
TURNS = 64  # of a `while` loop, of which nothing is known


def batch_of(jaxpr: Jaxpr) -> int:
    """How many paths are evaluated at once: several where what starts an operation costs more than what it computes.

    That is so in loops, and on accelerators. Elsewhere one path at a time takes no longer, and is traced and compiled in half
    the time.
    """
    is_fast = jax.default_backend() == "cpu" and not has_loop(jaxpr)
    return 1 if is_fast else BATCH


def has_loop(jaxpr: Jaxpr) -> bool:
    """Whether anything in a program runs several times."""
    return any(
        eqn.primitive.name in ("scan", "while") or any(map(has_loop, inner_jaxprs(eqn)))
        for eqn in jaxpr.eqns
    )


def work_of(jaxpr: Jaxpr) -> float:
    """How many numbers one evaluation computes, `while` loops taken to turn 64 times."""
    total = 0.0
    for eqn in jaxpr.eqns:
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        times = TURNS if eqn.primitive.name == "while" else times
        inner = sum(work_of(j) for j in inner_jaxprs(eqn))
        total += times * inner or sum(math.prod(shape_of(v)) for v in eqn.outvars)
    return total
