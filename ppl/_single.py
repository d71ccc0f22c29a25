"""Numbers of 64 bits that JAX takes for 32: whether they stay what they are.

JAX computes in 32 bits unless told otherwise, and what does not fit is cut without a word: integers wrap round, large numbers
become infinite, numbers far from zero lose their differences. All of that is refused here, by name.
"""

from __future__ import annotations

from typing import NoReturn

import jax
import numpy as np
from jaxtyping import ArrayLike, PyTree

# Rounding that is larger than this part of a column's range is no ordinary one.
_LOSS = 1e-3
# A range below this part of the numbers' size is noise of double precision itself.
_NOISE = 1e-9
# Of different whole numbers, so many may become the same.
_MERGED = 0.1
# Fewer rows may be close to each other by chance.
_LEAST_ROWS = 5


def checked(name: str, array: PyTree, seen: PyTree = None) -> PyTree:
    """The array, whose values stay what they are in the types that JAX takes for its own."""
    dtype = array.dtype
    if dtype.kind not in "iufc" or dtype.itemsize < 8 or array.size == 0:
        return array
    target = jax.dtypes.canonicalize_dtype(dtype)
    if target == dtype:
        return array
    cells = array if seen is None else array[seen]
    if cells.size == 0:
        return array
    if dtype.kind in "iu":
        _check_integers(name, cells, target)
    elif dtype.kind == "f":
        _check_floats(name, cells)
    return array


def _check_integers(name: str, array: PyTree, target: np.dtype) -> None:
    low, high, ends = int(array.min()), int(array.max()), np.iinfo(target)
    if low < ends.min or high > ends.max:
        refuse_overflow(name, array, high if high > ends.max else low, str(target))


def _check_floats(name: str, array: PyTree) -> None:
    """Refuse numbers beyond single precision, and differences that its rounding takes away."""
    low, high = _over_rows(np.fmin, array), _over_rows(np.fmax, array)
    size = np.fmax(np.abs(low), np.abs(high))
    largest, ends = float(np.fmax.reduce(size, axis=None)), np.finfo(np.float32)
    most, least = float(ends.max), float(ends.tiny)
    if not largest <= most:  # or infinite, or NaN throughout
        finite = array[np.isfinite(array)] if array.ndim else np.ravel(array[np.isfinite(array)])
        size_of = np.abs(finite)
        if size_of.size and size_of.max() > most:
            refuse_overflow(name, array, finite[np.argmax(size_of)], "float32")
        return
    if 0 < largest < least:
        raise ValueError(
            f"{name} holds {array.dtype} of at most {largest:.3g}, which are all zero in float32. Divide by a unit, or compute "
            "in 64 bits: jax.config.update('jax_enable_x64', True)."
        )
    if array.ndim == 0:
        return
    if len(array) >= _LEAST_ROWS and np.any(lost := _is_lost(low, high)):
        _refuse_rounding(name, array, lost, low, high)
    if largest > 2**24:
        _check_large(name, array, low, high)


def _over_rows(reduce: np.ufunc, array: np.ndarray) -> ArrayLike:
    """A reduction over the first axis; short rows are joined to long ones before, at which NumPy is seven times as fast."""
    if array.ndim < 2 or not array.flags.c_contiguous or array[0].size == 0:
        return reduce.reduce(array, axis=0)
    rows = array.reshape(len(array), -1)
    joint = max(1, 1024 // rows.shape[1])
    whole = len(rows) - len(rows) % joint
    parts = reduce.reduce(rows[:whole].reshape(-1, joint * rows.shape[1]), axis=0, initial=np.nan)
    found = reduce.reduce(np.concatenate([parts.reshape(joint, -1), rows[whole:]]), axis=0)
    return found.reshape(array.shape[1:])


def _is_lost(low: PyTree, high: PyTree) -> PyTree:
    """Whether rounding to single precision is large beside the range of numbers."""
    size, spread = np.fmax(np.abs(low), np.abs(high)), high - low
    return (size * 2.0**-24 > _LOSS * spread) & (spread > _NOISE * size)


def _check_large(name: str, array: np.ndarray, low: PyTree, high: PyTree) -> None:
    """Refuse whole numbers of which single precision makes others, or one of several, as of keys; and time stamps in rows."""
    columns, lows, highs = array.reshape(len(array), -1), np.ravel(low), np.ravel(high)
    for place in np.flatnonzero(np.fmax(np.abs(lows), np.abs(highs)) > 2**24):
        values = np.unique(columns[:, place])
        values = values[~np.isnan(values)]
        # Beyond 2^53 all double numbers are whole. Of two rows some columns are close by chance.
        if np.array_equal(values, np.rint(values)) and np.abs(values).max() < 2**53:
            merged = 1 - len(np.unique(values.astype(np.float32))) / len(values)
            if merged > _MERGED or array.ndim == 1 and _is_lost(low, high):
                lost = np.arange(len(lows)).reshape(np.shape(low)) == place
                _refuse_rounding(name, array, lost, low, high)
    if array.ndim > 1 and array.shape[-1] >= _LEAST_ROWS:
        low, high = np.fmin.reduce(array, axis=-1), np.fmax.reduce(array, axis=-1)
        lost = _is_lost(low, high) & (np.fmax(np.abs(low), np.abs(high)) > 2**24)
        if np.any(lost):
            _refuse_rounding(name, array, lost, low, high)


def refuse_overflow(name: str, array: np.ndarray, value: PyTree, target: str) -> NoReturn:
    raise ValueError(
        f"{name} holds {value!s} ({array.dtype}), which does not fit into {target}, the type that JAX would make of it: it would "
        "become another number. Subtract an origin, divide by a unit (whole numbers by .astype(float)), or compute in 64 bits: "
        "jax.config.update('jax_enable_x64', True)."
    )


def _refuse_rounding(
    name: str, array: np.ndarray, lost: ArrayLike, low: ArrayLike, high: ArrayLike
) -> NoReturn:
    place = np.unravel_index(int(np.argmax(lost)), np.shape(lost)) if np.ndim(lost) else ()
    where = f" in place {list(map(int, place))}" if place else ""
    low, high = (float(np.asarray(x)[place]) for x in (low, high))
    step = float(np.spacing(np.float32(max(abs(low), abs(high)))))
    raise ValueError(
        f"{name} holds {array.dtype} from {low!r} to {high!r}{where}, and JAX computes in float32, which has steps of {step:.3g} "
        "there: differences between rows would be lost. Subtract an origin first, e.g. x - x.min(), or compute in 64 bits: "
        "jax.config.update('jax_enable_x64', True)."
    )
