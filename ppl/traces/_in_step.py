"""The recorders around a control-flow statement, told together of its body: when it begins, when it ends, what came out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._compat import handler_stack
from ._recorder import Recorder, RegionState
from ._sites import Region


def recorders_around() -> list[Recorder]:
    """The recorders on the stack; none if no run of ours is at the end of it."""
    recorders = [h for h in handler_stack() if isinstance(h, Recorder)]
    return recorders if any(r.is_final for r in recorders) else []


def push_all(
    recorders: list[Recorder], kind: str, keys: list[PyTree], forced: list[dict[str, PyTree]]
) -> None:
    """Each recorder enters the body, with its key and its forced values."""
    for recorder, key, values in zip(recorders, keys, forced, strict=True):
        recorder.push(kind, key, values)


def pop_all(recorders: list[Recorder]) -> tuple[list[RegionState], list[PyTree]]:
    """Each recorder leaves the body: their frames, and the numbers that the transformation has to hand out."""
    popped = [r.pop() for r in recorders]
    return [frame for frame, _ in popped], [numbers for _, numbers in popped]


def explored(
    recorders: list[Recorder], inputs: Callable[..., PyTree], body: Callable[..., PyTree]
) -> PyTree:
    """What the body returns in a run that shows its parameters, and counts for nothing; None where nobody asks."""
    if not any(r.is_exploring for r in recorders):
        return None
    push_all(recorders, "explore", *inputs())
    out = body()
    for recorder in recorders:
        recorder.pop()
    return out


def are_exploring(recorders: list[Recorder]) -> bool:
    """Whether this statement stands in a body that is explored by all of them: one run of its own body is then enough.

    Each level of nested statements would double the runs otherwise. What it returns is that of one step or branch. One that
    began inside of an explored body (of a guide within particles) keeps its sites, which others are scored at: it needs the run.
    """
    return all(any(frame.kind == "explore" for frame in r.frames) for r in recorders)


def repeated(tree: PyTree, length: int) -> Any:
    """A tree with a leading axis along which nothing changes."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (length, *jnp.shape(x))), tree)


def first_step(tree: PyTree) -> PyTree:
    """What arrays with a leading axis of steps hold in the first one; zeros where there are no steps, to trace one."""
    return jax.tree.map(lambda x: x[0] if len(x) else _blank(x), tree)


def _blank(x: Array) -> Array:
    """One step's worth of an array of no steps."""
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0, impl=jax.random.key_impl(x)), x.shape[1:])
    return jnp.zeros(x.shape[1:], x.dtype)


def merge_all(
    recorders: list[Recorder],
    frames: list[RegionState],
    numbers: list[dict[str, PyTree]],
    region: Region,
) -> None:
    """What came out of the body goes into the frames around."""
    for recorder, frame, values in zip(recorders, frames, numbers, strict=True):
        recorder.merge(frame, values, region)


def axis_name(recorders: list[Recorder], kind: str) -> str:
    """The name of the axis that a statement gives to its sites; nested ones are numbered."""
    base = "time" if kind == "scan" else kind
    depth = recorders[0].depth(kind)
    return base if depth == 0 else f"{base}_{depth}"
