"""Memory that is not copied more often than need be: data on the device once, stacks of batches in buffers used again."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..._arguments import is_mapped

_ALIGNMENT = 64  # bytes; so aligned, XLA computes on the array in place of a copy (on a CPU)
_LARGE = 2**20  # bytes


def held(args: PyTree) -> PyTree:
    """The arguments with large arrays of NumPy on the device, so that all who read them read one copy; files stay files."""
    return jax.tree.map(_on_device, args)


def _on_device(x: PyTree) -> PyTree:
    if not isinstance(x, np.ndarray) or x.nbytes < _LARGE or x.dtype.kind not in "biufc":
        return x
    if is_mapped(x):
        return x
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(x.dtype))
    if dtype != x.dtype:  # rounded into the memory that the device then reads
        rounded = _aligned(x.shape, dtype)
        np.copyto(rounded, x, casting="unsafe")
        x = rounded
    return jnp.asarray(x)


class Buffers:
    """Arrays of the same shapes again and again, for one thread that takes and one that gives back.

    Fresh memory costs a fault for each page, more than the copy itself.
    """

    def __init__(self) -> None:
        self._free: list[list[np.ndarray]] = []

    def take(self, shapes: list[tuple[int, ...]], dtypes: list[np.dtype]) -> list[np.ndarray]:
        """Arrays with any content, finite at first."""
        wanted = list(zip(shapes, map(np.dtype, dtypes), strict=True))
        while self._free:
            arrays = self._free.pop()
            if [(a.shape, a.dtype) for a in arrays] == wanted:
                return arrays
        return [_aligned(shape, dtype) for shape, dtype in wanted]

    def give_back(self, arrays: list[np.ndarray]) -> None:
        """Nothing computes with these any more."""
        self._free.append(arrays)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    num_bytes = math.prod(shape) * dtype.itemsize
    raw = np.zeros(num_bytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + num_bytes].view(dtype).reshape(shape)
