"""Draws moved after weighting: where weights collapse on a few draws, bands are those of these few and too narrow.

Draws are resampled by their weights, and each then takes steps of Hamiltonian Monte Carlo that leave p(z | x_o) as it is, in the
coordinates in which the guide's law is N(0, I), z = m + R^-1 e. The first half of the steps sets the step size of each series, so
that four in five are accepted, and the second half keeps it. Missing cells are drawn from p(x_m | z) at the end: nothing that is
observed may lie downstream of them.

Reference: Gilks and Berzuini 2001 (resample-move); Neal 2011, arXiv:1206.1901 (Hamiltonian Monte Carlo).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ... import ppl
from ...inference.objectives._row_weights import log_density_of
from ...inference.particles.resampling import systematic
from ._gp import _solved, smoothed
from ._series import Series

Array = jax.Array
NUM_LEAPS = 8
ACCEPTED = 0.8


def moved(
    model: ppl.Program,
    guide: ppl.Program,
    data: Series,
    key: Array,
    z: Array,
    log_weights: Array,
    num_moves: int,
) -> tuple[Array, Array]:
    """White noise of equally weighted draws, and the share of the last half of the moves that were accepted; traceable.

    Args:
        model: with its parameters bound.
        guide: of `programs`, with its parameters bound.
        data: series without labels.
        key: PRNG key.
        z: white noise, [K, series, latents, time].
        log_weights: [K, series], nats.
        num_moves: steps of Hamiltonian Monte Carlo.

    Returns:
        z [K, series, latents, time], acceptance [series].
    """
    choose_key, guide_key, key = jax.random.split(key, 3)
    chosen = jax.vmap(systematic, (0, 1), 1)(jax.random.split(choose_key, z.shape[1]), log_weights)
    z = jnp.take_along_axis(z, chosen[..., None, None], 0)
    sites = guide.simulate(guide_key, data).deterministic
    law = smoothed(sites["looked"], sites["looks"], sites["look_precision"])

    def log_target(e: Array) -> Array:
        z = law.loc + _solved(law.root, e)
        trace, _ = model.generate(guide_key, {"z": z}, data)
        own = {n: lp for n, lp in trace.log_probs.items() if not trace.sites[n].is_imputed}
        return log_density_of(dataclasses.replace(trace, log_probs=own), "rows")

    def slope(e: Array) -> Array:
        return jax.grad(lambda e: log_target(e).sum())(e)

    def move(e: Array, key: Array, size: Array) -> tuple[Array, Array]:
        """One step of a draw of all series, and the probabilities of acceptance."""
        momentum_key, size_key, accept_key = jax.random.split(key, 3)
        size = size * jax.random.uniform(size_key, minval=0.7, maxval=1.3)
        size = size[:, None, None]
        start = jax.random.normal(momentum_key, e.shape)
        momentum, place = start + 0.5 * size * slope(e), e
        for leap in range(NUM_LEAPS):
            place = place + size * momentum
            last = 0.5 if leap == NUM_LEAPS - 1 else 1.0
            momentum = momentum + last * size * slope(place)
        kinetic = lambda p: 0.5 * (p**2).sum((-2, -1))
        gain = log_target(place) - log_target(e) - kinetic(momentum) + kinetic(start)
        gain = jnp.where(jnp.isnan(gain), -jnp.inf, gain)  # a path that ran away is not taken
        taken = jnp.log(jax.random.uniform(accept_key, gain.shape)) < gain
        return jnp.where(taken[:, None, None], place, e), jnp.exp(jnp.minimum(gain, 0.0))

    def step(carry: Any, inputs: Any) -> Any:
        e, log_size = carry
        number, key = inputs
        keys = jax.random.split(key, len(e))
        e, accepted = jax.vmap(move, (0, 0, None))(e, keys, jnp.exp(log_size))
        accepted = accepted.mean(0)
        is_setting = number < num_moves // 2
        log_size = log_size + jnp.where(is_setting, accepted - ACCEPTED, 0.0)
        return (e, log_size), accepted

    e = jnp.einsum("ndts,knds->kndt", law.root, z - law.loc)
    num_numbers = z.shape[-1] * z.shape[-2]
    log_size = jnp.full(z.shape[1], jnp.log(num_numbers**-0.25))
    inputs = (jnp.arange(num_moves), jax.random.split(key, num_moves))
    (e, _), accepted = jax.lax.scan(step, (e, log_size), inputs)
    return law.loc + _solved(jnp.broadcast_to(law.root, (*e.shape, e.shape[-1])), e), accepted[
        num_moves // 2 :
    ].mean(0)
