"""Random orders of the rows of an epoch, of which any part is read without the rest.

Up to `MOST_SORTED` rows an order is an array, a permutation drawn uniformly. Of more rows it is a key of a bijection of
{0, ..., N - 1}, and entry number i its value at i: no memory and no sort, in the same time for a thousand rows as for a
billion. The bijection is a Feistel network on pairs (l, r) of Z_a x Z_b, where a b is N or little more: in turn l + F(r) mod a
and r + G(l) mod b, with a hash of the round's key for F and G. Each round can be undone, so that it is a bijection whatever they
are; a value beyond N - 1 goes through it again until it is none, which keeps that (cycle walking). Last comes a shift mod N that
is drawn uniformly.

What holds: every order is a permutation; at each place each row is equally likely, exactly, by the shift. That places are
independent of each other as in a uniform permutation is as good as the hash (`tests/inference/fitting/test_reshuffling.py`
counts pairs).

Reference: Black and Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002 (sections 4 and 5: cycle walking, networks on
Z_a x Z_b); the hash is Chris Wellons' lowbias32.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

MOST_SORTED = 256
NUM_ROUNDS = 10


def draw_order(key: jax.Array, size: int) -> jax.Array:
    """A random order of `size` rows, for `entries`."""
    if size <= MOST_SORTED:
        return jax.random.permutation(key, size)
    round_key, shift_key = jax.random.split(key)
    shift = jax.random.randint(shift_key, (1,), 0, size).astype(jnp.uint32)
    return jnp.concatenate([jax.random.bits(round_key, (NUM_ROUNDS,), jnp.uint32), shift])


def entries(order: jax.Array, size: int, start: jax.Array, count: int) -> jax.Array:
    """Entries number start, ..., start + count - 1 of an order of `size` rows: distinct integers in [0, size)."""
    if size <= MOST_SORTED:
        return jax.lax.dynamic_slice(order, (start,), (count,))
    keys, shift = order[:-1], order[-1]
    places = jnp.asarray(start, jnp.uint32) + jnp.arange(count, dtype=jnp.uint32)

    def walk(loop: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        values, is_inside = loop
        values = jnp.where(is_inside, values, _network(keys, size, values))
        return values, values < size

    start_of_walk = places, jnp.zeros(count, bool)
    values, _ = jax.lax.while_loop(lambda loop: ~loop[1].all(), walk, start_of_walk)
    return _sum_mod(values, shift, size).astype(jnp.int32)


def _network(keys: jax.Array, size: int, values: jax.Array) -> jax.Array:
    """A bijection of {0, ..., a b - 1}, a b >= size."""
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    left, right = jnp.divmod(values, jnp.uint32(b))
    for number in range(0, NUM_ROUNDS, 2):
        left = _sum_mod(left, _hash(right, keys[number], a), a)
        right = _sum_mod(right, _hash(left, keys[number + 1], b), b)
    return left * jnp.uint32(b) + right


def _sum_mod(x: jax.Array, y: jax.Array, size: int) -> jax.Array:
    """Sum of x and y mod size, of numbers below size <= 2^31."""
    total = x + y
    return jnp.where(total >= size, total - jnp.uint32(size), total)


def _hash(x: jax.Array, key: jax.Array, size: int) -> jax.Array:
    """A number below size < 2^16."""
    x = x ^ key
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    x = x ^ (x >> 16)
    # The upper word of x * size, without words of 64 bits: floor(x size / 2^32).
    return ((x >> 16) * jnp.uint32(size) + ((x & 0xFFFF) * jnp.uint32(size) >> 16)) >> 16
