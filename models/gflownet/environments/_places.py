"""Objects that put letters at places: what strings and trees of fragments have in common."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

EMPTY = -1


def nothing(num_places: int) -> Int[Array, " places"]:
    """Every place empty."""
    return jnp.full(num_places, EMPTY, jnp.int32)


def one_hot(state: Int[Array, " places"], num_letters: int) -> Float[Array, " features"]:
    """One-hot letters with a value for empty places, [places * (K + 1)]."""
    return (state[:, None] == jnp.arange(EMPTY, num_letters)).astype(float).reshape(-1)


def put(state: Int[Array, " places"], action: Array, num_letters: int) -> Array:
    """A letter at a place, where an action is place * K + letter."""
    place, letter = jnp.divmod(action, num_letters)
    return state.at[place].set(letter.astype(state.dtype))


def take(state: Int[Array, " places"], action: Array, num_letters: int) -> Array:
    """What `put` has put there is taken away."""
    return state.at[action // num_letters].set(EMPTY)
