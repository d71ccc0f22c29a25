"""Persistent sampling: the particles of all temperatures so far are one importance sample from the mixture of their targets.

With temperatures beta_0 = 0, ..., beta_n, K particles moved at each, likelihood L and estimates Z_s (Z_0 = 1), every particle
has for a target L^beta the weight

    w = L^beta / (1/(n+1) sum_s L^beta_s / Z_s),   Z(beta) = average of w over all (n + 1) K particles.

The next temperature, the ancestors of its K particles and its Z come from these weights.

Invariant: particles of level 0 are draws from the prior, so that the mixture covers it and weights are at most (n + 1) L^beta.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ....ppl._shared_jit import shared_call
from ..population import StepWeights, evidence, reweight
from ..resampling import resample
from ._mixing import lags
from ._run import SamplerSettings

Array = jax.Array


class Pool(NamedTuple):
    """All particles so far, a row for each level; rows after `last` are empty.

    Attributes:
        last: number n of the last level.
        points: [levels, particles, d].
        terms: of the log-likelihood, [levels, particles, terms].
        log_mixture: log sum_s L^beta_s / Z_s, [levels, particles].
        temperatures: [levels].
        log_z: [levels].
    """

    last: Array
    points: Array
    terms: Array
    log_mixture: Array
    temperatures: Array
    log_z: Array


def begin(run: SamplerSettings, points: Array, terms: Array) -> Pool:
    """Draws from the prior as level 0."""
    levels, zeros = run.max_steps + 1, jnp.zeros(run.max_steps + 1)
    empty = lambda x: jnp.zeros((levels, *x.shape)).at[0].set(x)
    mixture = jnp.zeros((levels, run.num_particles))  # L^0 / 1
    return Pool(jnp.int32(0), empty(points), empty(terms), mixture, zeros, zeros)


def weigh(run: SamplerSettings, pool: Pool, beta: Array) -> StepWeights:
    """Weights of all particles for temperature `beta`, [levels * particles], and its log Z as their increment."""
    levels = jnp.arange(run.max_steps + 1)[:, None]
    ratios = run.target.log_likelihood(pool.terms, beta) - pool.log_mixture + jnp.log1p(pool.last)
    ratios = jnp.where(levels <= pool.last, ratios, -jnp.inf).reshape(-1)
    return reweight(jnp.full(ratios.shape, -jnp.log(run.num_particles * (pool.last + 1.0))), ratios)


def extend(run: SamplerSettings, pool: Pool, points: Array, beta: Array, log_z: Array) -> Pool:
    """The pool with one more level."""
    n, terms = pool.last + 1, run.likelihoods(points)
    temperatures, log_zs = pool.temperatures.at[n].set(beta), pool.log_z.at[n].set(log_z)
    known = jnp.logaddexp(pool.log_mixture, run.target.log_likelihood(pool.terms, beta) - log_z)

    def add(s: Array | int, total: Array) -> Array:
        level = run.target.log_likelihood(terms, temperatures[s]) - log_zs[s]
        return jnp.logaddexp(total, level)

    own = jax.lax.fori_loop(0, n + 1, add, jnp.full(run.num_particles, -jnp.inf))
    return Pool(
        n, pool.points.at[n].set(points), pool.terms.at[n].set(terms), known.at[n].set(own), temperatures, log_zs,
    )  # fmt: skip


def run_persistent(run: SamplerSettings, key: Array) -> dict[str, PyTree]:
    """The fields of a `TemperedResult`; particles of all levels, empty ones with log-weight -inf."""
    init_key, loop_key = jax.random.split(key)
    size = run.max_steps

    def begun(points: Array, terms: Array) -> tuple[PyTree, ...]:
        scale = jnp.asarray(run.kernel.init_scale(run.target.dimension), float)
        record = run.record(points) | {"increments": jnp.zeros(size)}
        return begin(run, points, terms), scale, record

    def go_on(state: PyTree) -> Array:
        pool = state[0]
        return (pool.temperatures[pool.last] < 1) & (pool.last < size)

    def step(state: PyTree) -> PyTree:
        pool, scale, record = state
        n = pool.last
        resample_key, move_key = jax.random.split(jax.random.fold_in(loop_key, n))
        beta = pool.temperatures[n]
        new_beta = (
            run.largest(beta, lambda beta: weigh(run, pool, beta).ess)
            if run.schedule is None
            else run.schedule[n]
        )
        weights = weigh(run, pool, new_beta)
        points = pool.points.reshape(-1, pool.points.shape[-1])
        scheme = lambda key, log_weights: run.scheme(key, log_weights, run.num_particles)
        chosen = resample(
            resample_key, points, weights.log_weights, scheme, True, num=run.num_particles
        )
        moved, spread = run.moved(move_key, n, chosen.particles, new_beta, scale)
        new = {"increments": weights.increment - pool.log_z[n], "ess": weights.ess}
        record = run.recorded(record, n, moved, spread, new)
        return (
            extend(run, pool, moved.points, new_beta, weights.increment),
            moved.next_scale,
            record,
        )

    start = shared_call(begun, *run.start(init_key))
    pool, _, record = run.through(go_on, step, start)
    told = shared_call(functools.partial(_told, run), pool, record)
    return told | {"dimension": run.target.dimension}


def _told(run: SamplerSettings, pool: Pool, record: dict[str, Array]) -> dict[str, PyTree]:
    """Fields of a `TemperedResult` from the state after all temperatures."""
    n, size = pool.last, run.max_steps
    last = pool.temperatures[n]
    weights = weigh(run, pool, jnp.ones(()))  # the last level's particles tell about Z, too
    increments = record["increments"].at[n - 1].add(weights.increment - pool.log_z[n])
    lost, failed_at = evidence(increments)
    log_evidence = jnp.where(failed_at >= 0, lost, weights.increment)
    drift, lag = lags(record["z"], record["is_mixed"], n)
    return {
        "particles": jax.vmap(run.target.choices)(pool.points.reshape(-1, pool.points.shape[-1])),
        "log_weights": weights.log_weights,
        "log_evidence": log_evidence,
        "island_log_evidence": log_evidence[None],
        "temperatures": jnp.where(jnp.arange(size) < n, pool.temperatures[1:], last),
        "increments": increments,
        "ess": record["ess"],
        "acceptance": record["acceptance"],
        "num_steps": n,
        "num_moves": record["num_moves"],
        "correlation": record["correlation"],
        "drift": drift,
        "lag": lag,
        "tuning": {name: record[name] for name in ("scale", "spread", "num_moves")},
        "failed_at": failed_at,
    }
