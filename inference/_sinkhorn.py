"""Entropic couplings of two sets of points, by Sinkhorn's iterations in logarithms."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def log_coupling(
    log_kernel: Float[Array, "rows columns"],
    log_weights: Float[Array, " rows"],
    num_iterations: int,
) -> Float[Array, "rows columns"]:
    """Log of the coupling exp(log_kernel[i, j] + f_i + g_j) with row sums exp(log_weights) and equal column sums.

    Row sums are met up to the convergence of the iterations, column sums exactly. A row without weight has none of it.

    Args:
        log_kernel: minus the cost of each pair over the strength of the entropy.
        log_weights: of the rows; their exponentials sum to 1.
        num_iterations: of both potentials.

    Reference: Cuturi 2013, arXiv:1306.0895.
    """
    size = log_kernel.shape[1]

    @jax.checkpoint  # keeps [rows] numbers of each iteration for reverse mode, not [rows, columns]
    def iterate(kernel: Array, f: Array) -> Array:
        g = -math.log(size) - jax.nn.logsumexp(kernel + f[:, None], 0)
        return log_weights - jax.nn.logsumexp(kernel + g[None], 1)

    # A row without weight: its potential is of no account.
    is_dead = log_weights == -jnp.inf
    log_kernel = jnp.where(is_dead[:, None], -1e30, log_kernel)
    log_weights = jnp.where(is_dead, -1e30, log_weights)
    f = jnp.zeros(len(log_weights), log_weights.dtype)
    f = jax.lax.fori_loop(0, num_iterations, lambda _, f: iterate(log_kernel, f), f)
    # The columns last: their sums are exact.
    g = -math.log(size) - jax.nn.logsumexp(log_kernel + f[:, None], 0)
    return log_kernel + f[:, None] + g[None]
