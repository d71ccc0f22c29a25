"""One file of arrays by name and a header: a NumPy archive, written whole or not at all.

The header is JSON in the entry `header`. `numpy.load` opens the file, and `json.loads(str(file["header"]))` says what is in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np


def write(path: str | os.PathLike, header: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write an archive, whole or not at all."""
    with _replacing(path) as file:
        np.savez(file, header=np.array(json.dumps(header)), **arrays)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with _replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def _replacing(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """A temporary file in the same folder, renamed at the end, so that `path` is the old file or the new one."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(
    path: str | os.PathLike, what: str, file_format: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays of a file that is `what` and has this format.

    Raises:
        ValueError: it is not.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {entry: archive[entry] for entry in archive.files}
        header = json.loads(str(arrays.pop("header")))
        found = header["format"]
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, TypeError) as err:
        raise ValueError(
            f"'{name}' is no {what} ({type(err).__name__}: {err}). Delete it or choose another path."
        ) from err
    if found != file_format:
        raise ValueError(
            f"'{name}' has the format {found!r}; what is read here is a {what} of format {file_format!r}. Give the path of one, "
            "or write it anew with this version."
        )
    return header, arrays


def to_raw(leaf: Any) -> np.ndarray:
    """An array that NumPy can store: keys by their data, bfloat16 and its kin by their bits."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return array if array.dtype.kind in "bifuc" else array.view(f"u{array.dtype.itemsize}")


def from_raw(raw: np.ndarray, dtype: Any) -> Any:
    """The inverse of `to_raw`: keys are of JAX, all else of NumPy."""
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        impl = jax.random.key_impl(jnp.empty((), dtype))
        return jax.random.wrap_key_data(jnp.asarray(raw), impl=impl)
    return raw if raw.dtype == dtype else raw.view(dtype)
