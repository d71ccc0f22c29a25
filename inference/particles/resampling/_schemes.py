"""Resampling: which particle each offspring descends from.

A resampler is a function `(key, log_weights, num=None) -> ancestors`: K log-weights in nats, not necessarily normalised, to
`num` (default K) int32 indices into [0, K). A particle of log-weight -inf is never chosen. Where no log-weight is finite,
or one is NaN or +inf, all particles count as equal: an engine has to notice that by itself. All resamplers work under jit
and vmap; K and num are static.

With W_k = w_k / sum w and N_k the number of offspring of particle k, a scheme is *unbiased* if E[N_k] = num W_k, which is
what keeps the evidence of a particle filter unbiased. Every scheme comes with its *conditional* version, which conditional
SMC needs: the law of the ancestors given that slot 0 descends from particle 0, once particles and slots have been relabelled
at random. `_registry.py` lists the schemes by name.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from . import (
    _local as local,
    _offspring as offspring,
    _pivotal as pivotal,
)
from ._scheme import Scheme


def systematic(
    key: Array, log_weights: Float[Array, " particles"], num: int | None = None
) -> Int[Array, " num"]:
    """Systematic resampling: one uniform shift U of a regular grid.

        A_j = min{k: C_k > (U + j) / num},   C_k = W_0 + ... + W_k.

    Args:
        key: random key.
        log_weights: log w_k in nats, shape [K]; not necessarily normalised; -inf is never chosen.
        num: number of offspring; K if not given.

    Returns:
        Ancestors in ascending order, int32, shape [num].

    Validity:
        Unbiased: E[N_k] = num W_k, up to the rounding of W_k to multiples of about 2^-29 (2^-61 for float64). N_k is
        floor(num W_k) or ceil(num W_k). The variance of an average depends on the order of the particles, and in rare orders
        exceeds multinomial resampling's. Slots are not exchangeable.

    Cost: O(K + num): one uniform draw, a cumulative sum, a histogram.

    Reference: Carpenter, Clifford and Fearnhead 1999; Douc, Cappe and Moulines 2005, arXiv:cs/0507025.
    """
    return _by_grid(key, log_weights, num, ())


def stratified(
    key: Array, log_weights: Float[Array, " particles"], num: int | None = None
) -> Int[Array, " num"]:
    """Stratified resampling: one uniform draw U_j in each of `num` strata of equal length.

        A_j = min{k: C_k > (U_j + j) / num},   C_k = W_0 + ... + W_k.

    Arguments, result and rounding as for `systematic`; ancestors ascend.

    Validity:
        Unbiased: E[N_k] = num W_k. |N_k - num W_k| < 2. The variance of any average is at most multinomial resampling's.

    Cost: O(K + num): `num` uniform draws, a cumulative sum, a gather, a histogram.

    Reference: Kitagawa 1996; Douc, Cappe and Moulines 2005, arXiv:cs/0507025, section 3.2.
    """
    return _by_grid(key, log_weights, num, None)


def multinomial(
    key: Array, log_weights: Float[Array, " particles"], num: int | None = None
) -> Int[Array, " num"]:
    """Multinomial resampling: independent ancestors, P(A_j = k) = W_k.

    Arguments, result and rounding as for `systematic`; ancestors come in no order, and slots are exchangeable.

    Validity: unbiased, E[N_k] = num W_k; the largest variance of the schemes here: var N_k = num W_k (1 - W_k).

    Cost: O(K + num log K): `num` uniform draws, a cumulative sum, a binary search for each slot.

    Reference: Gordon, Salmond and Smith 1993.
    """
    num = offspring.checked(log_weights, num)
    cumulative = offspring.running_sum(offspring.masses(log_weights, num))
    return offspring.search(cumulative, offspring.uniform_below(key, cumulative[-1], (num,)))


def residual(
    key: Array, log_weights: Float[Array, " particles"], num: int | None = None
) -> Int[Array, " num"]:
    """Residual resampling: floor(num W_k) offspring for certain, multinomial resampling for the R slots left over.

        N_k = floor(num W_k) + Multinomial(R; (num W_k - floor(num W_k)) / R)_k.

    Arguments, result and rounding as for `systematic`; the certain offspring come first, in ascending order, the drawn ones
    after them in no order.

    Validity: unbiased, E[N_k] = num W_k; the variance of any average is at most multinomial resampling's.

    Cost: O(K + num log K): `num` uniform draws, two cumulative sums, a histogram, a binary search for each slot.

    Reference: Liu and Chen 1998; Douc, Cappe and Moulines 2005, arXiv:cs/0507025, section 3.1.
    """
    num = offspring.checked(log_weights, num)
    certain, cumulative = offspring.residual_parts(offspring.masses(log_weights, num), num)
    drawn = offspring.search(cumulative, offspring.uniform_below(key, cumulative[-1], (num,)))
    until = offspring.running_sum(certain)
    return jnp.where(jnp.arange(num) < until[-1], offspring.spread(until, num), drawn)


def ssp(
    key: Array, log_weights: Float[Array, " particles"], num: int | None = None
) -> Int[Array, " num"]:
    """Srinivasan sampling process (pivotal sampling): num W_k rounded down or up, by matches of two fractions at a time.

        N_k = floor(num W_k) + B_k,   P(B_k = 1) = num W_k - floor(num W_k),   sum_k N_k = num.

    Arguments, result and rounding as for `systematic`; ancestors ascend. Matches form a binary tree over the particles in their
    order, see `_pivotal`.

    Validity:
        Unbiased: E[N_k] = num W_k. N_k is floor(num W_k) or ceil(num W_k). The N_k are negatively associated, so the variance
        of any average is at most that of rounding each num W_k by itself, and of multinomial resampling.

    Cost: O(K + num), in log2 K parallel steps: K uniform draws, two cumulative sums, a histogram.

    Reference: Gerber, Chopin and Whiteley 2019, arXiv:1708.02230.
    """
    num = offspring.checked(log_weights, num)
    mass = offspring.masses(log_weights, num)
    total = mass.sum(dtype=mass.dtype)
    whole, rest = offspring.shares(mass, total, num)
    counts = whole.astype(jnp.int32) + pivotal.rounded(key, rest, total)
    return offspring.spread(offspring.running_sum(counts), num)


def killing(
    key: Array, log_weights: Float[Array, " particles"], num: int | None = None
) -> Int[Array, " num"]:
    """Killing: particle k stays in its slot with probability w_k / max w; a killed one's slot is drawn from W.

        P(A_j = k) = [j = k] w_j / max w + (1 - w_j / max w) W_k,   independently for each slot j.

    Arguments, result and rounding as for `systematic`, but `num` must be K. Ancestors keep to their slots where they can.

    Validity:
        Unbiased: E[N_k] = K W_k. A single slot does not follow W: slots are not exchangeable. Nothing is resampled
        where weights are equal, and little where they nearly are, which suits small increments; with uneven weights the variance
        approaches multinomial resampling's.

    Cost: O(K log K): 2 K uniform draws, a cumulative sum, a binary search for each slot.

    Raises:
        ValueError: `num` is not K.

    Reference: Del Moral 2004, section 2.5.2; Karppinen, Singh and Vihola 2022, arXiv:2205.13898.
    """
    num = local.square("killing", log_weights, num)
    mass = offspring.masses(log_weights, num)
    key_stay, key_points = jax.random.split(key)
    cumulative = offspring.running_sum(mass)
    drawn = offspring.search(
        cumulative, offspring.uniform_below(key_points, cumulative[-1], (num,))
    )
    return jnp.where(local.survives(key_stay, mass), jnp.arange(num, dtype=jnp.int32), drawn)


def birth_death(
    key: Array, log_weights: Float[Array, " particles"], num: int | None = None
) -> Int[Array, " num"]:
    """Birth and death: a particle below the mean weight dies with probability 1 - K W_k, and those above it give birth.

        P(A_j = k) = [j = k] min(1, K W_j) + (1 - K W_j)_+ (K W_k - 1)_+ / sum_i (K W_i - 1)_+,   independently for each slot j.

    Arguments, result and rounding as for `systematic`, but `num` must be K. Ancestors keep to their slots where they can: no
    unbiased scheme moves fewer on average.

    For weights exp(g dt) of a small step dt this is the jump process that has the effect of weights: deaths at the rate
    (mean g - g)_+, births in proportion to (g - mean g)_+. Use it with `policy=every()`. Other than exponential clocks it has
    no error of the step, and the evidence is that of every unbiased scheme.

    Validity:
        Unbiased: E[N_k] = K W_k. A single slot does not follow W: slots are not exchangeable.

    Cost: O(K log K): 2 K uniform draws, a cumulative sum, a binary search for each slot.

    Raises:
        ValueError: `num` is not K.

    Reference: Skreta et al. 2025, arXiv:2503.02819, proposition 4.1 (the jump process; there run by exponential clocks).
    """
    num = local.square("birth_death", log_weights, num)
    key_stay, key_points = jax.random.split(key)
    is_alive, births = local.births(key_stay, offspring.masses(log_weights, num))
    drawn = offspring.search(births, offspring.uniform_below(key_points, births[-1], (num,)))
    return jnp.where(is_alive, jnp.arange(num, dtype=jnp.int32), drawn)


def rejection(
    key: Array, log_weights: Float[Array, " particles"], num: int | None = None
) -> Int[Array, " num"]:
    """Multinomial resampling without sums over particles: each slot tries uniform particles until one is accepted.

    Particle k is accepted with probability w_k / max w, so that A_j has the law W. After 64 rounds the slots still open are
    drawn from W by searching, which leaves the law as it is and bounds the cost.

    Arguments, result and rounding as for `systematic`; ancestors come in no order, and slots are exchangeable.

    Validity: that of `multinomial`, whose law it has.

    Cost: about log(num) / -log(1 - 1 / (K max W)) rounds of O(num): pays off with even weights on parallel hardware.

    Reference: Murray, Lee and Jacob 2016, arXiv:1301.4019, section 3.2 (there the first proposal is the slot's own particle,
    which is `killing`).
    """
    return local.rejection(key, log_weights, offspring.checked(log_weights, num))


def metropolis(num_steps: int = 32) -> Scheme:
    """A scheme without sums over particles: for each slot a Metropolis chain over indices, with uniform proposals.

    Slot j starts at particle j mod K (at the largest weight if that particle has none), and moves from k to a uniform
    k' with probability min(1, w_k' / w_k), `num_steps` times.

    Args:
        num_steps: B, the steps of each chain.

    Returns:
        A `Scheme`; the arguments and the result of its `ancestors` are those of `systematic`. It has no `conditional`.

    Validity:
        Biased for finite B, and so is the evidence of a filter that uses it: each slot's law is within (1 - 1 / (K max W))^B
        of W in total variation. Hence no conditional version: conditional SMC would not keep its target.

    Cost: O(num B): 2 num B uniform draws; no sum, so that weights may stay on the devices that hold them.

    Raises:
        ValueError: `num_steps` is below 1.

    Reference: Murray, Lee and Jacob 2016, arXiv:1301.4019, section 3.1.
    """
    if num_steps < 1:
        raise ValueError(f"metropolis: argument 'num_steps' is {num_steps}; use at least 1.")

    def ancestors(
        key: Array, log_weights: Float[Array, " particles"], num: int | None = None
    ) -> Int[Array, " num"]:
        return local.metropolis(key, log_weights, offspring.checked(log_weights, num), num_steps)

    return Scheme("metropolis", ancestors, None, is_unbiased=False)


def multinomial_law(log_weights: Array, ancestors: Array) -> Array:
    """Log P(A) = sum_j log W_{A_j}."""
    return log_weights[ancestors].sum()


def killing_law(log_weights: Array, ancestors: Array) -> Array:
    """Log P(A) = sum_j log(P(A_j)) as in `killing`; differentiable where one weight alone is the largest."""
    stay = jnp.exp(log_weights - log_weights.max())
    is_own = ancestors == jnp.arange(len(log_weights))
    killed = 1 - jnp.where(is_own, 0.0, stay)  # the particle of largest weight is never killed
    own = jnp.log(jnp.where(is_own, stay + (1 - stay) * jnp.exp(log_weights), 1.0))
    return jnp.where(is_own, own, jnp.log(killed) + log_weights[ancestors]).sum()


def _by_grid(
    key: Array, log_weights: Array, num: int | None, shape: tuple[int, ...] | None
) -> Int[Array, " num"]:
    """One point per stratum, at a common place (shape ()) or one drawn for each (shape None)."""
    num = offspring.checked(log_weights, num)
    cumulative = offspring.running_sum(offspring.masses(log_weights, num))
    place = offspring.uniform_below(key, cumulative[-1], (num,) if shape is None else shape)
    return offspring.spread(offspring.before(cumulative, place, num), num)
