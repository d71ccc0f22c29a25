"""The gradient engine under which a program runs, as found on NumPyro's stack of handlers."""

from __future__ import annotations

from typing import Any

from ._compat import handler_stack


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


def refuse_inside_engine(method: str) -> None:
    if getattr(running_engine(), "has_gradients", False):
        raise RuntimeError(
            f"Program.{method}(key, ...) inside ppl.expectation or an objective would make draws without "
            "a gradient strategy, and so a biased gradient. Use ppl.draw(program, *args), which needs "
            "no key."
        )
