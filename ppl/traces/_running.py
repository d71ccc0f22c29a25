"""The gradient engine under which a program runs, as found on NumPyro's stack of handlers."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from .._compat import handler_stack, trace_state

if TYPE_CHECKING:
    from ._trace import Trace

TERM = "term"  # the kind of a log-prob that is kept


def plates_met() -> dict[str, int]:
    """The plates that the running engine has met so far, with their sizes."""
    engine = running_engine()
    return {} if engine is None else dict(engine.plates)


def strategies_met() -> dict[str, Any]:
    """The strategies of the latent sites that the running engine has met so far in the open region, by address."""
    engine = running_engine()
    return {} if engine is None else {a: s.strategy for a, s in engine.frame.sites.items()}


def running_engine() -> Any:
    """The gradient engine on the stack, if any."""
    return next((h for h in handler_stack() if getattr(h, "is_engine", False)), None)


def remember_draw(trace: Trace) -> Trace:
    """Keep what was drawn, for scores at its values (`_match.compared_with_draws`)."""
    engine = running_engine()
    if getattr(engine, "has_gradients", False):
        engine.drawn.append(trace)
    return trace


def drawn_before() -> list[Trace]:
    """The traces that were drawn before in the run of the engine."""
    engine = running_engine()
    return engine.drawn if getattr(engine, "has_gradients", False) else []


def refuse_inside_engine(method: str) -> None:
    if getattr(running_engine(), "has_gradients", False):
        raise RuntimeError(
            f"Program.{method}(key, ...) inside ppl.expectation or an objective would make draws without "
            "a gradient strategy, and so a biased gradient. Use ppl.draw(program, *args), which needs "
            "no key."
        )


def keep_terms(trace: Trace, program: object) -> None:
    """Leave a trace's log-probs in the running engine, where it asks for them (`analysis/_subsampled.py`)."""
    engine = running_engine()
    if engine is None or getattr(engine, "rows", None) is None:
        return
    if trace_state() != engine.frame.state:
        raise ValueError(
            f"{program!r} is scored inside of a raw JAX transformation, and plate '{min(engine.rows)}' is subsampled: "
            "whether its rows are separate cannot be seen there. Score it outside of the transformation, or use all rows."
        )
    for name, log_prob in trace.log_probs.items():
        number = 1
        while engine.seen(address := f"{TERM}:{name}#{number}"):
            number += 1
        info = dataclasses.replace(
            trace.sites[name], name=name, kind=TERM, distribution=repr(program)
        )
        engine.frame.infos[address], engine.frame.numbers[address] = (
            info,
            {"term": jnp.asarray(log_prob)},
        )
