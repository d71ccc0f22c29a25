"""What moves at one temperature did: how much the particles remember, and whether their law still changes.

Terms: points before and after, [particles, d], in coordinates u; x is u or (u - mean)^2, [2 d].
- correlation: the largest over coordinates of |corr(u before, u after)|. It stays near 1 where particles keep to far modes.
- shift z: mean(x after - x before) in its own standard errors, [2 d]. Particles whose law is the one that moves leave invariant
  do not shift, however slowly they move; particles that have not come to it do.
- lag: the largest over x of |sum_t z_t| / sqrt(T) over all T temperatures. Small shifts of one sign at each of them add up: the
  particles came late everywhere, and so do the weights that the evidence is made of.
- drift: the same over the temperatures since particles have last left their places without shifting, which is to forget what
  was before; 0 if they have at the last one.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from scipy.special import ndtri

from ....ppl._precision import full_precision

Array = jax.Array
ENOUGH = 0.3  # correlation at which particles have left their places
NEGLIGIBLE = 0.05  # shift, in standard deviations


class Mixing(NamedTuple):
    """How well one temperature's moves, or their last half, have mixed; scalars but for z.

    Attributes:
        correlation: see above; 1 where it cannot be told.
        shift: the largest one beyond its noise, in standard deviations of x; 0 if there is none.
        z: shifts in standard errors, [2 d].
    """

    correlation: Array
    shift: Array
    z: Array


@full_precision
def mixing_of(before: Array, after: Array) -> Mixing:
    """What happened between two sets of points."""
    before, after = before.astype(float), after.astype(float)  # numbers of discrete values
    mean = before.mean(0)
    unit = jnp.maximum(jnp.abs(before - mean).max(0), jnp.finfo(before.dtype).tiny)
    a, b = (before - mean) / unit, (after - mean) / unit
    away = b - b.mean(0)
    of_each = (a * away).mean(0) / jnp.sqrt((a**2).mean(0) * (away**2).mean(0))
    x, y = (jnp.concatenate([u, u**2], 1) for u in (a, b))
    change = y - x
    z = change.mean(0) / jnp.maximum(change.std(0) / len(x) ** 0.5, 1e-30)
    is_noise = jnp.abs(z) <= limit_of_z(z.size)
    shift = jnp.where(is_noise, 0.0, jnp.abs(change.mean(0)) / x.std(0))
    return Mixing(jnp.where(jnp.isnan(of_each), 1.0, jnp.abs(of_each)).max(), shift.max(), z)


def has_mixed(mixing: Mixing) -> Array:
    """Whether particles have left their places and do not shift."""
    return (mixing.shift <= NEGLIGIBLE) & (mixing.correlation <= ENOUGH)


def is_enough(mixing: Mixing, before: Mixing, num_moves: Array | int) -> Array:
    """Whether moves may end: particles do not shift, and have left their places or never will.

    `before` is of half as many moves. Twice the moves of a slow walk double 1 - correlation, and leave that between far modes as
    it is, where particles of one mode move as much as they can.
    """
    gone, went = 1 - mixing.correlation, 1 - before.correlation
    is_kept = (num_moves >= 16) & (gone <= 1.25 * went) & (mixing.shift <= NEGLIGIBLE)
    return has_mixed(mixing) | is_kept


def lags(z: Array, is_mixed: Array, num_steps: Array | int) -> tuple[Array, Array]:
    """Drift and lag of so many temperatures; z [max_steps, 2 d], is_mixed [max_steps]."""
    at = jnp.arange(len(z))

    def largest(since: Array | int) -> Array:
        is_in = (at >= since) & (at < num_steps)
        total = jnp.where(is_in[:, None], z, 0.0).sum(0)
        return jnp.abs(total).max() / jnp.sqrt(jnp.maximum(is_in.sum(), 1))

    last = jnp.where(is_mixed & (at < num_steps), at, -1).max()
    return largest(last + 1), largest(0)


def limit_of_z(size: int) -> float:
    """What the largest of so many standard normal numbers passes once in a thousand times, at most."""
    return float(-ndtri(0.001 / (2 * size)))
