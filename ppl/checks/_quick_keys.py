"""Random keys whose numbers cost next to nothing to compile, for probes that need typical values and no quality.

JAX's generators expand to hundreds of operations at each call, and a search for jumps calls them dozens of times, so that they
were most of what it compiled. Here a number is its counter, hashed with the key (lowbias32 of Hash Prospector).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._compat import define_prng_impl

Array = jax.Array
GOLDEN = 0x9E3779B9  # 2^32 over the golden ratio: spreads small counters over all bits

MANY = 4096  # constants of more numbers are made in the program


def _hashed(x: Array) -> Array:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * np.uint32(factor)
    return x ^ (x >> 16)


@functools.partial(jax.jit, static_argnums=1)
def _words(key: Array, num: int) -> Array:
    # A search runs where constants of JAX are computed at once, and each operation on one is compiled.
    few: Any = np.arange(min(num, MANY), dtype=np.uint32)
    counts = few if num <= MANY else jax.lax.broadcasted_iota(jnp.uint32, (num,), 0)
    return _hashed((counts * np.uint32(GOLDEN) + key[0]) ^ key[1])


def _random_bits(key: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    size = math.prod(shape)
    if bit_width == 64:
        low, high = _words(key, 2 * size).reshape(2, size).astype(jnp.uint64)
        return (low | (high << 32)).reshape(shape)
    return _words(key, size).reshape(shape).astype(f"uint{bit_width}")


def _split(key: Array, shape: tuple[int, ...]) -> Array:
    return _words(_fold_in(key, np.uint32(GOLDEN)), 2 * math.prod(shape)).reshape(*shape, 2)


@jax.jit
def _fold_in(key: Array, data: PyTree) -> Array:
    data = data.astype(jnp.uint32) if isinstance(data, jax.Array) else np.uint32(data)
    return jnp.stack([_hashed(key[0] ^ data), _hashed(key[1] + data)])


def _seed(seed: Array) -> Array:
    return jnp.stack([_hashed(seed.astype(jnp.uint32)), np.uint32(GOLDEN)])


QUICK = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="lapilli_quick",
    tag="quick",
)
