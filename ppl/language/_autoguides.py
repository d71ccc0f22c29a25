"""NumPyro's autoguides, which learn the sites of their model, and so their parameters, at their first call."""

from __future__ import annotations

from typing import Any

import numpyro.handlers
from numpyro.infer.autoguide import AutoGuide

from ._keywords import parted


def set_up(program: Any, key: Any, args: Any) -> None:
    """Let an autoguide meet its model; outside of any transformation, whose tracers it would keep."""
    if _is_new(program):
        positional, keywords = parted(args)
        with numpyro.handlers.block():
            numpyro.handlers.seed(program.fn, rng_seed=key)(*positional, **keywords)


def check_set_up(program: Any) -> None:
    """Refuse an autoguide that has not met its model.

    Raises:
        ValueError: naming the guide and the remedy.
    """
    if _is_new(program):
        name = type(program.fn).__name__
        raise ValueError(
            f"{name}: the autoguide has not met its model: its sites are not known and its parameters have not been made. "
            "Call objective.init(key, *args) (or program.init) once, outside of jit, and pass the parameters that it returns."
        )


def _is_new(program: Any) -> bool:
    return isinstance(program.fn, AutoGuide) and program.fn.prototype_trace is None
