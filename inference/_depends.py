"""What depends on what in a jaxpr.

Invariant: what is reported absent is absent. A loop with a traced end, and a branch on a marked value, mark all they return.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

from ..ppl._compat import CALLS, Equation, Jaxpr, Literal, Var, scan_counts
from ..ppl.jaxprs import inner_jaxpr, settled


def depends(jaxpr: Jaxpr, marks: Sequence[bool]) -> list[bool]:
    """Which outputs of a jaxpr may depend on its marked inputs; what is reported absent is absent."""
    env = walk(jaxpr.eqns, dict(zip(jaxpr.invars, marks, strict=True)))
    return [not isinstance(v, Literal) and env.get(v, False) for v in jaxpr.outvars]


def is_used(jaxpr: Jaxpr, number: int) -> bool:
    """Whether an output may depend on an input."""
    return any(depends(jaxpr, [i == number for i in range(len(jaxpr.invars))]))


def walk(eqns: Sequence[Equation], env: dict[Var, bool]) -> dict[Var, bool]:
    """The marks of all variables; constants have none."""
    for eqn in eqns:
        marks = [not isinstance(v, Literal) and env.get(v, False) for v in eqn.invars]
        env.update(zip(eqn.outvars, _outputs(eqn, marks), strict=True))
    return env


def _outputs(eqn: Equation, marks: list[bool]) -> list[bool]:
    name = eqn.primitive.name
    everything = [any(marks)] * len(eqn.outvars)
    if not any(marks):
        return everything
    if name in CALLS:
        inner = inner_jaxpr(eqn.params[CALLS[name]])
        return everything if inner is None else depends(inner, marks)
    if name == "scan":
        num_consts, num_carry = scan_counts(eqn.params)
        body = eqn.params["jaxpr"].jaxpr
        consts, xs = marks[:num_consts], marks[num_consts + num_carry :]
        step = lambda carry: depends(body, [*consts, *carry, *xs])
        carry, outs = settled(step, marks[num_consts : num_consts + num_carry], operator.or_)
        return [*carry, *outs[num_carry:]]
    if name == "cond" and not marks[0]:
        branches = [depends(b.jaxpr, marks[1:]) for b in eqn.params["branches"]]
        return [any(b) for b in zip(*branches, strict=True)]
    return everything
