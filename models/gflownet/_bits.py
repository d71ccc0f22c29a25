"""Bit strings near a set of modes, written word by word from the left or in any order."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike

from ._environment import Environment

_EMPTY = -1
# Words that published modes are made of.
_WORDS = ("00000000", "11111111", "11110000", "00001111", "00111100")


class Bits(Environment):
    """Strings of n bits in words of k bits; log R(x) = -beta min over modes y of the Hamming distance d(x, y).

    An incomplete string is worth what it would be if all missing bits matched. The state holds the value of each of the n / k
    words, -1 where it is missing, [n / k]. order="append" writes from the left (a tree, P_B = 1; an action is a word); "any"
    fills any empty place (an action is place * 2^k + word).

    Args:
        modes: [num_modes, n], zeros and ones.
        word_length: k, a divisor of n.
        beta: nats for each wrong bit.
        order: "append" or "any".

    Raises:
        ValueError: modes that are no bits, a length that does not divide, another order.

    Reference: Malkin et al. 2022, arXiv:2201.13259 (append); Tiapkin et al. 2024, arXiv:2310.12934 (any order).
    """

    def __init__(
        self,
        modes: ArrayLike,
        *,
        word_length: int,
        beta: float = 1.0,
        order: Literal["append", "any"] = "append",
    ) -> None:
        modes = np.asarray(modes)
        if modes.ndim != 2 or not np.isin(modes, (0, 1)).all():
            raise ValueError(
                f"Bits: modes must be rows of zeros and ones, got shape {modes.shape} with values {np.unique(modes)[:5]}."
            )
        if word_length < 1 or modes.shape[1] % word_length:
            raise ValueError(
                f"Bits: word_length {word_length} does not divide the {modes.shape[1]} bits of the modes."
            )
        if order not in ("append", "any"):
            raise ValueError(f"Bits: order must be 'append' or 'any', got {order!r}.")
        self.num_words, self.num_values = modes.shape[1] // word_length, 2**word_length
        self.beta, self.is_append = beta, order == "append"
        self.num_steps = self.num_words
        self.num_actions = self.num_values * (1 if self.is_append else self.num_words)
        self.modes = modes
        # Bits in which each value of a word differs from that of each mode, [modes, words, values].
        bits = np.arange(self.num_values)[:, None] >> np.arange(word_length)[::-1] & 1
        words = modes.reshape(len(modes), self.num_words, 1, word_length)
        self.distances = (words != bits).sum(-1)

    @classmethod
    def published(
        cls,
        *,
        word_length: int = 8,
        num_modes: int = 60,
        num_bits: int = 120,
        seed: int = 0,
        **options,
    ) -> Bits:
        """Modes made of 15 words each, drawn from five words of 8 bits."""
        words = np.array([[int(c) for c in word] for word in _WORDS])
        drawn = np.random.default_rng(seed).integers(len(words), size=(num_modes, num_bits // 8))
        return cls(words[drawn].reshape(num_modes, -1), word_length=word_length, **options)

    def start(self) -> Array:
        """Nothing written."""
        return jnp.full(self.num_words, _EMPTY, jnp.int32)

    def observe(self, state: Array) -> Array:
        """One-hot words with a value for missing ones, [n / k * (2^k + 1)]."""
        return (state[:, None] == jnp.arange(_EMPTY, self.num_values)).astype(float).reshape(-1)

    def _grid(self, places: Array) -> Array:
        """Places as a mask of actions."""
        return jnp.repeat(places, self.num_values, total_repeat_length=self.num_actions)

    def legal(self, state: Array) -> Array:
        """All words at the next place, or at every empty one."""
        if self.is_append:
            return jnp.broadcast_to(state[-1] == _EMPTY, (self.num_actions,))
        return self._grid(state == _EMPTY)

    def removable(self, state: Array) -> Array:
        """The last word, or every word that is there."""
        values = jnp.arange(self.num_values)
        if self.is_append:
            return values == state[self._num_written(state) - 1]
        return (state[:, None] == values).reshape(-1)

    def step(self, state: Array, action: Array) -> Array:
        """Write a word."""
        if self.is_append:
            return state.at[self._num_written(state)].set(action.astype(state.dtype))
        place, word = jnp.divmod(action, self.num_values)
        return state.at[place].set(word.astype(state.dtype))

    def undo(self, state: Array, action: Array) -> Array:
        """Wipe it out."""
        place = self._num_written(state) - 1 if self.is_append else action // self.num_values
        return state.at[place].set(_EMPTY)

    def log_reward(self, state: Array) -> Array:
        """-beta times the distance of what is written to the nearest mode."""
        distances = jnp.asarray(self.distances, jnp.int32)
        word = jnp.maximum(state, 0)[None, :, None]
        of_place = jnp.take_along_axis(distances, word, 2)[..., 0]
        return -self.beta * jnp.where(state == _EMPTY, 0, of_place).sum(1).min().astype(float)

    def _num_written(self, state: Array) -> Array:
        return (state != _EMPTY).sum()
