"""Weights of particles: normalise, multiply, add up to the evidence.

Axis order: particles first. Log-weights are in nats and normalised (logsumexp = 0) between steps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ....ppl._precision import full_precision
from ....ppl._shared_jit import compiled_alone

Array = jax.Array


class StepWeights(NamedTuple):
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


@full_precision
def weighted_mean(log_weights: Array, values: Array) -> PyTree:
    """sum_k W_k x_k for each array of a tree, whose first axes are those of the log-weights; x_k counts where W_k does."""
    weights, has_say = jnp.exp(log_weights), log_weights > -jnp.inf

    def one(x: Array) -> Array:
        counted = has_say.reshape(*has_say.shape, *[1] * (x.ndim - has_say.ndim))
        return jnp.tensordot(weights, jnp.where(counted, x, jnp.zeros((), x.dtype)), weights.ndim)

    return jax.tree.map(one, values)


@compiled_alone
@full_precision
def reweight(log_weights: Array, log_potentials: Array) -> StepWeights:
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
    return StepWeights(normalised, jnp.where(is_lost, nothing, increment), ess)


@compiled_alone
def evidence(increments: Array) -> tuple[Array, Array]:
    """(log evidence, number of the first weighing after which no particle had positive weight or one was NaN; -1 without).

    After such a weighing increments mean nothing, so the sum would: the evidence is that increment, -inf or NaN. Without any
    weighing it is 0.
    """
    if not len(increments):
        return jnp.zeros((), increments.dtype), jnp.int32(-1)
    is_lost = (increments == -jnp.inf) | jnp.isnan(increments)
    failed_at = jnp.where(is_lost.any(), jnp.argmax(is_lost), -1)
    return jnp.where(failed_at >= 0, increments[failed_at], increments.sum()), failed_at


def voided(values: PyTree, is_wrong: Array) -> PyTree:
    """The values, or NaN (integers: their dtype's lowest value) if they mean nothing."""

    def one(x: Array) -> Array:
        if jnp.issubdtype(x.dtype, jnp.integer):
            return jnp.where(is_wrong, jnp.iinfo(x.dtype).min, x)
        return jnp.where(is_wrong, jnp.nan, x) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(one, values)
