"""Weighted particles: normalise, resample, follow ancestors. The arithmetic shared by every particle method.

Axis order: particles first. Log-weights are in nats and normalised (logsumexp = 0) between steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._guard import underived

Array = jax.Array
NO_GRADIENT = (
    "smc resamples, and a derivative along fixed ancestors would miss how the weights move them. Choose gradient= "
    "('stop_gradient', 'score', or a biased one: 'drop', 'soft', 'ot') in smc, or policy=never(). Where no derivative is "
    "wanted, jax.lax.stop_gradient what enters smc."
)


# A resampling scheme: (key, log_weights) -> ancestors, or `Offspring`.
Drawing = Callable[[Array, Array], Any]


class Weights(NamedTuple):
    """Weights after one step.

    Attributes:
        log_weights: normalised, [particles].
        increment: log of the factor by which the evidence estimate grew, log sum_k W_k G_k.
        ess: effective sample size 1 / sum_k W_k^2, between 1 and the number of particles; 0 when all weights vanished.
    """

    log_weights: Array
    increment: Array
    ess: Array


def uniform(num_particles: int) -> Array:
    """Normalised log-weights of equally weighted particles."""
    return jnp.full(num_particles, -math.log(num_particles))


def times(log_weights: Array, log_densities: Array) -> Array:
    """Logs of weights times densities: a particle of weight zero has no say, whatever its density."""
    return jnp.where(log_weights == -jnp.inf, -jnp.inf, log_weights + log_densities)


def reweight(log_weights: Array, log_potentials: Array) -> Weights:
    """Multiply weights by potentials G_k.

    If every weight vanishes the increment is -inf. A weight that is NaN makes it NaN: leaving that particle out would be a bias.
    In both cases the weights become uniform (the numbers after it mean nothing) and ess is 0.
    """
    unnormalised = times(log_weights, log_potentials)
    largest = unnormalised.max()
    is_lost = ~(largest > -jnp.inf)
    scaled = jnp.exp(unnormalised - jnp.where(is_lost, 0.0, largest))
    total = scaled.sum()
    increment = largest + jnp.log(total)
    normalised = jnp.where(is_lost, uniform(len(log_weights)), unnormalised - increment)
    ess = jnp.where(is_lost, 0.0, total**2 / jnp.vdot(scaled, scaled))
    nothing = jnp.where(jnp.isnan(unnormalised).any(), jnp.nan, -jnp.inf)
    return Weights(normalised, jnp.where(is_lost, nothing, increment), ess)


def evidence(increments: Array) -> tuple[Array, Array]:
    """(log evidence, number of the first weighing after which no particle had positive weight or one was NaN; -1 without).

    After such a weighing increments mean nothing, so the sum would: the evidence is that increment, -inf or NaN.
    """
    is_lost = (increments == -jnp.inf) | jnp.isnan(increments)
    failed_at = jnp.where(is_lost.any(), jnp.argmax(is_lost), -1)
    return jnp.where(failed_at >= 0, increments[failed_at], increments.sum()), failed_at


def voided(values: Any, is_wrong: Array) -> Any:
    """The values, or NaN (integers: their dtype's lowest value) if they mean nothing."""

    def one(x: Array) -> Array:
        if jnp.issubdtype(x.dtype, jnp.integer):
            return jnp.where(is_wrong, jnp.iinfo(x.dtype).min, x)
        return jnp.where(is_wrong, jnp.nan, x) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(one, values)


class Resampled(NamedTuple):
    """Particles after a resampling decision: ancestors is the identity where none took place.

    `score` is the log-prob of the ancestors where a gradient strategy asks for it, else 0.
    """

    particles: Any
    log_weights: Array
    ancestors: Array
    is_resampled: Array
    score: Any = 0.0


class Offspring(NamedTuple):
    """What resampling drew: ancestors [num], and normalised log-weights [num] where these are not equal."""

    ancestors: Array
    log_weights: Array | None = None


def drawn_by(scheme: Drawing, key: Array, log_weights: Array) -> Offspring:
    """What a scheme drew, whether or not it says something of weights."""
    drawn = scheme(key, log_weights)
    return drawn if isinstance(drawn, Offspring) else Offspring(drawn)


def resample(
    key: Array,
    particles: Any,
    log_weights: Array,
    scheme: Drawing,
    decision: Any,
    offspring: Callable[[Array, Any, Array], Resampled] | None = None,
) -> Resampled:
    """Replace particles by offspring where `decision` (a Python or traced boolean) says so.

    `offspring(key, particles, log_weights)` makes them where derivatives are wanted; without it, by `scheme`, a derivative
    with respect to the weights is refused.
    """
    num_particles = len(log_weights)
    identity = jnp.arange(num_particles, dtype=jnp.int32)

    def by_scheme(key: Array, particles: Any, log_weights: Array) -> Resampled:
        known = log_weights if num_particles == 1 else underived(NO_GRADIENT, log_weights)
        drawn = drawn_by(scheme, key, known)
        ancestors, weights = drawn.ancestors.astype(jnp.int32), drawn.log_weights
        weights = uniform(num_particles) if weights is None else weights
        return Resampled(take(particles, ancestors), weights, ancestors, jnp.asarray(True))

    make = offspring or by_scheme
    chosen = lambda: make(key, particles, log_weights)

    def unchanged() -> Resampled:
        return Resampled(particles, log_weights, identity, jnp.asarray(False))

    if isinstance(decision, bool):
        return chosen() if decision else unchanged()
    return jax.lax.cond(decision, chosen, unchanged)


def take(particles: Any, ancestors: Array) -> Any:
    """Everything moves with its particle, random keys excepted: offspring of one parent must not share their noise."""
    return jax.tree.map(lambda x: x if is_key(x) else x[ancestors], particles)


def is_key(x: Any) -> bool:
    """Whether `x` is an array of random keys."""
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


def lineages(ancestors: Array) -> Array:
    """Index at each step of the ancestor of every final particle.

    Args:
        ancestors: [steps, particles]; ancestors[t, k] is the parent, among the particles after step t - 1, of particle k
            at step t.

    Returns:
        [steps, particles]: row t holds, for each final particle, the index among the particles after step t.
    """

    def back(index: Array, parents: Array) -> tuple[Array, Array]:
        return parents[index], index

    final = jnp.arange(ancestors.shape[1], dtype=jnp.int32)
    return jax.lax.scan(back, final, ancestors, reverse=True)[1]


class Batch(NamedTuple):
    """Lanes that run together.

    Attributes:
        size: how many.
        number: number of the batch, None where all lanes run at once.
    """

    size: int
    number: Array | None

    def stream(self, key: Array) -> Array:
        """The batch's own key, or keys, from those of all lanes."""
        number = self.number
        if number is None:
            return key
        fold = lambda k: jax.random.fold_in(k, number)
        for _ in range(key.ndim):
            fold = jax.vmap(fold)
        return fold(key)


def in_batches(
    fn: Callable[..., Any], num_lanes: int, batch_size: int | None
) -> Callable[..., Any]:
    """`fn(lanes, batch, *shared)` for all lanes; `lanes` and the results have a leading lane axis.

    Args:
        fn: function of the lanes of one batch.
        num_lanes: number of lanes.
        batch_size: lanes run at once, the batches one after the other (memory); None for all.
    """
    if batch_size is None or batch_size == num_lanes:
        return lambda lanes, *shared: fn(lanes, Batch(num_lanes, None), *shared)
    num_batches = num_lanes // batch_size

    def run(lanes: Any, *shared: Any) -> Any:
        cut = lambda x: x.reshape(num_batches, batch_size, *x.shape[1:])
        one = lambda inputs: fn(inputs[1], Batch(batch_size, inputs[0]), *shared)
        outs = jax.lax.map(one, (jnp.arange(num_batches), jax.tree.map(cut, lanes)))
        return jax.tree.map(lambda x: x.reshape(num_lanes, *x.shape[2:]), outs)

    return run
