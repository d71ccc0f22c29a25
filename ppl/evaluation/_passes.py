"""What makes evaluation faster and changes no number: one list, and a switch for each.

The reference is `_evaluate.py` alone. A pass is on where it was measured to pay
(`benchmarks/language/passes.py` prints what each one buys); on other backends the reference runs. `LAPILLI_PASSES` in the
environment, or `passes` around the first call, choose others: tests hold both against each other.

How much each bought on one core, by median time without it over time with it: `windows` 3.9 (HMM), `numbers` 2.0 (mixture of
64), `invariants` 1.2 (AIR, mvd), `rows` and `noise` 1.1.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal, NamedTuple, get_args

import jax

Name = Literal["invariants", "noise", "numbers", "rows", "stacks", "windows"]
NAMES: tuple[Name, ...] = get_args(Name)
VARIABLE = "LAPILLI_PASSES"


class Pass(NamedTuple):
    """A pass: what it does, and the backends on which it was measured to pay."""

    what: str
    backends: tuple[str, ...] = ("cpu",)


PASSES: dict[Name, Pass] = {
    "invariants": Pass("what no replacement reaches is computed once (`_invariants.py`)"),
    "noise": Pass("the noise of a loop is drawn in front of it (`_hoist.py`)"),
    "numbers": Pass("arrays of equal elements are carried along as one number (`_same.py`)"),
    "rows": Pass("rows of a plate stand in front of enumerated states (`_steps.py`)"),
    "stacks": Pass("alike equations of straight code are one (`_stacked.py`)"),
    "windows": Pass("all steps of a chain at once, in place of a loop (`_unrolled.py`)"),
}
_chosen: ContextVar[tuple[Name, ...] | None] = ContextVar("lapilli_passes", default=None)


def is_on(name: Name) -> bool:
    """Whether a pass is to be applied to what is traced now."""
    chosen = _chosen.get()
    if chosen is None and VARIABLE in os.environ:
        chosen = _names(tuple(os.environ[VARIABLE].replace(",", " ").split()))
    if chosen is None:
        return jax.default_backend() in PASSES[name].backends
    return name in chosen


@contextlib.contextmanager
def passes(*names: Name) -> Iterator[None]:
    """Apply these passes and no others to what is traced inside; none for the reference."""
    token = _chosen.set(_names(names))
    try:
        yield
    finally:
        _chosen.reset(token)


def _names(names: tuple[str, ...]) -> tuple[Name, ...]:
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise ValueError(
            f"{unknown} are no passes of the evaluator. Choose from {', '.join(NAMES)}; none of them is the reference."
        )
    return tuple(n for n in NAMES if n in names)
