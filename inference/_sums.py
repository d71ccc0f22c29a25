"""Factors of a sum of objectives, its name, its plan, and what its terms share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from jaxtyping import PyTree

from .. import ppl
from ..ppl._compat import is_concrete
from ..ppl._show import shown


@shown
@dataclasses.dataclass(frozen=True)
class SumPlan:
    """The plans of a sum of objectives, term by term; `print(plan)` shows them one below the other.

    Attributes:
        terms: of each its factor, its name and its plan; None for one that has none (a class of your own).
    """

    terms: tuple[tuple[float, str, ppl.Plan | None], ...]

    def _facts(self) -> dict[str, PyTree]:
        return {f"{a:g} x {name}": _said(plan, name) for a, name, plan in self.terms}

    def _tables(self) -> list[list[tuple[str, ...]]]:
        return [rows for _, _, plan in self.terms if plan is not None for rows in plan._tables()]

    def __str__(self) -> str:
        parts = [
            f"{a:g} x {_said(plan, name) if plan is None else plan}" for a, name, plan in self.terms
        ]
        return "\n\n".join(parts)


def _said(plan: ppl.Plan | None, name: str) -> str:
    return f"{name} (no plan: its gradient is taken at its word)" if plan is None else plan.label


def factor_of(given: PyTree) -> float:
    """A factor as a number that is known now: its sign decides the direction."""
    is_scalar = isinstance(given, Real) or getattr(given, "shape", None) == ()
    if isinstance(given, bool) or not is_scalar or not is_concrete(given):
        raise TypeError(
            f"An objective is multiplied by a number, known before the steps since its sign decides the direction; got "
            f"{type(given).__name__}. Pass a float; a weight that changes goes into an objective of your own, "
            "inference.objective."
        )
    factor = float(given)
    if factor == 0 or not math.isfinite(factor):
        raise ValueError(
            f"An objective is multiplied by {factor}; the factor must be finite and not zero. Leave the term out."
        )
    return factor


def written(terms: Sequence[tuple[float, str]]) -> str:
    """A sum as text: "elbo - 0.1 forward_kl"."""
    parts = []
    for i, (a, name) in enumerate(terms):
        sign = "-" if a < 0 else "+"
        size = "" if abs(a) == 1 and len(terms) > 1 else f"{abs(a):g} "
        parts.append(f"{'-' if a < 0 and i == 0 else '' if i == 0 else f' {sign} '}{size}{name}")
    return "".join(parts)


def common_of(given: Sequence[ppl.Program]) -> Any:
    """The program that all have who have one; None if there are two, or none."""
    programs = [program for program in given if program is not None]
    first = programs[0] if programs else None
    is_same = lambda p: (
        p is first
        or (
            isinstance(p, ppl.Program)
            and isinstance(first, ppl.Program)
            and type(p) is type(first)
            and p.fn is first.fn
            and not p.params
            and not first.params
        )
    )
    return first if all(map(is_same, programs)) else None
