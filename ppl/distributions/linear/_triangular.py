"""The maps between free numbers and vectors whose coordinates lie between bounds of those before."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ._bounds import KINDS, MAX_LOST, Fixed, Stage

Array = jax.Array
_FREE, _LOWER, _UPPER, _BOTH = range(len(KINDS))


def solved(
    stages: Sequence[Stage | Fixed], size: int, u: Array | None, x: Array | None
) -> tuple[Array, Array, Array]:
    """Free numbers u (..., free), vectors x (..., D) and log dx / du (..., free), from u or from x, whichever is given.

    Args:
        stages: of the constraint, see `_bounds.py`.
        size: D.
        u: free numbers, or None.
        x: vectors, or None.
    """
    given = u if u is not None else x
    assert given is not None
    given = jnp.asarray(given, jnp.result_type(float, given))
    batch = given.shape[:-1]
    made = jnp.zeros((*batch, size), given.dtype) if x is None else given
    frees, slopes, at = [], [], 0
    for stage in stages:
        where = stage.coordinates
        if isinstance(stage, Fixed):
            if x is None:
                value = stage.values(made)
                made = made.at[..., where].set(value)
            continue
        low, high = stage.interval(made)
        kinds = stage.kinds
        # Infinite ends stay out of what is differentiated.
        low = jnp.where((kinds == _LOWER) | (kinds == _BOTH), low, 0.0)
        high = jnp.where((kinds == _UPPER) | (kinds == _BOTH), high, 1.0)
        if x is None:
            free = given[..., at : at + len(where)]
            at += len(where)
            made = made.at[..., where].set(_forward(kinds, free, low, high))
        else:
            free = _backward(kinds, made[..., where], low, high)
        frees.append(free)
        # An interval that is no wider than the rounding of its ends is not known.
        lost = sum(stage.rounding(made)) / jnp.where(kinds == _BOTH, high - low, jnp.inf)
        slope = _log_slope(kinds, free, low, high)
        slopes.append(jnp.where((lost >= 0) & (lost <= MAX_LOST), slope, jnp.nan))
    empty = jnp.zeros((*batch, 0), given.dtype)
    return jnp.concatenate([empty, *frees], -1), made, jnp.concatenate([empty, *slopes], -1)


def _forward(kinds: np.ndarray, u: Array, low: Array, high: Array) -> Array:
    # From the nearer end, so that values do not round onto the other one.
    between = jnp.where(
        u < 0, low + (high - low) * jax.nn.sigmoid(u), high - (high - low) * jax.nn.sigmoid(-u)
    )
    cases = [u, low + jax.nn.softplus(u), high - jax.nn.softplus(-u), between]
    return jnp.select([kinds == kind for kind in range(len(KINDS))], cases)


def _backward(kinds: object, x: Array, low: Array, high: Array) -> Array:
    def unsoftplus(y: Array) -> Array:
        return y + jnp.log(-jnp.expm1(-y))

    above = jnp.where(kinds == _LOWER, x - low, 1.0)
    under = jnp.where(kinds == _UPPER, high - x, 1.0)
    inside = kinds == _BOTH
    rise, fall = jnp.where(inside, x - low, 1.0), jnp.where(inside, high - x, 1.0)
    cases = [x, unsoftplus(above), -unsoftplus(under), jnp.log(rise) - jnp.log(fall)]
    return jnp.select([kinds == kind for kind in range(len(KINDS))], cases)


def _log_slope(kinds: np.ndarray, u: Array, low: Array, high: Array) -> Array:
    rising, falling = jax.nn.log_sigmoid(u), jax.nn.log_sigmoid(-u)
    width = jnp.log(jnp.where(kinds == _BOTH, high - low, 1.0))
    cases = [jnp.zeros_like(u), rising, falling, width + rising + falling]
    return jnp.select([kinds == kind for kind in range(len(KINDS))], cases)
