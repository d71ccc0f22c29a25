"""Scans that go on: values of the first steps of a longer scan, from one that was shorter."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._recorder import SEEN, Begun, Recorder


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
