"""Random keys for many lanes of one program that cost as little as one key for all.

A key of this kind is (stream, lane): two words of a threefry key and the lane's number. Mapped over lanes by `jax.vmap`,
a draw makes the bits of all lanes at once from the first lane's stream, and a derived key is derived once; outside of a map
(a loop over lanes, JAX's own maps over elements) each lane draws from a stream of its own. Either way lanes are
independent, but the two ways give different numbers, and so does another split of the lanes into maps.

Why: splitting a key into K lanes and hashing in each costs several times the hashes that K numbers need.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.extend.random import define_prng_impl

Array = jax.Array


def lane_keys(key: Array, num_lanes: int) -> Array:
    """One key per lane, [lanes], from a typed key of any kind."""
    stream = jax.random.bits(key, (2,), jnp.uint32)
    lanes = jnp.arange(num_lanes, dtype=jnp.uint32)[:, None]
    data = jnp.concatenate([jnp.broadcast_to(stream, (num_lanes, 2)), lanes], axis=1)
    return jax.random.wrap_key_data(data, impl=_IMPLEMENTATION)


def plain_key(key: Array) -> Array:
    """The threefry key of one lane, for samplers that know no other kind; any other key is returned as it is."""
    if jax.random.key_impl(key) != _IMPLEMENTATION:
        return key
    data = jax.random.key_data(key)
    return jax.random.fold_in(_plain(data[:2]), data[2])


def _plain(stream: Array) -> Array:
    return jax.random.wrap_key_data(stream, impl="threefry2x32")


def _bits(data: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    dtype = jnp.dtype(f"uint{bit_width}")

    @custom_vmap
    def draw(data: Array) -> Array:
        return jax.random.bits(jax.random.fold_in(_plain(data[:2]), data[2]), shape, dtype)

    @draw.def_vmap
    def draw_all(size: int, _: Any, data: Array) -> tuple[Array, bool]:
        return _bits(data[0], bit_width, (size, *shape)), True

    return draw(data)


def _derive(data: Array, stream_of: Any, shape: tuple[int, ...]) -> Array:
    """Keys of shape `shape` whose streams come from `stream_of(plain key)` and whose lane stays."""

    @custom_vmap
    def derive(data: Array) -> Array:
        streams = jax.random.key_data(stream_of(_plain(data[:2])))
        lane = jnp.broadcast_to(data[2:], (*shape, 1))
        return jnp.concatenate([streams, lane], -1)

    @derive.def_vmap
    def derive_all(size: int, _: Any, data: Array) -> tuple[Array, bool]:
        first = _derive(data[0], stream_of, shape)[..., :2]
        lanes = data[:, 2:].reshape(size, *(1 for _ in shape), 1)
        parts = (
            jnp.broadcast_to(first, (size, *first.shape)),
            jnp.broadcast_to(lanes, (size, *shape, 1)),
        )
        return jnp.concatenate(parts, -1), True

    return derive(data)


def _split(data: Array, shape: tuple[int, ...]) -> Array:
    return _derive(data, lambda key: jax.random.split(key, shape), tuple(shape))


def _fold_in(data: Array, message: Array) -> Array:
    @custom_vmap
    def fold(data: Array, message: Array) -> Array:
        stream = jax.random.key_data(jax.random.fold_in(_plain(data[:2]), message))
        return jnp.concatenate([stream, data[2:]])

    @fold.def_vmap
    def fold_all(size: int, batched: Any, data: Array, message: Array) -> tuple[Array, bool]:
        if batched[1]:  # every lane has a message of its own
            data = data if batched[0] else jnp.broadcast_to(data, (size, *data.shape))
            streams = jax.vmap(lambda d, m: jax.random.fold_in(_plain(d[:2]), m))(data, message)
            return jnp.concatenate([jax.random.key_data(streams), data[:, 2:]], -1), True
        first = jnp.broadcast_to(_fold_in(data[0], message)[:2], (size, 2))
        return jnp.concatenate([first, data[:, 2:]], -1), True

    return fold(data, message)


def _seed(seed: Array) -> Array:
    stream = jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))
    return jnp.concatenate([stream, jnp.zeros(1, jnp.uint32)])


_IMPLEMENTATION = define_prng_impl(
    key_shape=(3,), seed=_seed, split=_split, random_bits=_bits, fold_in=_fold_in,
    name="lapilli_lanes", tag="lanes",
)  # fmt: skip
