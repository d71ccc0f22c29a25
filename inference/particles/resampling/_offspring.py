"""Weights as whole numbers, so that offspring counts come out exact: the arithmetic beneath resampling.

Terms. K weights w_k = exp(log w_k - max) become masses q_k, whole numbers near 2^b w_k / sum w, of total Q close to 2^b,
with b = 29 for float32 (61 for float64). Cumulative masses C_k = q_0 + ... + q_k are then exact, in whatever order they
are added: they never decrease, a particle without weight has C_k = C_{k-1}, and C_{K-1} = Q. With M offspring to hand out,
M C_k = n_k Q + d_k is split into a whole number and a remainder by wrapped products of whole numbers, without error, where
float32 near M = 2^20 resolves 2^-4 of an offspring at best and its cumulative sums may even decrease.

Invariants. A particle without weight gets no offspring, every ancestor lies in [0, K), and the counts sum to M, with no
clamping anywhere. Rounding w_k to q_k moves the expected offspring of one particle by less than M / 2^b, 2e-3 at
M = 2^20, and these errors cancel over many particles; where all weights are equal, so are all masses.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Above this many offspring the first guess of n_k, made in floating point, may be off by more than one.
_EASY = 1 << 22


def checked(log_weights: Float[Array, " particles"], num: int | None) -> int:
    """`num`, K if it is None.

    Raises:
        ValueError: `log_weights` is not a vector of at least one number, or `num` is not positive.
    """
    shape = jnp.shape(log_weights)
    if len(shape) != 1 or not shape[0]:
        raise ValueError(
            f"Resampling: argument 'log_weights' has shape {shape}; give one log-weight per particle, shape "
            "[particles], and jax.vmap over further axes."
        )
    num = shape[0] if num is None else num
    if num < 1:
        raise ValueError(f"Resampling: argument 'num' is {num}; at least one offspring is needed.")
    return num


def masses(log_weights: Float[Array, " particles"], num: int) -> Int[Array, " particles"]:
    """The weights as whole numbers q_k, for `num` offspring; equal where no weight is finite, or one is NaN or +inf."""
    lw = log_weights.astype(jnp.promote_types(log_weights.dtype, jnp.float32))
    top = lw.max()
    weights = jnp.where(jnp.isfinite(top), jnp.exp(lw - top), jnp.ones((), lw.dtype))
    return rounded_masses(weights, num)


def rounded_masses(weights: Float[Array, " n"], num: int) -> Int[Array, " n"]:
    """Weights 0 <= w_k <= 1 as whole numbers about 2^b w_k / sum w; all zero where the weights are.

    Rounding is up where the fraction exceeds the k-th term of an evenly spread sequence in [0, 1). Rounding to the nearest
    would move all particles of one weight the same way: by 1e-3 of their share at 1e6 particles, as much as the Monte Carlo
    error. Here the errors of many particles cancel.
    """
    total = jnp.maximum(weights.sum(), 2.0**-60)
    # A whole scale leaves the largest weight, which is 1 where it comes from log-weights, without a fraction to round.
    scaled = weights * jnp.floor(2.0 ** _bits(weights.dtype, num) / total)
    below = jnp.floor(scaled)
    steps = jnp.arange(len(weights), dtype=jnp.uint32) * jnp.uint32(
        0x9E3779B9
    )  # 2^32 / golden ratio
    threshold = (steps >> 8).astype(weights.dtype) * 2.0**-24
    integer = jnp.int64 if weights.dtype == jnp.float64 else jnp.int32
    return below.astype(integer) + (threshold < scaled - below)


def shares(
    mass: Int[Array, " n"], total: Int[Array, ""], num: int
) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
    """Whole part n and remainder d of num * mass / total: num * mass = n * total + d exactly, 0 <= d < total."""
    real = jnp.float64 if mass.dtype == jnp.int64 else jnp.float32
    whole = jnp.floor(mass.astype(real) * (num / total.astype(real))).astype(mass.dtype)
    # Both products wrap around; their difference is small and does not.
    rest = mass * num - whole * total
    for _ in range(_corrections(num)):
        step = (rest >= total).astype(mass.dtype) - (rest < 0).astype(mass.dtype)
        whole, rest = whole + step, rest - step * total
    return whole, rest


def before(
    cumulative: Int[Array, " particles"], place: Int[Array, " *num"], num: int
) -> Int[Array, " particles"]:
    """How many of `num` points, one in each stratum of length Q / num, lie before each cumulative mass C_k.

    Args:
        cumulative: C_k, ending in Q.
        place: of each point in its stratum, in units of Q^-1 of its length: whole numbers in [0, Q), shape [num], or shape
            () if all points have the same place.
        num: number of points.

    Returns:
        n_k + [place of point n_k < f_k Q], ending in num.
    """
    whole, rest = shares(cumulative, cumulative[-1], num)
    if place.ndim:
        place = place.at[whole].get(mode="clip")  # whole = num only where rest = 0
    return (whole + (place < rest)).astype(jnp.int32)


def running_sum(values: Int[Array, " n"]) -> Int[Array, " n"]:
    """Cumulative sum of whole numbers, in the type of `values`.

    On a CPU a plain loop takes half the time of XLA's cumulative sum in log n passes; sums of whole numbers are the same in
    any order.
    """

    def loop(values: Int[Array, " n"]) -> Int[Array, " n"]:
        def step(total: Array, value: Array) -> tuple[Array, Array]:
            return total + value, total + value

        return jax.lax.scan(step, jnp.zeros((), values.dtype), values, unroll=8)[1]

    def passes(values: Int[Array, " n"]) -> Int[Array, " n"]:
        return jnp.cumsum(values, dtype=values.dtype)

    return jax.lax.platform_dependent(values, cpu=loop, default=passes)


def spread(until: Int[Array, " particles"], num: int) -> Int[Array, " num"]:
    """Ancestors in ascending order, given how many offspring particles 0..k have together: `until`, ending in `num`.

    Slot j belongs to the first particle with until_k > j, so its index is #{k: until_k <= j}: a histogram and its
    cumulative sum, O(K + num), where a binary search per slot costs O(num log K).
    """
    ends = jnp.zeros(num, jnp.int32).at[until]
    return running_sum(ends.add(1, mode="drop", indices_are_sorted=True))


def residual_parts(
    mass: Int[Array, " particles"], num: int
) -> tuple[Int[Array, " particles"], Int[Array, " particles"]]:
    """Certain offspring n_k = floor(num W_k), and the cumulative masses by which the other num - sum n_k are drawn."""
    total = mass.sum(dtype=mass.dtype)
    certain, rest = shares(mass, total, num)
    real = jnp.float64 if mass.dtype == jnp.int64 else jnp.float32
    return certain.astype(jnp.int32), running_sum(rounded_masses(rest.astype(real) / total, num))


def uniform_below(
    key: Array, total: Int[Array, ""], shape: tuple[int, ...]
) -> Int[Array, " *shape"]:
    """Whole numbers uniform on [0, total), total < 2^31: floor(total B / 2^32) of random words B (2^64 likewise)."""
    word = jnp.uint64 if total.dtype == jnp.int64 else jnp.uint32
    half = jnp.iinfo(word).bits // 2
    low = word((1 << half) - 1)
    bits, total_word = jax.random.bits(key, shape, word), total.astype(word)
    b1, b0, t1, t0 = bits >> half, bits & low, total_word >> half, total_word & low
    middle = b1 * t0 + ((b0 * t0) >> half)  # the upper half of a product, from products of halves
    upper = b1 * t1 + (middle >> half) + (((middle & low) + b0 * t1) >> half)
    return upper.astype(total.dtype)


def search(cumulative: Int[Array, " particles"], points: Int[Array, " num"]) -> Int[Array, " num"]:
    """The particle in whose stretch of the cumulative masses each point of [0, Q) lies."""
    return jnp.searchsorted(cumulative, points, side="right").astype(jnp.int32)


def _corrections(num: int) -> int:
    return 1 + num // _EASY


def _bits(dtype: jnp.dtype, num: int) -> int:
    """Bits b such that remainders before correction, below (corrections + 1) Q, fit into a signed word twice over."""
    return (62 if dtype == jnp.float64 else 30) - _corrections(num).bit_length()
