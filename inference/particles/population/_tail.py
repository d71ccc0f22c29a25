"""The tail of weights: whether they have a variance, as far as a sample tells."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ....ppl._precision import full_precision
from ....ppl._shared_jit import compiled_alone

Array = jax.Array
LEAST_TAIL = 5  # weights in a tail that can be fitted
EQUAL = 1e-3  # weights that differ by less have no tail
PRIOR_SCALE, PRIOR_SIZE = 3, 10  # of the fit


def worst_shape(size: int) -> float:
    """The k-hat of K weights above which they are not to be trusted: 0.7, and a standard error of the fit."""
    return 0.7 + max(_tail_size(size), 1) ** -0.5


@compiled_alone
@full_precision
def pareto_shape(log_weights: Array) -> Array:
    """k-hat: shape of the generalised Pareto law fitted to the largest min(K / 5, 3 sqrt(K)) of K weights.

    Weights of infinite variance have a shape above 1/2, without a mean above 1. -inf where the tail is equal, NaN for fewer than
    25 particles. No derivative passes. `inference.diagnostics.importance_diagnostics` fits the same outside of jax.jit.

    Reference: Zhang and Stephens 2009; Vehtari et al. 2024, arXiv:1507.02646, sections 2 and 3.
    """
    size = len(log_weights)
    num = _tail_size(size)
    if num < LEAST_TAIL:
        with jax.debug_nans(False):  # meant, and no accident
            return jnp.full((), jnp.nan)
    largest = jax.lax.top_k(jax.lax.stop_gradient(log_weights), num + 1)[0][::-1]
    is_equal = largest[-1] - largest[0] < EQUAL
    scaled = jnp.exp(largest - largest[-1])
    excess = jnp.where(is_equal, jnp.arange(1.0, num + 1), scaled[1:] - scaled[0])
    grid = 30 + int(num**0.5)
    rates = 1 - jnp.sqrt(grid / (jnp.arange(1, grid + 1) - 0.5))
    rates = rates / (PRIOR_SCALE * excess[int(num / 4 + 0.5) - 1]) + 1 / excess[-1]
    shapes = jnp.log1p(-jnp.outer(rates, excess)).mean(1)
    log_liks = num * (jnp.log(-rates / shapes) - shapes - 1)
    rate = jax.nn.softmax(log_liks) @ rates
    shape = jnp.log1p(-rate * excess).mean()
    shape = (num * shape + PRIOR_SIZE * 0.5) / (num + PRIOR_SIZE)
    return jnp.where(is_equal, -jnp.inf, shape)


def _tail_size(size: int) -> int:
    return int(min(size / 5, 3 * size**0.5))
