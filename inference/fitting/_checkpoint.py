"""Checkpoints of fit: one file with everything that the next step depends on.

Format: a NumPy archive. Entry `header` is JSON (format, step, description of the run and of each leaf); entries `leaf_<i>` and
`values` are raw arrays. Written to a temporary file in the same folder and renamed, so that a checkpoint is either the old or the
new one, never half of one. Nothing is pickled: loading a file runs no code from it.

Over a mesh every device has all parameters, optimiser states and counters whole (see `_loop._replicate`), so nothing has to be
gathered: the first of several processes writes the file, and each reads it, from a file system that they share.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_FORMAT = 2  # 2: the run knows the values of its data


class Checkpoint(NamedTuple):
    """Contents of a checkpoint.

    Attributes:
        step: number of completed steps.
        carry: pytree of everything that the next step reads.
        values: the objective's value at each completed step, in nats.
        run: description of the run, JSON; a checkpoint resumes only a run with the same description.
        stopped: whether a callback ended the run.
    """

    step: int
    carry: Any
    values: np.ndarray
    run: dict[str, Any]
    stopped: bool


def save(path: str | os.PathLike, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to `path`, atomically; with several processes, the first one writes."""
    if jax.process_index() != 0:
        return
    path = Path(path)
    leaves, names = _flatten(checkpoint.carry)
    header = {
        "format": _FORMAT,
        "step": checkpoint.step,
        "stopped": checkpoint.stopped,
        "run": checkpoint.run,
        "leaves": [
            {"name": name, "dtype": str(leaf.dtype), "shape": list(leaf.shape)}
            for name, leaf in zip(names, leaves, strict=True)
        ],
    }
    arrays: dict[str, Any] = {f"leaf_{i}": _to_raw(leaf) for i, leaf in enumerate(leaves)}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, header=np.array(json.dumps(header)), values=checkpoint.values, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(path: str | os.PathLike, carry: Any, run: dict[str, Any]) -> Checkpoint:
    """Read the checkpoint at `path` into the structure of `carry`.

    Raises:
        ValueError: if the file is no checkpoint, or belongs to a run with other parameters, optimiser, key or data; the message
            lists every difference.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            header = json.loads(str(archive["header"]))
            raw = [archive[f"leaf_{i}"] for i in range(len(header["leaves"]))]
            values = archive["values"]
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, TypeError) as err:
        raise ValueError(
            f"'{os.fspath(path)}' is no checkpoint of fit ({type(err).__name__}: {err}). Delete it or choose another path."
        ) from err
    if header["format"] != _FORMAT:
        raise ValueError(
            f"Checkpoint '{os.fspath(path)}' has format {header['format']}; this version reads format {_FORMAT}."
        )
    _check_fits(path, header, carry, run)
    leaves = [_from_raw(a, leaf) for a, leaf in zip(raw, jax.tree.leaves(carry), strict=True)]
    restored = jax.tree.unflatten(jax.tree.structure(carry), leaves)
    return Checkpoint(header["step"], restored, values, header["run"], header["stopped"])


def fingerprint(arrays: Any) -> list[str]:
    """A hash of each array's values: data of the same shape are not the same data."""
    return [_hash(array) for array in arrays]


def _hash(array: Any) -> str:
    if not getattr(array, "is_fully_addressable", True):
        return "spread over processes"
    raw = np.ascontiguousarray(_to_raw(jnp.asarray(array)))
    return hashlib.blake2b(raw.view(np.uint8).data if raw.size else b"", digest_size=8).hexdigest()


def _check_fits(path: Any, header: dict, carry: Any, run: dict[str, Any]) -> None:
    leaves, names = _flatten(carry)
    now = {
        name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in zip(names, leaves, strict=True)
    }
    was = {leaf["name"]: f"{leaf['dtype']}{leaf['shape']}" for leaf in header["leaves"]}
    was |= {f"argument '{name}'": json.dumps(value) for name, value in header["run"].items()}
    now |= {f"argument '{name}'": json.dumps(value) for name, value in run.items()}
    differences = [
        f"{name}: {was.get(name, 'absent')} in the checkpoint, {now.get(name, 'absent')} now"
        for name in dict.fromkeys([*was, *now])
        if was.get(name) != now.get(name)
    ]
    if differences:
        raise ValueError(
            f"Checkpoint '{os.fspath(path)}' belongs to another run:\n"
            + "\n".join(differences)
            + "\nRepeat the call that wrote it, or choose another path (or delete the file) to start anew."
        )


def _flatten(carry: Any) -> tuple[list[Any], list[str]]:
    pairs, _ = jax.tree_util.tree_flatten_with_path(carry)
    return [leaf for _, leaf in pairs], [jax.tree_util.keystr(path) for path, _ in pairs]


def _to_raw(leaf: jax.Array) -> np.ndarray:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    # NumPy cannot store bfloat16 and its kin; the header remembers the dtype.
    return array if array.dtype.kind in "bifuc" else array.view(f"u{array.dtype.itemsize}")


def _from_raw(raw: np.ndarray, like: jax.Array) -> jax.Array:
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(raw), impl=jax.random.key_impl(like))
    return jnp.asarray(raw if raw.dtype == like.dtype else raw.view(like.dtype))
