"""Rounding numbers in [0, 1] to 0 or 1 at random, keeping each mean and the sum: a tournament of pairs.

Specification. Numbers v_k = d_k / Q whose sum R is whole go to bits B_k with E[B_k] = v_k and sum B_k = R. A match of two
numbers a and b settles one of them and leaves the other with what remains:

    a + b < 1:   (a + b, 0) with probability a / (a + b), else (0, a + b);
    a + b >= 1:  (1, a + b - 1) with probability (1 - b) / (2 - a - b), else (a + b - 1, 1).

Either way both means are kept. The unsettled numbers meet in a binary tree; whole multiples of 1 / Q add up without error,
so that the last one left is exactly 0. Going up costs O(K) draws in log2 K steps that are parallel inside, as does the way down
that hands each leaf its bit, where the usual sequential version takes K steps.

The bits are negatively associated for any fixed tree (Branden and Jonasson 2012, arXiv:1009.4484, on pivotal sampling).

Reference: Srinivasan 2001; Deville and Tille 1998; for resampling Gerber, Chopin and Whiteley 2019, arXiv:1708.02230, whose
sequential pairing is another tree.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from . import _offspring as offspring


class KnownBit(NamedTuple):
    """A leaf whose bit is known beforehand.

    Attributes:
        leaf: its position.
        bit: its bit; one of probability zero is not heeded.
    """

    leaf: Int[Array, ""]
    bit: Bool[Array, ""]


def rounded(
    key: Array, parts: Int[Array, " n"], total: Int[Array, ""], given: KnownBit | None = None
) -> Int[Array, " n"]:
    """Bits with E[bit_k] = parts_k / total, whose sum is that of parts / total; drawn given one of them where asked.

    Args:
        key: random key.
        parts: whole numbers in [0, total), whose sum is a multiple of total.
        total: Q.
        given: condition on this leaf's bit.

    Returns:
        Zeros and ones, int32, shape [n].
    """
    size = len(parts)
    depth = (size - 1).bit_length()
    value = jnp.pad(parts, (0, (1 << depth) - size))
    is_open = jnp.bool_(True)  # the given leaf is not settled yet
    matches = []
    for level in range(depth):
        key_level = jax.random.fold_in(key, level)
        a, b = value[0::2], value[1::2]
        is_one = a + b >= total  # what the settled number becomes
        span = jnp.where(is_one, 2 * total - a - b, a + b)
        draw = offspring.uniform_below(key_level, span, span.shape)
        goes_left = jnp.where(is_one, draw >= total - b, draw < a)  # the left one stays open
        if given is not None:
            node, is_right = given.leaf >> (level + 1), (given.leaf >> level) & 1 == 1
            own, other = jnp.where(is_right, b, a)[node], jnp.where(is_right, a, b)[node]
            stays = jax.random.uniform(jax.random.fold_in(key_level, 1)) < _chance_to_stay(
                own, other, total, given.bit
            )
            left = jnp.where(is_open, stays != is_right, goes_left[node])
            goes_left = goes_left.at[node].set(left)
            is_open = is_open & stays
        matches.append((goes_left, is_one))
        value = a + b - jnp.where(is_one, total, 0)
    bits = jnp.zeros(1, bool)
    for goes_left, is_one in reversed(matches):
        left, right = jnp.where(goes_left, bits, is_one), jnp.where(goes_left, is_one, bits)
        bits = jnp.stack([left, right], 1).reshape(-1)
    return bits[:size].astype(jnp.int32)


def _chance_to_stay(own: Array, other: Array, total: Array, bit: Array) -> Array:
    """Probability that the given leaf stays open after its match with value `other`, given its bit.

    The match's own probability, times the new value (bit 1) or its complement (bit 0), over the same of the old value.
    """
    real = jnp.float64 if own.dtype == jnp.int64 else jnp.float32
    # Differences of whole numbers: the last match sums to total exactly, which floating point would miss.
    x, y, z = own.astype(real), other.astype(real), total.astype(real)
    settled = (total - other).astype(real) / (2 * total - own - other).astype(real) * (z / x)
    open_below = (total - own - other).astype(real) / (x + y) * (x / (total - own).astype(real))
    is_one = own + other >= total
    return jnp.where(is_one, jnp.where(bit, 1 - settled, 1.0), jnp.where(bit, 1.0, open_below))
