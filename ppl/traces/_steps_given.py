"""What is given to the steps of a scan.

By handlers of NumPyro around it (`condition`, `substitute`): each step gets its slice of the data. By a run of fewer steps:
values of the first ones, and which steps have been seen.
"""

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
from ._recorder import SEEN, Begun, Recorder

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


# Scans that go on from one that was shorter.


def leading(forced: dict[str, PyTree], size: int) -> dict[str, Array | Begun]:
    """The forced values that can have an axis of this region: the names inside are not known before the body runs."""

    def stacked(value: Array | Begun) -> Array | Begun:
        if isinstance(value, Begun):
            return Begun(value.value, jnp.broadcast_to(value.holds, size))
        return value

    def shape(value: Array | Begun) -> tuple[int, ...]:
        return jnp.shape(value.value if isinstance(value, Begun) else value)

    return {name: stacked(value) for name, value in forced.items() if shape(value)[:1] == (size,)}


def begun(recorder: Recorder, forced: dict[str, PyTree], length: int) -> dict[str, Begun]:
    """The forced values of the first steps of a scan, for a recorder that continues, and which steps have been seen."""
    if not recorder.continues:
        return {}
    found, step = {}, jnp.arange(length)
    for name, value in forced.items():
        if not isinstance(value, Begun) and jnp.ndim(value) and 0 < len(value) < length:
            rest = jnp.broadcast_to(value[-1:], (length - len(value), *value.shape[1:]))
            found[name] = Begun(jnp.concatenate([value, rest]), step < len(value))
    if SEEN in forced:
        found[SEEN] = Begun(step, jnp.broadcast_to(forced[SEEN].holds, length))
    elif recorder.num_seen is not None:
        found[SEEN] = Begun(step, step < recorder.num_seen)
    return found


def check_one_length(recorder: Recorder, own: set[str], length: int) -> None:
    """Observations of a step hold only with the values that they tell of."""
    given = {n: x for n, x in recorder.frame.forced.items() if n in own}
    lengths = {n: len(x) for n, x in given.items() if not isinstance(x, Begun)}
    lengths = {n: size for n, size in lengths.items() if size < length}
    if SEEN not in recorder.frame.forced and recorder.num_seen is not None:
        lengths["num_seen"] = recorder.num_seen
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"A scan goes on from {lengths}, different numbers of steps: where an observation holds and a site that it tells of "
            "is drawn, or the other way round, the draws are not those given the data. Give as many steps of each."
        )


def check_begins_anew(slices: list[dict[str, Any]]) -> None:
    """The first steps of a longer scan that runs backward are those of other `xs`."""
    names = sorted(n for forced in slices for n, x in forced.items() if isinstance(x, Begun))
    if names:
        raise ValueError(
            f"A scan with reverse=True is longer than the one that the values of {names} come from: it begins at the end of xs, "
            "so its first steps are not those that these values belong to. Forecast by a scan that runs forward."
        )
