"""`stop_gradient` that changes no derivative: the largest exponent that is taken out of a sum of exponentials and put back.

In log(sum(exp(a - sg(m)))) + sg(m), as in softmax and its logarithm, the value is no function of m, so that it is no matter
whether m is differentiated. The proof: every variable downstream of sg(m) is v + c m, or v exp(c m), for a number c; the
rules below hand c on, and each path must come to c = 0 before anything else happens to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .._compat import Equation, Jaxpr, Literal, Var
from ._axis_rules import shape_of


class Shift(NamedTuple):
    """How a variable holds m: times `weight`, added, or in the exponent of a factor; and which axis of m each of its axes is."""

    weight: float
    is_factor: bool
    axes: Mapping[int, int]


def stabilisers(jaxpr: Jaxpr) -> set[int]:
    """The `stop_gradient` equations of a program (by id) that change no derivative of its outputs."""
    stops = [n for n, eqn in enumerate(jaxpr.eqns) if eqn.primitive.name == "stop_gradient"]
    return {id(jaxpr.eqns[n]) for n in stops if _cancels(jaxpr, n)}


def _cancels(jaxpr: Jaxpr, at: int) -> bool:
    start = jaxpr.eqns[at].outvars[0]
    shifts: dict[Var, Shift] = {
        start: _shift(start, 1.0, False, {a: a for a in range(len(shape_of(start)))})
    }
    for eqn in jaxpr.eqns[at + 1 :]:
        given = [None if isinstance(v, Literal) else shifts.get(v) for v in eqn.invars]
        if not any(given):
            continue
        found = _result(eqn, given)
        if found is None:
            return False
        if found.weight:
            shifts[eqn.outvars[0]] = found
    return not any(v in shifts for v in jaxpr.outvars if not isinstance(v, Literal))


def _shift(variable: Var, weight: float, is_factor: bool, axes: Mapping[int, int]) -> Shift:
    shape = shape_of(variable)
    return Shift(weight, is_factor, {a: m for a, m in axes.items() if shape[a] > 1})


def _result(eqn: Equation, given: list[Shift | None]) -> Shift | None:
    """The shift of a result; None where it has none of this form."""
    name = eqn.primitive.name
    if len(eqn.outvars) != 1:
        return None
    out = eqn.outvars[0]
    first = next(g for g in given if g is not None)
    if name in ("add", "sub", "mul", "div"):
        return _joined(name, out, given)
    if len(given) != 1:
        return None
    if name in _PLACES:
        places = _PLACES[name](eqn)
        if places is None:
            return None
        axes = {places[a]: m for a, m in first.axes.items()}
        return _shift(out, first.weight, first.is_factor, axes)
    if name == "neg":
        return first if first.is_factor else first._replace(weight=-first.weight)
    if name == "exp" and not first.is_factor:
        return first._replace(is_factor=True)
    if name == "log" and first.is_factor:
        return first._replace(is_factor=False)
    if name == "abs" and first.is_factor:
        return first
    if name == "sign" and first.is_factor:
        return first._replace(weight=0.0)
    if name == "reduce_sum" and first.is_factor and not set(first.axes) & set(eqn.params["axes"]):
        kept = [a for a in range(len(shape_of(eqn.invars[0]))) if a not in eqn.params["axes"]]
        return _shift(out, first.weight, True, {kept.index(a): m for a, m in first.axes.items()})
    return None


def _joined(name: str, out: Var, given: list[Shift | None]) -> Shift | None:
    """The shift that two operands give together, either of which may have none."""
    sign = -1.0 if name in ("sub", "div") else 1.0
    is_factor = name in ("mul", "div")
    known = [g for g in given if g is not None]
    if any(g.axes != known[0].axes for g in known):
        return None
    if any(g.is_factor != is_factor for g in known):
        same = len(known) == 2 and known[0] == known[1] and name in ("add", "sub")
        return known[0] if same else None  # v exp(c m) + w exp(c m)
    weights = [0.0 if g is None else g.weight for g in given]
    return _shift(out, weights[0] + sign * weights[1], is_factor, known[0].axes)


def _squeezed(eqn: Equation) -> dict[int, int] | None:
    """From old axes to new ones where only axes of size 1 come or go; None elsewhere."""
    old, new = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    before, after = ([a for a, n in enumerate(s) if n > 1] for s in (old, new))
    if [old[a] for a in before] != [new[a] for a in after] or eqn.params.get("dimensions"):
        return None
    return dict(zip(before, after, strict=True))


def _same(eqn: Equation) -> dict[int, int]:
    return {a: a for a in range(len(shape_of(eqn.outvars[0])))}


# Where each axis of the operand goes.
_PLACES: Mapping[str, Any] = {
    "broadcast_in_dim": lambda eqn: dict(enumerate(eqn.params["broadcast_dimensions"])),
    "reshape": _squeezed,
    "squeeze": lambda eqn: _squeezed(eqn.replace(params={})),
    "expand_dims": lambda eqn: _squeezed(eqn.replace(params={})),
    "copy": _same,
    "convert_element_type": _same,
    "transpose": lambda eqn: {a: n for n, a in enumerate(eqn.params["permutation"])},
}
