"""Other ancestors than the genealogy's: what a run records for backward sampling, and ancestor sampling.

Input: for a step of a loop the states and weights of the particles before it, and the densities of the steps ahead. Output: the
particle that the retained path descends from, drawn from

    B_t(k) proportional to W_k F_t(s_k, x_t, x_{t+1}, ...)      (`programs/_transition.py`).

Reference: Lindsten, Jordan and Schön 2014, arXiv:1401.0604.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..population import in_batches, is_key, times, underived
from ..programs import Future
from ..resampling import multinomial

Array = jax.Array
NO_PATH_GRADIENT = (
    "Paths are drawn by the weights of particles, and a derivative along the drawn paths would miss how the weights choose them. "
    "Draw them with parameters under jax.lax.stop_gradient; the mean over paths of the gradient of log_density is the score "
    "(Fisher's identity)."
)


class Filter(NamedTuple):
    """The record of one loop of T steps.

    Attributes:
        future: how to make the densities of the steps ahead; raises where there are none.
        states: where particles stand before each step, [steps, particles, ...].
        log_weights: normalised weights before each step (and its resampling), nats, [steps, particles].
        ancestors: the slot before the step of the particle in each slot after it, [steps, particles].
        made: choices made in each step, [steps, particles, ...].
    """

    future: Callable[[], Future]
    states: PyTree
    log_weights: Array
    ancestors: Array
    made: PyTree


class Segment(NamedTuple):
    """Choices made before a loop, [particles, ...], and the loop (None after the last)."""

    values: PyTree
    filter: Filter | None

    def sites(self) -> set[str]:
        """Names of the segment's sites (a program's)."""
        return {*self.values, *(self.filter.made if self.filter else ())}


def new_ancestor(
    key: Array, future: Future, states: PyTree, log_weights: Array, retained: object, t: Array,
    batch_size: int | None,
) -> Array:  # fmt: skip
    """A particle before step t as the ancestor of the retained path (choices [steps, ...]), drawn from B_t.

    The number of particles where a density is NaN or infinite: no particle.
    """
    at = jnp.minimum(t + jnp.arange(max(future.memory, 1)), future.length - 1)
    window = jax.tree.map(lambda x: x[at], retained)

    def log_densities(states: PyTree, batch: PyTree, window: PyTree) -> Array:
        repeated = lambda x: jnp.broadcast_to(x, (batch.size, *x.shape))
        return jnp.broadcast_to(future(states, jax.tree.map(repeated, window), t), (batch.size,))

    ahead = in_batches(log_densities, len(log_weights), batch_size)(states, window)
    logits = times(log_weights, ahead)
    return choose(jax.random.fold_in(key, 1), logits, jnp.zeros((), jnp.int32))


def choose(key: Array, logits: Array, fallback: Array) -> Array:
    """An index drawn in proportion to exp(logits); `fallback` where all are zero, `len(logits)` where one is NaN or +inf."""
    logits = underived(NO_PATH_GRADIENT, logits)
    is_lost = ~(logits.max() > -jnp.inf)
    index = jnp.where(is_lost, fallback, multinomial(key, logits, 1)[0])
    is_number = logits < jnp.inf  # not of NaN
    return jnp.where(is_number.all(), index, len(logits))


def turned(particles: PyTree, index: Array) -> Array:
    """Particles shifted so that number `index` becomes particle 0.

    Resampling given that slot 0 descends from particle 0 has a law without special labels (`resampling/_conditional.py`):
    after the shift it is resampling given any other ancestor.
    """
    return jax.tree.map(lambda x: x if is_key(x) else jnp.roll(x, -index, axis=0), particles)
