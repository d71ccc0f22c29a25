"""Bit strings near a set of modes, written word by word from the left or in any order."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike

from ._strings import EMPTY, Order, Writing

# Words that published modes are made of.
_WORDS = ("00000000", "11111111", "11110000", "00001111", "00111100")


class Bits(Writing):
    """Strings of n bits in words of k bits; log R(x) = -beta min over modes y of the Hamming distance d(x, y).

    A letter is a word of k bits, one of 2^k. An incomplete string is worth what it would be if all missing bits matched.

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
        order: Order = "append",
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
        super().__init__(modes.shape[1] // word_length, 2**word_length, order)
        self.beta, self.modes = beta, modes
        # Bits in which each value of a word differs from that of each mode, [modes, words, values].
        bits = np.arange(self.num_letters)[:, None] >> np.arange(word_length)[::-1] & 1
        words = modes.reshape(len(modes), self.num_places, 1, word_length)
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

    def log_reward(self, state: Array) -> Array:
        """-beta times the distance of what is written to the nearest mode."""
        distances = jnp.asarray(self.distances, jnp.int32)
        word = jnp.maximum(state, 0)[None, :, None]
        of_place = jnp.take_along_axis(distances, word, 2)[..., 0]
        return -self.beta * jnp.where(state == EMPTY, 0, of_place).sum(1).min().astype(float)
