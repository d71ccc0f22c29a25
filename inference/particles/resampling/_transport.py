"""Weighted particles made equally weighted by a smooth map: entropy-regularised optimal transport (Sinkhorn)."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ....ppl._precision import full_precision
from ..._sinkhorn import log_coupling
from ..population import is_key

Array = jax.Array


@full_precision
def transported(particles: PyTree, log_weights: Array, epsilon: float, num_iterations: int) -> Any:
    """x_j <- K sum_i P_ij x_i for every array of `particles` (particles first, real values); random keys stay.

    P has the column sums 1 / K exactly, and the row sums exp(log_weights) up to the convergence of the iterations.
    """
    leaves = [x for x in jax.tree.leaves(particles) if not is_key(x)]
    if not leaves:
        return particles
    plan = jnp.exp(log_plan(_points(leaves), log_weights, epsilon, num_iterations))
    plan = plan * len(log_weights)
    move = lambda x: x if is_key(x) else jnp.tensordot(plan, x, ((0,), (0,))).astype(x.dtype)
    return jax.tree.map(move, particles)


@full_precision
def log_plan(points: Array, log_weights: Array, epsilon: float, num_iterations: int) -> Array:
    """Log of the coupling P [i, j] of (x_i, W_i) and (x_j, 1 / K) that minimises <P, |x_i - x_j|^2> + epsilon KL(P | W x 1/K)."""
    size = len(log_weights)
    squares = (points**2).sum(1)
    cost = squares[:, None] + squares[None] - 2 * points @ points.T
    kernel = log_weights[:, None] - math.log(size) - cost / epsilon

    # The columns are exact, so that every new particle is an average.
    return log_coupling(kernel, log_weights, num_iterations)


def _points(leaves: list[Array]) -> Array:
    """Particles as vectors [K, d], in units of sqrt(d) times the largest standard deviation of a coordinate."""
    flat = jnp.concatenate([x.reshape(len(x), -1) for x in leaves], 1)
    flat = flat - flat.mean(0, keepdims=True)
    variance = (flat**2).mean(0).max()
    # Particles in one place have no spread and no cost.
    return flat / jnp.sqrt(flat.shape[1] * jnp.where(variance > 0, variance, 1.0))
