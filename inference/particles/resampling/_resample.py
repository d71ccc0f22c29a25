"""One decision to resample: whose offspring the particles are, what moves with them, and their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, PyTree

from ....ppl._shared_jit import shared_scan
from ..population import is_key, underived, uniform

Array = jax.Array
NO_GRADIENT = (
    "smc resamples, and a derivative along fixed ancestors would miss how the weights move them. Choose gradient= "
    "('stop_gradient', 'score', or a biased one: 'drop', 'soft', 'ot') in smc, or policy=never() (of "
    "inference.particles.resampling). Where no derivative is wanted, jax.lax.stop_gradient what enters smc."
)


# A resampling scheme: (key, log_weights) -> ancestors, or `Offspring`.
Drawing = Callable[[Array, Array], Any]


class Resampled(NamedTuple):
    """Particles after a resampling decision: ancestors is the identity where none took place.

    `score` is the log-prob of the ancestors where a gradient strategy asks for it, else 0.
    """

    particles: PyTree
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


def take(particles: PyTree, ancestors: Array) -> PyTree:
    """Everything moves with its particle, random keys excepted: offspring of one parent must not share their noise."""
    return jax.tree.map(lambda x: x if is_key(x) else x[ancestors], particles)


def resample(
    key: Array,
    particles: PyTree,
    log_weights: Array,
    scheme: Drawing,
    decision: ArrayLike,
    offspring: Callable[..., PyTree] | None = None,
    move: Callable[[PyTree, Array], PyTree] = take,
) -> Resampled:
    """Replace particles by offspring where `decision` (a Python or traced boolean) says so.

    `offspring(key, particles, log_weights)` makes them where derivatives are wanted; without it, by `scheme`, a derivative
    with respect to the weights is refused. `move` is another `take`, over several devices.
    """
    num_particles = len(log_weights)
    identity = jnp.arange(num_particles, dtype=jnp.int32)

    def by_scheme(key: Array, particles: PyTree, log_weights: Array) -> Resampled:
        known = log_weights if num_particles == 1 else underived(NO_GRADIENT, log_weights)
        drawn = drawn_by(scheme, key, known)
        ancestors, weights = drawn.ancestors.astype(jnp.int32), drawn.log_weights
        weights = uniform(num_particles) if weights is None else weights
        return Resampled(move(particles, ancestors), weights, ancestors, jnp.asarray(True))

    make = offspring or by_scheme
    chosen = lambda: make(key, particles, log_weights)

    def unchanged() -> Resampled:
        return Resampled(particles, log_weights, identity, jnp.asarray(False))

    if isinstance(decision, bool):
        return chosen() if decision else unchanged()
    return jax.lax.cond(decision, chosen, unchanged)


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
    return shared_scan(back, final, ancestors, reverse=True)[1]
