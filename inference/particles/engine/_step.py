"""One step of a particle filter, whatever the particles run through.

Input: particles x with normalised log-weights W, and a function that moves them. Output: the particles after

    exchange   particles of several islands meet, where there are several;
    ancestor   a retained path draws another ancestor, where it may;
    resample   A ~ scheme(W) where the policy says so, with weights V of the offspring (else A_j = j, V = W);
    move       x_j <- a draw given x_{A_j}, with potential G_j;
    weigh      W_j <- V_j G_j / sum_i V_i G_i,   log Z <- log Z + log sum_i V_i G_i;

and the record of the step. What moves the particles, by which random keys, is the front end's: `_feynman_kac.py`, `_filter.py`
and `parameters/_liu_west.py`.

Invariant: E[exp(log Z)] is the normalising constant for unbiased schemes, if E[G_j | x_{A_j}] is the factor by which it grows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..._digits import lost_nats
from ..population import StepWeights, log_apart, pareto_shape, reweight, uniform
from ..programs import Future
from ..resampling import Differentiation, Drawing, Look, Policy, Resampled, box, resample_ahead
from ._descent import new_ancestor, turned
from ._exchange import ALONE, Alone, Exchange
from ._mesh import ONE_DEVICE, Placement

Array = jax.Array
Record = dict[str, Any]
History = Literal["none", "ancestors", "full"]
Ancestry = Literal["genealogy", "ancestor", "filter"]
PLAIN = Look(None, None)


class Cloud(NamedTuple):
    """Particles between two steps.

    Attributes:
        particles: leaves [particles, ...].
        log_weights: normalised, [particles], nats.
        seen: what resampling looks at besides weights, None without a look.
        score: log-prob of the discrete choices so far that enter no weight.
        shares: log-weights of islands, None for a run by itself.
        roots: the particle of the first generation from which each descends, [particles].
    """

    particles: PyTree
    log_weights: Array
    seen: Array | None
    score: Array
    shares: Any
    roots: Array


class Moved(NamedTuple):
    """What a move makes of resampled particles.

    Attributes:
        particles: leaves [particles, ...].
        log_potentials: log G, [particles], nats.
        seen: what the next resampling looks at.
        log_probs: of the draws that carry no derivative, [particles]; None where there is no such thing.
        kept: outputs of the step to be recorded.
        made: choices of the step, for backward sampling.
    """

    particles: PyTree
    log_potentials: Array
    seen: Array | None = None
    log_probs: Array | None = None
    kept: Any = None
    made: PyTree = None


class Retained(NamedTuple):
    """A retained path before step t of a loop: the densities of the steps ahead, its choices [steps, ...], t."""

    future: Future
    choices: Any
    t: Array


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a run weighs and resamples.

    Attributes:
        num_particles: K.
        scheme: draws ancestors.
        policy: when to resample.
        history: what the record keeps, see `smc`.
        batch_size: particles that move at once, None for all.
        path: "genealogy"; "ancestor": a retained path draws new ancestors; "filter": the record serves backward sampling.
        gradient: how derivatives pass through resampling; None refuses them.
        look: what resampling looks at besides weights.
        place: devices.
        islands: how islands meet.
    """

    num_particles: int
    scheme: Drawing
    policy: Policy
    history: History = "none"
    batch_size: int | None = None
    path: Ancestry = "genealogy"
    gradient: Differentiation | None = None
    look: Look | None = None
    place: Placement = ONE_DEVICE
    islands: Alone | Exchange = ALONE

    @property
    def in_weights(self) -> bool:
        """Whether draws without a derivative act on their particle's weight."""
        return self.gradient is not None and self.gradient.strategy.in_weights

    def start(self, particles: PyTree = None, seen: Array | None = None) -> Cloud:
        """Equally weighted particles."""
        log_weights, shares = uniform(self.num_particles), self.islands.start()
        roots = jnp.arange(self.num_particles, dtype=jnp.int32)
        return Cloud(particles, log_weights, seen, jnp.zeros(()), shares, roots)

    def weigh(self, cloud: Cloud, log_potentials: Array) -> tuple[Cloud, Record]:
        """A weighing without a move; its record has one row."""
        weights = self._reweight(cloud.log_weights, log_potentials)
        shares, increment, meeting = self.islands.weigh(cloud.shares, weights.increment)
        identity = jnp.arange(self.num_particles, dtype=jnp.int32)
        record = self._record(
            weights, increment, meeting, cloud.score, jnp.zeros((), bool), identity
        )
        cloud = cloud._replace(log_weights=weights.log_weights, shares=shares)
        return cloud, jax.tree.map(lambda x: x[None], record)

    def step(
        self,
        number: Array,
        key: Array,
        cloud: Cloud,
        move: Callable[[Resampled], Moved],
        *,
        states: Callable[..., PyTree] = lambda particles: particles,
        retained: Retained | None = None,
    ) -> tuple[Cloud, tuple[Record, PyTree, PyTree]]:
        """Exchange, resample, move and weigh.

        Args:
            number: of the weighing, which exchanges and policies are told.
            key: of resampling.
            cloud: the particles before.
            move: makes the particles after it from the offspring.
            states: particles -> what densities of the steps ahead look at.
            retained: the path that draws a new ancestor.

        Returns:
            The particles after, and for the scan over steps: the record, what the move wants kept, and with path "filter" the
            states, log-weights, ancestors and choices of the step.
        """
        moving, log_weights, shares, met = self.islands.exchange(
            number, (cloud.particles, cloud.seen, cloud.roots), cloud.log_weights, cloud.shares
        )
        before, turn = (states(moving[0]), log_weights), 0
        if retained is not None:
            future, choices, t = retained
            turn = new_ancestor(key, future, *before, choices, t, self.batch_size)
            moving, log_weights = turned((moving, log_weights), turn)
        chosen = resample_ahead(
            key, moving[0], log_weights, self.place.copy(moving[1]), self.look or PLAIN, self.scheme,
            lambda log_weights: self.policy(number, log_weights), self.gradient and self.gradient.offspring,
            self.place.take,
        )  # fmt: skip
        ancestors = (chosen.ancestors + turn) % self.num_particles
        new = move(chosen._replace(particles=self.place.split(chosen.particles)))
        particles, kept = self.place.split((new.particles, new.kept))
        score, log_potentials = cloud.score + chosen.score, new.log_potentials
        if new.log_probs is not None and self.in_weights:
            log_potentials = log_potentials + box(new.log_probs)
        elif new.log_probs is not None:
            score = score + new.log_probs.sum()
        weights = self._reweight(chosen.log_weights, log_potentials)
        # A turn by as many as there are says that no ancestor could be drawn.
        increment = jnp.where(turn < self.num_particles, weights.increment, jnp.nan)
        shares, increment, meeting = self.islands.weigh(shares, increment, met)
        record = self._record(weights, increment, meeting, score, chosen.is_resampled, ancestors)
        filtered = (*before, ancestors, new.made) if self.path == "filter" else ()
        seen, roots = self.place.copy((new.seen, moving[2][chosen.ancestors]))
        cloud = Cloud(particles, weights.log_weights, seen, score, shares, roots)
        return cloud, (record, kept, filtered)

    def fields(
        self, cloud: Cloud, particles: Array | dict[str, Array], records: list[Record]
    ) -> dict[str, PyTree]:
        """Fields of an `SMCResult` from the rows of all weighings; a front end adds to them."""
        none = dict.fromkeys(("ancestors", "step_log_weights", "paths"))
        record = jax.tree.map(lambda *rows: jnp.concatenate(rows), *records)
        is_there = cloud.log_weights > -jnp.inf
        num_ancestors = jnp.zeros(self.num_particles, bool).at[cloud.roots].max(is_there).sum()
        is_known = lost_nats(jax.lax.stop_gradient(record["increments"])) < 1
        own = {
            "particles": particles,
            "log_weights": cloud.log_weights,
            "k_hat": jnp.where(is_known, pareto_shape(cloud.log_weights), jnp.nan),
            "num_ancestors": num_ancestors,
            "log_apart": log_apart(cloud.roots, cloud.log_weights),
        }
        return none | record | own | {"is_scored": False, "limited": ()}

    def _reweight(self, log_weights: Array, log_potentials: Array) -> StepWeights:
        copy = self.place.copy
        return copy(reweight(copy(log_weights), copy(log_potentials)))

    def _record(
        self, weights: StepWeights, increment: Array, meeting: dict[str, PyTree], score: Array,
        is_resampled: Array, ancestors: Array,
    ) -> Record:  # fmt: skip
        """What a weighing leaves behind."""
        record = {
            "increments": increment,
            "ess": weights.ess,
            "is_resampled": is_resampled,
            "scores": score,
            "islands": meeting,
        }
        if self.history != "none":
            record["ancestors"] = self.place.split(ancestors)
            record["step_log_weights"] = self.place.split(weights.log_weights)
        return record
