"""How much one evaluation of a program computes."""

from __future__ import annotations

import math

from .._compat import Jaxpr
from ._axis_rules import shape_of
from ._interpreter import inner_jaxprs

_TURNS = 8  # of a `while` loop where parameters are like those given; elsewhere they are many


def work_of(jaxpr: Jaxpr) -> float:
    """How many numbers one evaluation computes, `while` loops taken to turn 8 times."""
    total = 0.0
    for eqn in jaxpr.eqns:
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        times = _TURNS if eqn.primitive.name == "while" else times
        inner = sum(work_of(j) for j in inner_jaxprs(eqn))
        total += times * inner or sum(math.prod(shape_of(v)) for v in eqn.outvars)
    return total
