"""One decision to resample: whose offspring the particles are, what moves with them, and their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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


def drawn_by(scheme: Drawing, key: Array, log_weights: Array, num: int | None = None) -> Offspring:
    """What a scheme drew, whether or not it says something of weights; `num` offspring, by default as many as particles.

    Raises:
        TypeError: other than a whole number for each of them.
    """
    drawn = scheme(key, log_weights)
    drawn = drawn if isinstance(drawn, Offspring) else Offspring(drawn)
    shape, dtype = np.shape(drawn.ancestors), getattr(drawn.ancestors, "dtype", None)
    num = len(log_weights) if num is None else num
    if dtype is None or shape != (num,) or not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(
            f"Resampling: the scheme returned ancestors of shape {shape} and type {dtype}, and {num} are wanted. Return a "
            f"vector of integers from 0 to {len(log_weights) - 1}, for each slot the particle that it descends from."
        )
    return drawn


def _is_time(decision: Any) -> bool | Array:
    """What a policy has said, as Python's boolean or an array of one."""
    if isinstance(decision, bool | np.bool_):
        return bool(decision)
    shape, dtype = np.shape(decision), getattr(decision, "dtype", type(decision).__name__)
    is_truth = hasattr(decision, "dtype") and decision.dtype == bool
    if shape != () or not is_truth:
        raise TypeError(
            f"Resampling: the policy returned shape {shape} and type {dtype}. Return whether to resample, one True or False: "
            "ess < 0.5 * num_particles, or jnp.any of several."
        )
    return decision


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
    num: int | None = None,
) -> Resampled:
    """Replace particles by offspring where `decision` (a Python or traced boolean) says so.

    `offspring(key, particles, log_weights)` makes them where derivatives are wanted; without it, by `scheme`, a derivative
    with respect to the weights is refused. `move` is another `take`, over several devices; `num` another number of offspring.
    """
    num_particles = len(log_weights)
    identity = jnp.arange(num_particles, dtype=jnp.int32)

    def by_scheme(key: Array, particles: PyTree, log_weights: Array) -> Resampled:
        known = log_weights if num_particles == 1 else underived(NO_GRADIENT, log_weights)
        drawn = drawn_by(scheme, key, known, num)
        ancestors, weights = drawn.ancestors.astype(jnp.int32), drawn.log_weights
        weights = uniform(num_particles) if weights is None else weights
        # JAX would take the nearest particle for one that there is not.
        is_one = (ancestors >= 0).all() & (ancestors < num_particles).all()
        weights = jnp.where(is_one, weights, jnp.nan)
        return Resampled(move(particles, ancestors), weights, ancestors, jnp.asarray(True))

    make = offspring or by_scheme
    chosen = lambda: make(key, particles, log_weights)

    def unchanged() -> Resampled:
        return Resampled(particles, log_weights, identity, jnp.asarray(False))

    decision = _is_time(decision)
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
