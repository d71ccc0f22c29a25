"""Conditional resampling: ancestors given that slot 0 descends from particle 0.

Specification. Let a scheme give ancestors A of weights W. Relabel: shift the particles by r and the slots by s, both uniform
cyclic shifts (or permutations), resample, shift back. Each slot then descends from particle k with probability
E[N_k] / num = W_k, and no label is special. The conditional version draws A from that law given A_0 = 0; so the law of
the counts is the relabelled scheme's, weighted by N_0:

    P(N = n | A_0 = 0) = P(N = n) n_0 / (num W_0).

Drawing A and overwriting slot 0 gives another law (it does not reweight by n_0), under which conditional SMC leaves its target
for all schemes whose slots depend on each other. Relabelling the particles matters only where a scheme treats them unlike each
other: systematic resampling is invariant under cyclic shifts, multinomial and residual resampling under all permutations, and
stratified resampling under none.

Every function takes `(key, log_weights, num=None)` and returns int32 ancestors of shape [num] with ancestors[0] = 0, also
where particle 0 has no weight, which has probability zero in conditional SMC.

Reference: Andrieu, Doucet and Holenstein 2010; Chopin and Singh 2015, arXiv:1304.1887, section 5; Karppinen, Singh and Vihola
2022, arXiv:2205.13898.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from . import _local as local, _offspring as offspring, _pivotal as pivotal


def multinomial(
    key: Array, log_weights: Float[Array, " particles"], num: int | None = None
) -> Int[Array, " num"]:
    """Independent slots: all but slot 0 as in multinomial resampling."""
    num = offspring.checked(log_weights, num)
    cumulative = offspring.running_sum(offspring.masses(log_weights, num))
    points = offspring.uniform_below(key, cumulative[-1], (num,))
    return offspring.search(cumulative, points).at[0].set(0)


def residual(
    key: Array, log_weights: Float[Array, " particles"], num: int | None = None
) -> Int[Array, " num"]:
    """Slot 0 is one of particle 0's n_0 certain offspring, or one of the R drawn ones, in the proportion n_0 : f_0.

    Here num W_0 = n_0 + f_0. In the first case all R slots are drawn as ever, in the second all but one.
    """
    num = offspring.checked(log_weights, num)
    key_slot, key_points = jax.random.split(key)
    mass = offspring.masses(log_weights, num)
    certain, cumulative = offspring.residual_parts(mass, num)
    points = offspring.uniform_below(key_points, cumulative[-1], (num,))
    until = offspring.running_sum(certain)
    ancestors = jnp.where(
        jnp.arange(num) < until[-1],
        offspring.spread(until, num),
        offspring.search(cumulative, points),
    )
    # A uniform point of [0, num W_0) lies below n_0 or above. Certain offspring ascend, so one of particle 0 is in slot 0.
    point, _ = _point_of_zero(key_slot, offspring.running_sum(mass), 0, num)
    slot = jnp.where(point < certain[0], 0, jnp.minimum(until[-1], num - 1))
    return ancestors.at[slot].set(ancestors[0]).at[0].set(0)


def systematic(
    key: Array, log_weights: Float[Array, " particles"], num: int | None = None
) -> Int[Array, " num"]:
    """The point of slot 0 is uniform on particle 0's stretch [0, W_0); the others follow at distances 1 / num, cyclically.

    A uniform slot's point is uniform on [0, 1), so given that it lies in the stretch it is uniform there.
    """
    num = offspring.checked(log_weights, num)
    cumulative = offspring.running_sum(offspring.masses(log_weights, num))
    slot, place = _point_of_zero(key, cumulative, 0, num)
    ancestors = offspring.spread(offspring.before(cumulative, place, num), num)
    return jnp.roll(ancestors, -slot).at[0].set(0)


def stratified(
    key: Array, log_weights: Float[Array, " particles"], num: int | None = None
) -> Int[Array, " num"]:
    """Particles are shifted at random; then slot 0's point is uniform on the stretch of particle 0, the others as ever."""
    num = offspring.checked(log_weights, num)
    mass = offspring.masses(log_weights, num)
    size = len(mass)
    key_shift, key_point, key_places = jax.random.split(key, 3)
    shift = jax.random.randint(key_shift, (), 0, size)
    cumulative = offspring.running_sum(jnp.roll(mass, shift))
    slot, place = _point_of_zero(key_point, cumulative, shift, num)
    places = offspring.uniform_below(key_places, cumulative[-1], (num,)).at[slot].set(place)
    ancestors = offspring.spread(offspring.before(cumulative, places, num), num)
    return jnp.roll((ancestors - shift) % size, -slot).at[0].set(0)


def ssp(
    key: Array, log_weights: Float[Array, " particles"], num: int | None = None
) -> Int[Array, " num"]:
    """Particles are shifted at random; particle 0's bit is drawn first, then the tournament given that bit.

    With num W_0 = n_0 + f_0, weighting by N_0 makes P(B_0 = 1) = f_0 (n_0 + 1) / (n_0 + f_0). Slot 0 is a uniform one of
    particle 0's.
    """
    num = offspring.checked(log_weights, num)
    mass = offspring.masses(log_weights, num)
    size, total = len(mass), mass.sum(dtype=mass.dtype)
    key_shift, key_bit, key_bits, key_slot = jax.random.split(key, 4)
    shift = jax.random.randint(key_shift, (), 0, size)
    whole, rest = offspring.shares(jnp.roll(mass, shift), total, num)
    own, part = whole[shift], rest[shift] / total
    bit = jax.random.uniform(key_bit) * (own + part) < part * (own + 1)
    bits = pivotal.rounded(key_bits, rest, total, pivotal.KnownBit(shift, bit))
    counts = whole.astype(jnp.int32) + bits
    until = offspring.running_sum(counts)
    slot = until[shift] - 1 - jax.random.randint(key_slot, (), 0, jnp.maximum(counts[shift], 1))
    return jnp.roll((offspring.spread(until, num) - shift) % size, -slot).at[0].set(0)


def killing(
    key: Array, log_weights: Float[Array, " particles"], num: int | None = None
) -> Int[Array, " num"]:
    """Slot 0 is the survivor of particle 0, with probability 1 / (K max W), or a killed particle's slot that drew particle 0.

    That slot is i with probability proportional to 1 - w_i / max w. All other slots are as in killing; since they depend
    on nothing else, the slot only changes places with slot 0.
    """
    num = local.square("killing", log_weights, num)
    mass = offspring.masses(log_weights, num)
    key_stay, key_points, key_case, key_slot = jax.random.split(key, 4)
    cumulative, top = offspring.running_sum(mass), mass.max()
    points = offspring.uniform_below(key_points, cumulative[-1], (num,))
    ancestors = jnp.where(
        local.survives(key_stay, mass), jnp.arange(num), offspring.search(cumulative, points)
    ).astype(jnp.int32)
    is_survivor = jax.random.uniform(key_case) * num < cumulative[-1] / top
    deaths = offspring.running_sum(offspring.rounded_masses((top - mass) / top, num))
    point = offspring.uniform_below(key_slot, deaths[-1], ())
    slot = jnp.where(is_survivor, 0, jnp.minimum(offspring.search(deaths, point), num - 1))
    return ancestors.at[slot].set(ancestors[0]).at[0].set(0)


def birth_death(
    key: Array, log_weights: Float[Array, " particles"], num: int | None = None
) -> Int[Array, " num"]:
    """Slot 0 is the survivor of particle 0, with probability min(1, K W_0) / (K W_0), or a dead one's slot that drew particle 0.

    That slot is i with probability proportional to (1 - K W_i)_+. All else as in `killing`.
    """
    num = local.square("birth_death", log_weights, num)
    mass = offspring.masses(log_weights, num)
    key_stay, key_points, key_case, key_slot = jax.random.split(key, 4)
    is_alive, births = local.births(key_stay, mass)
    points = offspring.uniform_below(key_points, births[-1], (num,))
    ancestors = jnp.where(is_alive, jnp.arange(num), offspring.search(births, points)).astype(
        jnp.int32
    )
    share = num * (mass / mass.sum(dtype=mass.dtype))
    is_survivor = jax.random.uniform(key_case) * share[0] < 1.0
    deaths = offspring.running_sum(offspring.rounded_masses(jnp.maximum(1 - share, 0.0), num))
    point = offspring.uniform_below(key_slot, deaths[-1], ())
    slot = jnp.where(is_survivor, 0, jnp.minimum(offspring.search(deaths, point), num - 1))
    return ancestors.at[slot].set(ancestors[0]).at[0].set(0)


def _point_of_zero(
    key: Array, cumulative: Int[Array, " particles"], position: Int[Array, ""] | int, num: int
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """The stratum of a uniform point on the stretch of the particle at `position`, and its place there in [0, Q)."""
    key_mass, key_part = jax.random.split(key)
    total = cumulative[-1]
    start = jnp.where(position > 0, cumulative[position - 1], 0)
    point = start + offspring.uniform_below(key_mass, cumulative[position] - start, ())
    slot, place = offspring.shares(point, total, num)
    # The point is a whole number and then a fraction of a unit of mass, which is num Q^-1 of the length of a stratum.
    place = place + jax.random.randint(key_part, (), 0, num, total.dtype)
    carry = (place >= total).astype(total.dtype)
    return jnp.minimum(slot + carry, num - 1), place - carry * total
