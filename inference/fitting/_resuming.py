"""What a run of `fit` is, for its checkpoint; and where it goes on from one."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ...ppl._types import Key
from .data import LoaderState, Source
from .storage import Store
from .training import Carry, Stateful


def description(
    key: Key,
    num_seeds: int | None,
    subsample: Mapping[str, int] | None,
    plate_sizes: Mapping[str, float] | None,
    average: float | str | None,
    source: Source,
    params: PyTree,
) -> dict[str, object]:
    """What must be equal for a checkpoint to be resumed, besides the structure of the carry."""
    number = lambda size: size if math.isinf(size) else int(size)
    plain = lambda sizes: sizes if sizes is None else {k: number(sizes[k]) for k in sorted(sizes)}
    return {
        "key": [str(jax.random.key_impl(key)), np.asarray(jax.random.key_data(key)).tolist()],
        "args": source.shapes,
        "subsample": plain(subsample),
        "plate_sizes": plain(plate_sizes),
        "num_seeds": num_seeds,
        "average": average,
        # An unconstrained number means something else under another constraint.
        "constraints": {n: type(c).__name__ for n, c in getattr(params, "constraints", {}).items()},
    }


def resumed(
    checkpoint: str | os.PathLike | None,
    carry: Carry,
    run: dict,
    num_steps: int | None,
    num_seeds: int | None,
    callbacks: Sequence[Stateful],
    resume: Literal["same", "changed"],
    is_spread: bool,
    store: Store | None,
) -> tuple[Carry, int, np.ndarray, bool, LoaderState | None]:
    """(carry, step, values, whether a callback had ended the run, state of the loader) to begin with."""
    seeds = () if num_seeds is None else (num_seeds,)
    empty = np.zeros((0, *seeds), jnp.result_type(float))
    if checkpoint is None or store is None or not store.is_there():
        return carry, 0, empty, False, None
    states = [c.get_state(carry.params) for c in callbacks]
    found = store.load(carry, run, states, resume, is_spread)
    if num_steps is not None and found.step > num_steps:
        raise ValueError(
            f"Checkpoint '{os.fspath(checkpoint)}' is already at step {found.step}, beyond num_steps={num_steps}. Ask for more "
            "steps, or choose another path."
        )
    for callback, state in zip(callbacks, found.callbacks, strict=True):
        callback.set_state(state)
    return found.carry, found.step, found.values, found.stopped, found.loader
