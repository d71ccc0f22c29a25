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
LEAST_EXCESS = 1e-30  # of the largest weight: what is less counts as none


def worst_shape(size: int, num_positive: int | None = None) -> float:
    """The k-hat above which K weights are not to be trusted, so many of them positive: 0.7, and a standard error of the fit."""
    num = _tail_size(size) if num_positive is None else min(_tail_size(size), num_positive)
    return 0.7 + max(num, 1) ** -0.5


@compiled_alone
@full_precision
def pareto_shape(log_weights: Array) -> Array:
    """k-hat: shape of the generalised Pareto law fitted to the largest min(K / 5, 3 sqrt(K)) of K weights.

    Weights of infinite variance have a shape above 1/2, without a mean above 1. -inf where the tail is equal. Of the tail count
    weights above the next smaller one that are no zeros beside the largest; NaN where they are fewer than five, as they are for
    fewer than 25 particles. No derivative passes. `inference.diagnostics.importance_diagnostics` fits the same outside of
    jax.jit, where all of them count.

    Reference: Zhang and Stephens 2009; Vehtari et al. 2024, arXiv:1507.02646, sections 2 and 3.
    """
    size = len(log_weights)
    num = _tail_size(size)
    if num < LEAST_TAIL:
        with jax.debug_nans(False):  # meant, and no accident
            return jnp.full((), jnp.nan)
    largest = jax.lax.top_k(jax.lax.stop_gradient(log_weights), num + 1)[0][::-1]
    is_positive = largest > -jnp.inf
    is_equal = largest[-1] - jnp.where(is_positive, largest, jnp.inf).min() < EQUAL
    scaled = jnp.exp(largest - largest[-1])
    excess = scaled[1:] - scaled[0]
    # Zeros add nothing to a sum over the tail.
    excess = jnp.where(excess > LEAST_EXCESS, excess, 0.0)
    found = (excess > 0).sum()
    is_known = jnp.where(is_equal, is_positive.sum(), found) >= LEAST_TAIL
    is_fitted = is_known & ~is_equal
    excess = jnp.where(is_fitted, excess, jnp.arange(1.0, num + 1))
    found = jnp.where(is_fitted, found, num)
    quartile = excess[num - found + jnp.floor(found / 4 + 0.5).astype(int) - 1]
    grid = 30 + int(num**0.5)
    rates = 1 - jnp.sqrt(grid / (jnp.arange(1, grid + 1) - 0.5))
    rates = rates / (PRIOR_SCALE * quartile) + 1 / excess[-1]
    shapes = jnp.log1p(-jnp.outer(rates, excess)).sum(1) / found
    log_liks = found * (jnp.log(-rates / shapes) - shapes - 1)
    rate = jax.nn.softmax(log_liks) @ rates
    shape = jnp.log1p(-rate * excess).sum() / found
    shape = (found * shape + PRIOR_SIZE * 0.5) / (found + PRIOR_SIZE)
    with jax.debug_nans(False):
        return jnp.where(is_known, jnp.where(is_equal, -jnp.inf, shape), jnp.nan)


def _tail_size(size: int) -> int:
    return int(min(size / 5, 3 * size**0.5))
