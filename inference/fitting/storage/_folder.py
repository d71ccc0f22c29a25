"""Checkpoints of runs whose parameters are split over devices: a folder, written by Orbax while the run goes on.

Each process writes the parts that its devices hold, and a step counts once all have; the last two that count are kept, so that
a process that is killed at any moment costs the steps since. What is read is laid out as the run that reads it asks, of another
mesh or another number of processes. What is compared with the run, and its refusals, are those of a file (`_checkpoint.py`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import PyTree

from ._archive import from_raw, without_keys
from ._checkpoint import (
    Checkpoint,
    CheckpointFile,
    check_fits,
    flatten,
    header_of,
    loader_state,
    states_of,
    states_to,
)


class Folder:
    """Checkpoints under a path, one folder for each step."""

    def __init__(self, path: str | os.PathLike):
        self._path = Path(path).absolute()
        if self._path.is_file():
            raise ValueError(
                f"Checkpoint '{os.fspath(path)}' is a file, and parameters that are split over devices are kept in a folder. "
                "Choose another path."
            )
        orbax = _orbax()
        options = orbax.CheckpointManagerOptions(max_to_keep=2)
        self._orbax, self._files = orbax, orbax.CheckpointManager(self._path, options=options)

    def is_there(self) -> bool:
        """Whether a step was written."""
        return self._files.latest_step() is not None

    def save(self, checkpoint: Checkpoint) -> None:
        """Begin to write; a step that is there is not written again."""
        if checkpoint.step in self._files.all_steps():
            return
        leaves, _ = flatten(checkpoint.carry)
        arrays: dict[str, PyTree] = {
            f"leaf_{i}": without_keys(leaf) for i, leaf in enumerate(leaves)
        }
        small = {"values": checkpoint.values, **states_of(checkpoint.callbacks)}
        header = header_of(checkpoint) | {
            "small": {n: [x.dtype.str, list(x.shape)] for n, x in small.items()}
        }
        save = self._orbax.args
        self._files.save(
            checkpoint.step,
            args=save.Composite(
                header=save.JsonSave(header), arrays=save.StandardSave(arrays | small)
            ),
        )

    def load(
        self,
        carry: PyTree,
        run: dict[str, object],
        callbacks: Sequence[PyTree],
        resume: Literal["same", "changed"],
        is_spread: bool,
    ) -> Checkpoint:
        """The last step, with arrays where those of `carry` lie."""
        step, restore = self._files.latest_step(), self._orbax.args
        header = self._files.restore(
            step, args=restore.Composite(header=restore.JsonRestore())
        ).header
        check_fits(self._path, header, carry, run, callbacks, resume)
        leaves, _ = flatten(carry)
        like: dict[str, PyTree] = {
            f"leaf_{i}": _abstract(without_keys(leaf)) for i, leaf in enumerate(leaves)
        }
        like |= {n: np.zeros(shape, dtype) for n, (dtype, shape) in header["small"].items()}
        wanted = restore.Composite(arrays=restore.StandardRestore(like))
        found = self._files.restore(step, args=wanted).arrays
        own = [from_raw(found[f"leaf_{i}"], leaf.dtype) for i, leaf in enumerate(leaves)]
        return Checkpoint(
            step=header["step"],
            carry=jax.tree.unflatten(jax.tree.structure(carry), own),
            values=np.asarray(found["values"]),
            run=header["run"],
            stopped=header["stopped"],
            callbacks=states_to(callbacks, found),
            loader=loader_state(header, is_spread),
            is_spread=is_spread,
        )

    def close(self) -> None:
        """Wait until all is written."""
        self._files.close()


type Store = CheckpointFile | Folder


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _orbax() -> Any:
    try:
        import orbax.checkpoint as orbax
    except ImportError as err:
        raise ImportError(
            "Checkpoints of parameters that are split over devices need Orbax. Install it with: pip install 'lapilli[sharded]'."
        ) from err
    return orbax
