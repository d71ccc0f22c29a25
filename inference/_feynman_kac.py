"""Feynman-Kac models, and the one loop that runs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ._lane_map import map_lanes
from ._population import lineages, resample, reweight, uniform

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class FeynmanKac:
    """A Markov chain x_0, ..., x_T with positive potentials.

    It defines the laws

        Q_t(x_0:t) = M_0(x_0) G_0(x_0) prod_{s=1..t} M_s(x_{s-1}, x_s) G_s(x_{s-1}, x_s) / Z_t.

    Functions act on one particle, any pytree of arrays of fixed shapes; the engine maps them over particles.

    Args:
        init: `key -> x_0`, a draw from M_0.
        kernel: `(key, x_{t-1}, t) -> x_t`, a draw from M_t; `t` counts from 1.
        log_potential: `(x_{t-1}, x_t, t) -> log G_t` in nats; at t = 0 both arguments are x_0.
        num_steps: T, number of moves.

    Reference: Del Moral 2004, Feynman-Kac Formulae; Chopin and Papaspiliopoulos 2020, chapter 5.
    """

    init: Callable[[Array], Any]
    kernel: Callable[[Array, Any, Array], Any]
    log_potential: Callable[[Any, Any, Array], Array]
    num_steps: int

    def __post_init__(self) -> None:
        if self.num_steps < 0:
            raise ValueError(f"FeynmanKac: num_steps must be >= 0, got {self.num_steps}.")


def run(
    model: FeynmanKac,
    key: Array,
    *,
    num_particles: int,
    scheme: Callable[[Array, Array], Array],
    policy: Callable[[Array, Array], Any],
    batch_size: int | None,
    history: str,
) -> dict[str, Any]:
    """Run the particle approximation; returns the fields of an `SMCResult`."""
    init_key, loop_key = jax.random.split(key)
    in_lanes = lambda fn: map_lanes(fn, num_particles, batch_size)

    def begin(key: Array) -> tuple[Any, Array]:
        x = model.init(key)
        return x, _scalar(model.log_potential(x, x, jnp.zeros((), jnp.int32)))

    particles, potentials = in_lanes(begin)(init_key)
    first = reweight(uniform(num_particles), potentials)

    def step(carry: Any, t: Array) -> tuple[Any, Any]:
        particles, log_weights = carry
        resample_key, move_key = jax.random.split(jax.random.fold_in(loop_key, t))
        chosen = resample(resample_key, particles, log_weights, scheme, policy(t, log_weights))

        def move(key: Array, previous: Any) -> tuple[Any, Array]:
            x = model.kernel(key, previous, t)
            return x, _scalar(model.log_potential(previous, x, t))

        particles, potentials = in_lanes(move)(move_key, chosen.particles)
        weights = reweight(chosen.log_weights, potentials)
        record = {
            "increments": weights.increment,
            "ess": weights.ess,
            "is_resampled": chosen.is_resampled,
        }
        if history != "none":
            record["ancestors"] = chosen.ancestors
            record["step_log_weights"] = weights.log_weights
        if history == "full":
            record["paths"] = particles
        return (particles, weights.log_weights), record

    steps = jnp.arange(1, model.num_steps + 1, dtype=jnp.int32)
    (last, log_weights), record = jax.lax.scan(step, (particles, first.log_weights), steps)
    result = {
        "particles": last,
        "log_weights": log_weights,
        "increments": jnp.concatenate([first.increment[None], record["increments"]]),
        "ess": jnp.concatenate([first.ess[None], record["ess"]]),
        "is_resampled": jnp.concatenate([jnp.zeros(1, bool), record["is_resampled"]]),
        "ancestors": None,
        "step_log_weights": None,
        "paths": None,
    }
    if history != "none":
        identity = jnp.arange(num_particles, dtype=jnp.int32)
        for name, row in (("ancestors", identity), ("step_log_weights", first.log_weights)):
            result[name] = jnp.concatenate([row[None], record[name]])
    if history == "full":
        index = lineages(result["ancestors"])
        stacked = jax.tree.map(
            lambda a, b: jnp.concatenate([a[None], b]), particles, record["paths"]
        )
        result["paths"] = follow(stacked, index)
    return result


def follow(stacked: Any, index: Array) -> Any:
    """Paths of the final particles, [particles, steps, ...], from values [steps, particles, ...] and `lineages`."""
    pick = jax.vmap(lambda x, i: x[i])
    return jax.tree.map(lambda x: jnp.moveaxis(pick(x, index), 0, 1), stacked)


def _scalar(log_potential: Any) -> Array:
    value = jnp.asarray(log_potential)
    if value.shape != ():
        raise ValueError(
            f"FeynmanKac.log_potential must return one number per particle, got shape {value.shape}. Sum over the "
            "coordinates of one particle."
        )
    return value
