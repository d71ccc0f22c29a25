"""Resampling by comparing weights: killing, birth and death, rejection, Metropolis. `_resampling` documents the schemes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from . import _offspring as offspring

# Rejection: slots that no proposal has suited by then are drawn by their law, as all slots of multinomial resampling are.
MAX_ROUNDS = 64


def survives(key: Array, mass: Int[Array, " particles"]) -> Bool[Array, " particles"]:
    """Which particles live on, each by itself with probability w_k / max w."""
    return offspring.uniform_below(key, mass.max(), mass.shape) < mass


def births(
    key: Array, mass: Int[Array, " particles"]
) -> tuple[Bool[Array, " particles"], Int[Array, " particles"]]:
    """Which particles live on, each by itself with probability min(1, K W_k), and cumulative masses of (K W_k - 1)_+."""
    num, total = len(mass), mass.sum(dtype=mass.dtype)
    whole, rest = offspring.shares(mass, total, num)
    is_alive = (whole >= 1) | (offspring.uniform_below(key, total, mass.shape) < rest)
    excess = jnp.where(whole >= 1, whole - 1 + rest / total, 0.0)
    scaled = excess / jnp.maximum(excess.max(), 1e-30)
    return is_alive, offspring.running_sum(offspring.rounded_masses(scaled, num))


def square(scheme: str, log_weights: Float[Array, " particles"], num: int | None) -> int:
    """`num` of a scheme that keeps particles in their slots, which must be K.

    Raises:
        ValueError: `num` is another number.
    """
    num, size = offspring.checked(log_weights, num), len(log_weights)
    if num != size:
        raise ValueError(
            f"Resampling scheme '{scheme}' keeps particles in their slots, so argument 'num' must be their number {size}, "
            f"not {num}. Use 'systematic', 'residual' or another scheme that can resize."
        )
    return num


def rejection(key: Array, log_weights: Float[Array, " particles"], num: int) -> Int[Array, " num"]:
    """Uniform proposals, taken with probability w_k / max w; the rare slot left over is drawn by searching."""
    mass = offspring.masses(log_weights, num)
    key_rounds, key_rest = jax.random.split(key)
    top = mass.max()

    def is_running(state: tuple[Array, Array, Array]) -> Array:
        return (state[0] < MAX_ROUNDS) & ~state[2].all()

    def propose(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, ancestors, is_done = state
        key_index, key_accept = jax.random.split(jax.random.fold_in(key_rounds, count))
        index = jax.random.randint(key_index, (num,), 0, len(mass), jnp.int32)
        is_taken = offspring.uniform_below(key_accept, top, (num,)) < mass[index]
        return count + 1, jnp.where(is_done, ancestors, index), is_done | is_taken

    def search(ancestors: Array, is_done: Array) -> Array:
        cumulative = offspring.running_sum(mass)
        points = offspring.uniform_below(key_rest, cumulative[-1], (num,))
        return jnp.where(is_done, ancestors, offspring.search(cumulative, points))

    start = (jnp.int32(0), jnp.zeros(num, jnp.int32), jnp.zeros(num, bool))
    _, ancestors, is_done = jax.lax.while_loop(is_running, propose, start)
    return jax.lax.cond(is_done.all(), lambda a, d: a, search, ancestors, is_done)


def metropolis(
    key: Array, log_weights: Float[Array, " particles"], num: int, num_steps: int
) -> Int[Array, " num"]:
    """`num_steps` steps of a Metropolis chain over indices for each slot, with uniform proposals."""
    top = log_weights.max()
    lw = jnp.where(jnp.isfinite(top), log_weights, jnp.zeros((), log_weights.dtype))
    start = jnp.arange(num, dtype=jnp.int32) % len(lw)
    # A chain must not end where there is no weight, so none starts there.
    start = jnp.where(lw[start] > -jnp.inf, start, jnp.argmax(lw).astype(jnp.int32))

    def step(i: Array, ancestors: Array) -> Array:
        key_index, key_accept = jax.random.split(jax.random.fold_in(key, i))
        index = jax.random.randint(key_index, (num,), 0, len(lw), jnp.int32)
        ratio = jnp.exp(lw[index] - lw[ancestors])
        return jnp.where(jax.random.uniform(key_accept, (num,)) < ratio, index, ancestors)

    return jax.lax.fori_loop(0, num_steps, step, start)
