"""`numpyro.handlers.condition` and `substitute` around a scan: each step gets its own slice of the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.handlers
from jaxtyping import PyTree
from numpyro.primitives import Messenger

from .._compat import handler_stack
from .._types import Message
from ._recorder import Recorder

Array = jax.Array


class GivenValues(NamedTuple):
    """Values that a handler gives to sites.

    Attributes:
        value: message -> value, or None.
        observes: whether a site with a value is observed.
    """

    value: Callable[[dict[str, PyTree]], PyTree]
    observes: bool


class AtStep(Messenger):
    """In a step of a scan, in front of the handlers around the scan, which it stands for.

    Args:
        given: what they give, innermost first.
        step: number of the step.
        length: of the scan.
    """

    def __init__(self, given: Sequence[GivenValues], step: Array, length: int) -> None:
        super().__init__()
        self.given, self.step, self.length = given, step, length

    def process_message(self, msg: Message) -> None:
        if msg["type"] != "sample" or msg.get("_control_flow_done"):
            return
        for given in self.given:
            value = given.value(msg)
            if value is not None:
                msg["value"] = self.at_step(msg, value)
                msg["is_observed"] |= given.observes
        msg["_control_flow_done"] = True  # so the handlers themselves pass it over

    def at_step(self, msg: Message, value: Array) -> Any:
        """The step's slice of a value with an axis of time; one without is that of every step.

        Raises:
            ValueError: it has neither shape.
        """
        shape = msg["fn"].shape(msg["kwargs"].get("sample_shape", ()))
        if jnp.ndim(value) == len(shape):
            return value
        if jnp.shape(value)[:1] == (self.length,) and jnp.ndim(value) == len(shape) + 1:
            return jnp.asarray(value)[self.step]
        raise ValueError(
            f"Site '{msg['name']}': handlers.condition or handlers.substitute around a scan of {self.length} steps gives it a "
            f"value of shape {jnp.shape(value)}. Give one value of shape {shape} for each step, {(self.length, *shape)}; steps "
            "without data take obs_mask."
        )


def given_around() -> list[GivenValues]:
    """What the handlers between here and the recorder give, innermost first."""
    found: list[GivenValues] = []
    for handler in reversed(handler_stack()):
        if isinstance(handler, Recorder) and handler.is_final:
            break
        if isinstance(handler, AtStep):
            # Of the scan around this one; it has seen the handlers further out.
            found += [GivenValues(_sliced(handler, g), g.observes) for g in handler.given]
            break
        if isinstance(handler, numpyro.handlers.condition):
            found.append(GivenValues(_value(handler.data, handler.condition_fn), True))
        elif isinstance(handler, numpyro.handlers.substitute):
            found.append(GivenValues(_value(handler.data, handler.substitute_fn), False))
    return found


def _value(data: PyTree, fn: Any) -> Callable[[dict[str, PyTree]], PyTree]:
    return (lambda msg: data.get(msg["name"])) if data is not None else fn


def _sliced(handler: AtStep, given: GivenValues) -> Callable[[dict[str, PyTree]], PyTree]:
    """A value of two axes of time, at the outer step."""

    def value(msg: Message) -> PyTree:
        whole = given.value(msg)
        if whole is None or jnp.shape(whole)[:1] != (handler.length,):
            return whole
        return whole[handler.step]

    return value
