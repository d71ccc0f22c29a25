"""Checkpoints, of fit and of streams: one file with everything that the next step depends on.

Format (`_archive.py`): the header has the step and descriptions of the run and of each leaf; the arrays are `leaf_<i>` and
`values`.

Over a mesh every device has all parameters, optimiser states and counters whole, unless they are split (`_folder.py`), so nothing
has to be gathered: the first of several processes writes the file, and each reads it, from a file system that they share. Where
each process has a loader of its own the states of all are kept; another number of processes reads its batches again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ..._processes import texts
from ..data import LoaderState
from ._archive import from_raw, read, to_raw, write
from ._replacing import check_writable
from ._run import changes
from ._structure import warn_of_versions

# 2: the run knows the values of its data; 3: callbacks have states; 4: where the loader's state is from; 5: its programs;
# 6: the loaders of all processes
_FORMAT = 6


class Checkpoint(NamedTuple):
    """Contents of a checkpoint.

    Attributes:
        step: number of completed steps.
        carry: pytree of everything that the next step reads.
        values: the objective's value at each completed step, in nats.
        run: description of the run, JSON; a checkpoint resumes only a run with the same description. What `describe` found is
            in "belongs to".
        stopped: whether a callback ended the run.
        callbacks: states of the callbacks that have one, in their order.
        loader: `LoaderState` of the loader of batches; None if it has none.
        is_spread: whether each process has a loader of its own.
    """

    step: int
    carry: PyTree
    values: np.ndarray
    run: dict[str, object]
    stopped: bool
    callbacks: Sequence[PyTree] = ()
    loader: LoaderState | None = None
    is_spread: bool = False


def save(path: str | os.PathLike, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to `path`, atomically; with several processes, the first one writes."""
    header = header_of(checkpoint)
    if jax.process_index() == 0:
        leaves, _ = flatten(checkpoint.carry)
        arrays = {f"leaf_{i}": to_raw(leaf) for i, leaf in enumerate(leaves)}
        more = states_of(checkpoint.callbacks)
        write(path, header, {"values": checkpoint.values, **arrays, **more})


def header_of(checkpoint: Checkpoint) -> dict[str, PyTree]:
    """All but the arrays; with loaders of their own all processes have to ask."""
    leaves, names = flatten(checkpoint.carry)
    loader = _as_json(checkpoint.loader)
    states = [loader]
    if checkpoint.is_spread:
        states = [json.loads(text) for text in texts(json.dumps(loader))]
    return {
        "format": _FORMAT,
        "step": checkpoint.step,
        "stopped": checkpoint.stopped,
        "run": checkpoint.run,
        "callbacks": [str(jax.tree.structure(state)) for state in checkpoint.callbacks],
        "loaders": states,
        "loader_read": checkpoint.loader.num_read if checkpoint.loader is not None else 0,
        "leaves": [
            {"name": name, "dtype": str(leaf.dtype), "shape": list(leaf.shape)}
            for name, leaf in zip(names, leaves, strict=True)
        ],
    }


def states_of(callbacks: Sequence[PyTree]) -> dict[str, np.ndarray]:
    """The arrays of the callbacks' states, by name."""
    return {
        f"callback_{number}_{i}": to_raw(leaf)
        for number, state in enumerate(callbacks)
        for i, leaf in enumerate(jax.tree.leaves(state))
    }


def states_to(callbacks: Sequence[PyTree], arrays: Mapping[str, PyTree]) -> list[PyTree]:
    """The inverse of `states_of`, into states like these."""
    return [
        jax.tree.unflatten(
            jax.tree.structure(like),
            [
                from_raw(np.asarray(arrays[f"callback_{number}_{i}"]), x.dtype)
                for i, x in enumerate(jax.tree.leaves(like))
            ],
        )
        for number, like in enumerate(callbacks)
    ]


def load(
    path: str | os.PathLike,
    carry: PyTree,
    run: dict[str, object],
    callbacks: Sequence[PyTree] = (),
    resume: Literal["same", "changed"] = "same",
    is_spread: bool = False,
) -> Checkpoint:
    """Read the checkpoint at `path` into the structures of `carry` and of the callbacks' states.

    Raises:
        FileNotFoundError: there is no file.
        OSError: it cannot be read.
        ValueError: the file is no checkpoint, or its arrays have other names, shapes or types; or, where `resume` is "same", it
            belongs to a run with other programs, optimiser, key, data or callbacks' states. The message lists every difference.
    """
    header, arrays = read(path, "checkpoint", _FORMAT)
    check_fits(path, header, carry, run, callbacks, resume)
    leaves = [
        jnp.asarray(from_raw(arrays[f"leaf_{i}"], leaf.dtype))
        for i, leaf in enumerate(jax.tree.leaves(carry))
    ]
    restored = jax.tree.unflatten(jax.tree.structure(carry), leaves)
    states = states_to(callbacks, arrays)
    return Checkpoint(
        header["step"], restored, arrays["values"], header["run"], header["stopped"], states,
        loader_state(header, is_spread), is_spread,
    )  # fmt: skip


class CheckpointFile:
    """The checkpoint of a run in one file; the methods are those of `Folder`.

    Raises:
        OSError: there is none, and none can be written.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self._path = path
        if not self.is_there():
            check_writable(path)

    def is_there(self) -> bool:
        """Whether one was written."""
        return os.path.exists(self._path)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write it, in place of the one before."""
        save(self._path, checkpoint)

    def load(
        self,
        carry: PyTree,
        run: dict[str, object],
        callbacks: Sequence[PyTree],
        resume: Literal["same", "changed"],
        is_spread: bool,
    ) -> Checkpoint:
        """What was written last."""
        return load(self._path, carry, run, callbacks, resume, is_spread)

    def close(self) -> None:
        """Nothing is left to be waited for."""


def _as_json(loader: LoaderState | None) -> dict[str, PyTree] | None:
    """None where there is no state, or one that JSON cannot hold: batches are then read again."""
    if loader is None:
        return None
    if isinstance(loader.state, bytes):
        return {"bytes": base64.b64encode(loader.state).decode()}
    try:
        again = json.loads(json.dumps(loader.state))
    except TypeError:
        return None
    return {"json": again} if loader.state is not None and again == loader.state else None


def loader_state(header: dict[str, PyTree], is_spread: bool) -> LoaderState | None:
    """Where the loader of this process stood; None where it is to begin anew."""
    states = header["loaders"]
    if is_spread and len(states) != jax.process_count():
        return None
    state = states[jax.process_index() if is_spread else 0]
    if state is None:
        return None
    state = base64.b64decode(state["bytes"]) if "bytes" in state else state["json"]
    return LoaderState(state, header["loader_read"])


_PART = 2**26  # bytes


def fingerprint(arrays: Iterable[Array]) -> list[str]:
    """A hash of each array's values: data of the same shape are not the same data."""
    return [_hash(array) for array in arrays]


def _hash(array: Array | np.ndarray) -> str:
    if not getattr(array, "is_fully_addressable", True):
        return "spread over processes"
    found = hashlib.blake2b(digest_size=8)
    # In parts, of which a file that is mapped into memory is read one at a time.
    num_parts = array.nbytes // _PART + 1 if isinstance(array, np.ndarray) and array.ndim else 1
    for part in np.array_split(array, num_parts) if num_parts > 1 else [array]:
        raw = np.ascontiguousarray(to_raw(jnp.asarray(part)))
        found.update(raw.view(np.uint8).data if raw.size else b"")
    return found.hexdigest()


def check_fits(
    path: str | os.PathLike,
    header: dict,
    carry: PyTree,
    run: dict[str, PyTree],
    callbacks: Sequence[PyTree],
    resume: str,
) -> None:
    """Refuse what belongs to another run; the message lists every difference."""
    run = {**run, "callbacks": [str(jax.tree.structure(state)) for state in callbacks]}
    header["run"]["callbacks"] = header["callbacks"]
    leaves, names = flatten(carry)
    now = {
        name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in zip(names, leaves, strict=True)
    }
    was = {leaf["name"]: f"{leaf['dtype']}{leaf['shape']}" for leaf in header["leaves"]}
    lines, others = _differences(was, now), []
    always = ["callbacks", "callbacks with a state"]  # read into what these are now
    compared = always if resume == "changed" else dict.fromkeys([*header["run"], *run])
    as_text = lambda found: {
        f"argument '{name}'": json.dumps(found[name], sort_keys=True)
        for name in compared
        if name in found and name != "belongs to"
    }
    lines += _differences(as_text(header["run"]), as_text(run))
    if resume == "same" and {"belongs to"} <= {*header["run"]} & {*run}:
        more, others = changes(header["run"]["belongs to"], run["belongs to"])
        lines += more
    libraries = f" ({'; '.join(others)})" if others else ""
    if lines:
        raise ValueError(
            f"Checkpoint '{os.fspath(path)}' belongs to another run{libraries}:\n"
            + "\n".join(lines)
            + "\nRepeat the call that wrote it, or choose another path (or delete the file) to start anew. To go on from it all "
            "the same, with parameters and states of these names and shapes, say resume='changed'."
        )
    if others:
        warn_of_versions(
            f"Checkpoint '{os.fspath(path)}' was written by {'; '.join(others)}. Sites, shapes and options are the same; whether "
            "the computations are, was not compared."
        )


def _differences(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [
        f"{name}: {was.get(name, 'absent')} in the checkpoint, {now.get(name, 'absent')} now"
        for name in dict.fromkeys([*was, *now])
        if was.get(name) != now.get(name)
    ]


def flatten(carry: PyTree) -> tuple[list[Array], list[str]]:
    """Leaves and their names."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(carry)
    return [leaf for _, leaf in pairs], [jax.tree_util.keystr(path) for path, _ in pairs]
