"""Bit strings near a set of modes, written word by word from the left or in any order."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ....ppl._compat import ArrayLike
from ._places import EMPTY
from ._strings import Order, Writing

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
                f"Bits: word_length {word_length} does not divide the {modes.shape[1]} bits of the modes. Give a "
                "divisor of their number."
            )
        super().__init__(modes.shape[1] // word_length, 2**word_length, order)
        self.beta, self.modes = beta, modes.astype(int)
        # Bits in which each value of a word differs from that of each mode, [modes, words, values].
        bits = np.arange(self.num_letters)[:, None] >> np.arange(word_length)[::-1] & 1
        words = modes.reshape(len(modes), self.num_places, 1, word_length)
        self.word_distances = (words != bits).sum(-1)

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
        """Modes made of 15 words each, drawn from five words of 8 bits.

        Raises:
            ValueError: a number of bits that words of 8 do not fill.
        """
        if num_bits < 8 or num_bits % 8:
            raise ValueError(
                f"Bits.published: num_bits is {num_bits}, and modes are made of words of 8 bits. Give a multiple of 8."
            )
        words = np.array([[int(c) for c in word] for word in _WORDS])
        drawn = np.random.default_rng(seed).integers(len(words), size=(num_modes, num_bits // 8))
        return cls(words[drawn].reshape(num_modes, -1), word_length=word_length, **options)

    def distances(self, state: Int[Array, " places"]) -> Int[Array, " modes"]:
        """Bits in which what is written differs from each mode; missing bits match."""
        by_value = jnp.asarray(self.word_distances, jnp.int32)
        word = jnp.maximum(state, 0)[None, :, None]
        of_place = jnp.take_along_axis(by_value, word, 2)[..., 0]
        return jnp.where(state == EMPTY, 0, of_place).sum(1)

    def log_reward(self, state: Array) -> Array:
        """-beta times the distance of what is written to the nearest mode."""
        return -self.beta * self.distances(state).min().astype(float)

    def mutants(self, *, seed: int = 0) -> Int[np.ndarray, "strings places"]:
        """The published test set: every mode with i = 0, ..., n - 1 of its n bits turned, at random places."""
        rng, num_bits = np.random.default_rng(seed), self.modes.shape[1]
        turned = rng.random((len(self.modes), num_bits, num_bits)).argsort(-1)
        turned = turned < np.arange(num_bits)[:, None]
        return self._written(self.modes[:, None] ^ turned)

    def log_z(self, *, num_draws: int = 100_000, seed: int = 0) -> float:
        """Log of the sum of R over all 2^n strings, from draws of the mixture of the modes' own laws.

        Z = M (1 + exp(-beta))^n E[v], v = max_y exp(-beta d(x, y)) / sum_y exp(-beta d(x, y)) in [1 / M, 1] for M modes: the
        weights are bounded, and far from each other modes leave them near 1.
        """
        _, share = self._propose(np.random.default_rng(seed), num_draws)
        all_modes = np.log(len(self.modes)) + self.modes.shape[1] * np.log1p(np.exp(-self.beta))
        return float(all_modes + np.log(share.mean()))

    def exact_draws(self, num_draws: int, *, seed: int = 0) -> Int[np.ndarray, "num_draws places"]:
        """Independent strings from R / Z, by rejection from that mixture."""
        rng, kept = np.random.default_rng(seed), np.zeros((0, self.num_places), np.int32)
        while len(kept) < num_draws:
            bits, share = self._propose(rng, num_draws)
            kept = np.concatenate([kept, self._written(bits[rng.random(num_draws) < share])])
        return kept[:num_draws]

    def _propose(
        self, rng: np.random.Generator, num_draws: int
    ) -> tuple[np.ndarray, Float[np.ndarray, " num_draws"]]:
        """Strings as bits, from a mode each bit of which is wrong with its own odds exp(-beta); and v of `log_z`."""
        source = self.modes[rng.integers(len(self.modes), size=num_draws)]
        is_wrong = rng.random(source.shape) < 1 / (1 + np.exp(self.beta))
        bits = source ^ is_wrong
        distances = bits.sum(1)[:, None] + self.modes.sum(1) - 2 * bits @ self.modes.T
        return bits, 1 / np.exp(-self.beta * (distances - distances.min(1, keepdims=True))).sum(1)

    def _written(self, bits: np.ndarray) -> Int[np.ndarray, "strings places"]:
        """Bits as states."""
        words = bits.reshape(-1, self.num_places, bits.shape[-1] // self.num_places)
        return (words @ (1 << np.arange(words.shape[-1])[::-1])).astype(np.int32)
