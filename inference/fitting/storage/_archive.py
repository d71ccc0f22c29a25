"""One file of arrays by name and a header: a NumPy archive, written whole or not at all, and read with suspicion.

The header is JSON in the entry `header`; `digest` is a hash of all other entries. `numpy.load` opens the file, and
`json.loads(str(file["header"]))` says what is in it.

Read is only what such a file can be: entries that are not compressed, so that nothing takes more memory than the file has bytes;
arrays of numbers, never pickled objects; those that the header lists, with the digest that they had.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import zipfile
from collections.abc import Mapping
from typing import IO

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from ....ppl._types import Key
from ._replacing import replacing

_STARTS = {
    b"\x93NUMPY": "a single NumPy array",
    b"\x89HDF": "an HDF5 or netCDF file",
    b"\x80": "a pickle, which is never read",
}


def write(
    path: str | os.PathLike, header: Mapping[str, PyTree], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write an archive, whole or not at all.

    Raises:
        OSError: the file cannot be written; what was there before is unchanged.
    """
    text = json.dumps({**header, "entries": sorted(arrays)})
    entries = {"header": np.array(text), **{name: np.asarray(x) for name, x in arrays.items()}}
    with replacing(path) as file:
        np.savez(file, allow_pickle=False, **entries, digest=digest_of(entries))


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with replacing(path) as file:
        file.write(content)


def read(
    path: str | os.PathLike, what: str, file_format: int | str
) -> tuple[dict[str, PyTree], dict[str, np.ndarray]]:
    """The header and the arrays of a file that is `what` and has this format.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
        ValueError: it is something else, or damaged.
    """
    name, cause = os.fspath(path), None
    header, entries = {}, {}
    try:
        fault = _kind(path)
        if fault is None:
            with open(path, "rb") as file:
                fault, entries = _entries(file)
        if fault is None:
            header = json.loads(str(entries["header"]))
            fault = _fault(header, entries) if header["format"] == file_format else None
    except Exception as err:  # zipfile, zlib, NumPy and JSON have many of their own
        if isinstance(err, OSError) and err.errno not in (None, errno.EINVAL):  # a seek to nowhere
            raise type(err)(
                f"'{name}' cannot be read as a {what}: {err.strerror}. Give the path of one."
            ) from err
        fault, cause = "it is a damaged or foreign archive", err
    if fault is not None:
        raise ValueError(
            f"'{name}' is no {what}: {fault}. Delete it or choose another path."
        ) from cause
    if (found := header["format"]) != file_format:
        raise ValueError(
            f"'{name}' has the format {found!r}; what is read here is a {what} of format {file_format!r}. Give the path of one, "
            "or write it anew with this version."
        )
    return header, {n: x for n, x in entries.items() if n not in ("header", "digest")}


def _kind(path: str | os.PathLike) -> str | None:
    """What a file is that is no archive, in words; None for an archive."""
    if os.path.exists(path) and not os.path.isfile(path):
        return "it is a directory" if os.path.isdir(path) else "it is no regular file"
    with open(path, "rb") as file:
        head = file.read(16)
    if head.startswith(b"PK"):
        return None
    if not head:
        return "it is empty"
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return f"it is {kind}"
    is_text = all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head)
    return "it is text" if is_text else "it is of another kind"


def _entries(file: IO[bytes]) -> tuple[str | None, dict[str, np.ndarray]]:
    """What is wrong with the archive, or None; and its arrays."""
    size, found = os.fstat(file.fileno()).st_size, {}
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        packed = [i.filename for i in infos if i.compress_type != zipfile.ZIP_STORED]
        if packed:
            return f"its entries {packed} are compressed", {}
        if (declared := sum(info.file_size for info in infos)) > size:
            return f"its entries claim {declared:,} bytes, and it has {size:,}", {}
        if len({info.filename for info in infos}) < len(infos):
            return "it has entries twice", {}
        for info in infos:
            name, raw = info.filename.removesuffix(".npy"), archive.read(info)
            array = _array(raw)
            if array is None:
                return f"its entry '{name}' is no array of numbers of the size that it claims", {}
            found[name] = array
    return (None if "header" in found else "it has no header"), found


def _array(raw: bytes) -> np.ndarray | None:
    """An array in the format .npy; None if it would hold Python objects or claims another size than there are bytes."""
    stream, npy = io.BytesIO(raw), np.lib.format
    is_first = npy.read_magic(stream) == (1, 0)
    parse = npy.read_array_header_1_0 if is_first else npy.read_array_header_2_0
    shape, is_fortran, dtype = parse(stream)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(raw) - stream.tell():
        return None
    if not math.prod(shape):
        return np.zeros(shape, dtype)
    flat = np.frombuffer(raw, dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if is_fortran else "C").copy()


def _fault(header: Mapping[str, PyTree], entries: Mapping[str, np.ndarray]) -> str | None:
    """What is not as it was written; None if all is."""
    if "entries" not in header:  # of an older version, which kept no digest
        return None
    there = set(entries) - {"header", "digest"}
    if extra := sorted(there - set(header["entries"])):
        return f"it has entries that do not belong to it, {extra}"
    if missing := sorted(set(header["entries"]) - there):
        return f"it lacks its entries {missing}"
    content = {name: x for name, x in entries.items() if name != "digest"}
    is_same = "digest" in entries and np.array_equal(digest_of(content), entries["digest"])
    return None if is_same else "its content has changed since it was written"


def digest_of(entries: Mapping[str, np.ndarray]) -> np.ndarray:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(entries):
        x = np.ascontiguousarray(entries[name])
        digest.update(f"{name} {x.dtype.str} {entries[name].shape};".encode())
        if x.size:
            digest.update(x.reshape(-1).view(np.uint8).data)
    return np.frombuffer(digest.digest(), np.uint8)


def without_keys(leaf: PyTree) -> PyTree:
    """The array, or the data of the keys that it holds."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def to_raw(leaf: PyTree) -> np.ndarray:
    """An array that NumPy can store: keys by their data, bfloat16 and its kin by their bits."""
    array = np.asarray(without_keys(leaf))
    return array if array.dtype.kind in "bifuc" else array.view(f"u{array.dtype.itemsize}")


def from_raw(raw: np.ndarray, dtype: DTypeLike) -> Key | np.ndarray:
    """The inverse of `to_raw`: keys are of JAX, all else of NumPy; and of `without_keys`, where arrays stay where they lie."""
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        impl = jax.random.key_impl(jnp.empty((), dtype))
        return jax.random.wrap_key_data(jnp.asarray(raw), impl=impl)
    return raw if raw.dtype == dtype else raw.view(dtype)
