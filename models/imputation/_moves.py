"""Draws moved after weighting: where weights collapse on a few draws, bands are those of these few and too narrow.

Draws are resampled by their weights, and each then takes steps of Hamiltonian Monte Carlo that leave p(z | x_o) as it is, in the
coordinates in which the guide's law is N(0, I), z = m + R^-1 e. The first half of the steps sets the step size of each series, so
that four in five are accepted, and the second half keeps it. Missing cells are drawn from p(x_m | z) at the end: nothing that is
observed may lie downstream of them.

Reference: Gilks and Berzuini 2001 (resample-move); Neal 2011, arXiv:1206.1901 (Hamiltonian Monte Carlo).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ... import ppl
from ...inference.objectives._row_weights import log_density_of
from ...inference.particles.moves import HMC
from ...inference.particles.resampling import systematic
from ...ppl._precision import full_precision
from .._series import Series
from ._gp import _solved, smoothed

Array = jax.Array
KERNEL = HMC(num_leapfrog=8, target_accept=0.8)


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

    def of_one(row: Series, loc: Array, root: Array, e: Array, key: Array) -> tuple[Array, Array]:
        """Noise [K, latents, time] of one series after the moves, and the share that was accepted."""
        one = jax.tree.map(lambda a: jnp.asarray(a)[None], row)

        def log_density(point: Array) -> Array:
            z = loc + _solved(root, point.reshape(loc.shape))
            trace, _ = model.generate(guide_key, {"z": z[None]}, one)
            own = {n: lp for n, lp in trace.log_probs.items() if not trace.sites[n].is_imputed}
            return log_density_of(dataclasses.replace(trace, log_probs=own), "rows")[0]

        def step(carry: PyTree, inputs: PyTree) -> PyTree:
            at, log_scale = carry
            number, key = inputs
            size_key, key = jax.random.split(key)
            # Sizes of their own keep paths from returning to where they began.
            scales = jnp.exp(log_scale) * jax.random.uniform(
                size_key, e.shape[:1], minval=0.7, maxval=1.3
            )
            move = lambda key, at, scale: KERNEL.step(key, at, log_density, scale, jnp.ones(()))
            at, accepted = jax.vmap(move)(jax.random.split(key, len(e)), at, scales)
            gap = accepted.mean() - KERNEL.target_accept
            return (at, log_scale + jnp.where(number < num_moves // 2, gap, 0.0)), accepted.mean()

        points = e.reshape(len(e), -1)
        at = jax.vmap(lambda point: KERNEL.start(point, log_density))(points)
        log_scale = jnp.log(KERNEL.init_scale(points.shape[1]))
        inputs = (jnp.arange(num_moves), jax.random.split(key, num_moves))
        (at, _), accepted = jax.lax.scan(step, (at, log_scale), inputs)
        return at.point.reshape(e.shape), accepted[num_moves // 2 :].mean()

    with full_precision():
        e = jnp.einsum("ndts,knds->kndt", law.root, z - law.loc)
    keys = jax.random.split(key, z.shape[1])
    e, accepted = jax.vmap(of_one, (0, 0, 0, 1, 0), (1, 0))(data, law.loc, law.root, e, keys)
    return law.loc + _solved(jnp.broadcast_to(law.root, (*e.shape, e.shape[-1])), e), accepted
