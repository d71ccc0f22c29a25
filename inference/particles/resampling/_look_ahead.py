"""What resampling sees of a particle's state besides its weight: psi, a look ahead, and the place by which particles are sorted.

Look-ahead. Input: weights W of particles that target the data so far, and psi > 0, a function of where a particle stands.
Ancestors are drawn by W psi, and an offspring of particle A has the weight (1/K) sum_j W_j psi_j / psi_A: importance weights, so
that every sum over particles keeps its expectation. Without resampling W stays as it is.

Order. A scheme takes the particles in the order of their places: those that it picks are then spread over the places, too.

Invariant: log-weights are those of the plain target before and after, whatever psi and order; only variances depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ....ppl.language import apply
from ..population import reweight
from ._hilbert import nearby_order
from ._resample import Drawing, Offspring, Resampled, drawn_by, resample, take

Array = jax.Array
Twist = Callable[..., Any]
Order = Callable[..., Any]


class Look(NamedTuple):
    """What resampling looks at, functions of (state, t, *args); at least one of them.

    A particle is seen as an array: log psi (0 without a twist), then its place.
    """

    twist: Twist | None
    order: Order | None

    def __call__(self, state: Array, t: Array, *args: PyTree) -> Array:
        """[1 + coordinates of the place]."""
        log_psi = jnp.zeros(())
        if self.twist is not None:
            log_psi = jnp.asarray(apply(self.twist, (state, t, *args)), float)
            if log_psi.shape != ():
                raise ValueError(
                    f"smc: twist must return one number for one particle, the log of psi in nats, got shape {log_psi.shape}. Sum "
                    "over the coordinates of the state."
                )
        if self.order is None:
            return log_psi[None]
        place = jnp.asarray(apply(self.order, (state, t, *args)), float)
        if place.ndim > 1:
            raise ValueError(
                f"smc: order must return a number or a vector for one particle, got shape {place.shape}. Ravel it."
            )
        return jnp.append(log_psi, place)

    def log_psi(self, seen: Array | None) -> Array | None:
        """Log psi of all particles, None without a twist."""
        return None if self.twist is None or seen is None else seen[:, 0]

    def sorting(self, scheme: Drawing, seen: Array | None) -> Drawing:
        """The scheme with particles taken in the order of their places."""
        if self.order is None or seen is None:
            return scheme
        order = nearby_order(seen[:, 1:])

        def sorted_scheme(key: Array, log_weights: Array) -> Offspring:
            drawn = drawn_by(scheme, key, log_weights[order])
            return drawn._replace(ancestors=order[drawn.ancestors])

        return sorted_scheme


def resample_ahead(
    key: Array,
    particles: PyTree,
    log_weights: Array,
    seen: Array | None,
    look: Look,
    scheme: Drawing,
    decide: Callable[..., PyTree],
    offspring: Callable[..., PyTree] | None = None,
    move: Callable[[PyTree, Array], PyTree] = take,
) -> Resampled:
    """`resample` by W psi, or by W without a twist; `decide` sees the weights by which it would resample.

    A particle with log psi = -inf is lost. Where log psi of a particle of positive weight is NaN or +inf all weights are NaN.
    """
    log_psi, scheme = look.log_psi(seen), look.sorting(scheme, seen)
    if log_psi is None:
        return resample(key, particles, log_weights, scheme, decide(log_weights), offspring, move)
    twisted = reweight(log_weights, log_psi)
    chosen = resample(
        key,
        (particles, log_psi),
        twisted.log_weights,
        scheme,
        decide(twisted.log_weights),
        offspring,
        lambda both, ancestors: (move(both[0], ancestors), both[1][ancestors]),
    )
    moved, psi = chosen.particles
    # Not normalised: their sum has expectation 1, and its error belongs to the evidence.
    weights = jnp.where(psi > -jnp.inf, chosen.log_weights + twisted.increment - psi, -jnp.inf)
    is_bad = jnp.any((jnp.isnan(log_psi) | (log_psi == jnp.inf)) & (log_weights > -jnp.inf))
    return chosen._replace(particles=moved, log_weights=jnp.where(is_bad, jnp.nan, weights))
