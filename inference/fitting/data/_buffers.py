"""Memory for stacks of batches that is used again: fresh memory costs a fault for each page, more than the copy itself."""

from __future__ import annotations

import math

import numpy as np

_ALIGNMENT = 64  # bytes; so aligned, XLA computes on the array in place of a copy (on a CPU)


class Buffers:
    """Arrays of the same shapes again and again, for one thread that takes and one that gives back."""

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
