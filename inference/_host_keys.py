"""Keys that a host needs before anything runs: what `jax.random` makes of them, to the bit, without compiled programs.

A split, and the parts of its result, are programs of their own, which together take longer to compile than a small fit's step.
JAX's default generator is a hash of 64 bits under the key (threefry, 20 rounds), which NumPy computes at once. Keys of other
generators, and keys under a transformation, go to `jax.random`.

Reference: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3.
"""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import PyTree

from ..ppl._compat import is_concrete

_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
_PARITY = np.uint32(0x1BD11BDA)


def default_key() -> jax.Array:
    """`jax.random.key(0)`."""
    if _default() != "threefry2x32":
        return jax.random.key(0)
    words: PyTree = np.zeros(2, np.uint32)
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def split(key: jax.Array, number: int = 2) -> tuple[jax.Array, ...]:
    """`jax.random.split`, as a tuple."""
    if not _is_known(key):
        return tuple(jax.random.split(key, number))
    counts = np.arange(number, dtype=np.uint32)
    return _wrapped(_hashed(key, np.zeros(number, np.uint32), counts))


def fold_in(key: jax.Array, data: int) -> jax.Array:
    """`jax.random.fold_in`."""
    if not _is_known(key):
        return jax.random.fold_in(key, data)
    return _wrapped(_hashed(key, np.zeros(1, np.uint32), np.full(1, data, np.uint32)))[0]


def _default() -> str:
    return str(jax.config.jax_default_prng_impl)  # pyright: ignore[reportAttributeAccessIssue]


def _is_known(key: jax.Array) -> bool:
    is_partitionable = bool(jax.config.jax_threefry_partitionable)  # pyright: ignore[reportAttributeAccessIssue]
    is_typed = jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not (is_partitionable and is_typed and is_concrete(key) and key.ndim == 0):
        return False
    return str(jax.random.key_impl(key)) == "threefry2x32" and key.is_fully_addressable


def _wrapped(words: np.ndarray) -> tuple[jax.Array, ...]:
    return tuple(jax.random.wrap_key_data(w, impl="threefry2x32") for w in words)


def _hashed(key: jax.Array, high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """The words of each pair of counts under the key, [n, 2]."""
    k0, k1 = np.asarray(jax.random.key_data(key))
    keys = k0, k1, k0 ^ k1 ^ _PARITY
    with np.errstate(over="ignore"):
        x, y = high + keys[0], low + keys[1]
        for number in range(5):
            for rotation in _ROTATIONS[number % 2]:
                x = x + y
                y = ((y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation))) ^ x
            x = x + keys[(number + 1) % 3]
            y = y + keys[(number + 2) % 3] + np.uint32(number + 1)
    return np.stack([x, y], 1)
