"""How islands of particles meet: nothing for a run by itself, resampling between islands where there are several.

Terms. M islands of K particles run side by side under `jax.vmap` with an axis name. Island m has the share V_m of the weight
(shares sum to one); a step multiplies it by the island's factor sum_k W_mk G_mk. Before a step islands meet where a policy of the
shares says so, and have equal shares afterwards. They meet in one of two ways:

- `replaced`: whole islands are replaced by offspring of islands. One level up, this is a particle method whose particles are
  islands.
- `mixed`: in log2 M stages (a butterfly) each island meets the one whose number differs in one binary digit. The 2 K particles
  of a pair are resampled together, by V_m W_mk, and each island keeps K of the offspring, of equal weight; both then have the
  mean of their shares. After the last stage every particle can have offspring on every island, though an island has met
  log2 M others only.

Both keep E[sum_m V_m sum_k W_mk f(x_mk)], whatever the scheme if it is unbiased.

Invariant: shares, and what is decided by them, are equal in all islands (not mapped), so that a step without exchange moves
nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..population import is_key, reweight, underived, uniform
from ..resampling import Policy, lineages
from ._mesh import Placement, follow

Array = jax.Array
NO_GRADIENT = (
    "islands resamples islands, and a derivative along fixed ancestors would miss how the weights move them. Take gradients "
    "with smc(..., gradient=...). Where no derivative is wanted, jax.lax.stop_gradient what enters islands."
)


class ExchangeOutcome(NamedTuple):
    """An exchange: the parents of an island's particles, numbered island * K + particle, and whether it took place."""

    parents: Array
    is_exchanged: Array


class Alone:
    """A run by itself; shares are None and records empty."""

    def start(self) -> PyTree:
        """Shares before the first weighing."""
        return None

    def exchange(
        self, step: Array, moving: tuple[PyTree, ...], log_weights: Array, shares: object
    ) -> tuple[PyTree, Array, PyTree, PyTree]:
        """What moves with particles, their log-weights, and the shares after an exchange, if there is one; and its record."""
        return moving, log_weights, shares, None

    def weigh(
        self, shares: Any, increment: Array, met: object = None
    ) -> tuple[PyTree, Array, PyTree]:
        """New shares, by how much the log of the estimated evidence grew, and a record: after the exchange `met`, if any."""
        return None, increment, {}

    def paths(
        self,
        stacked: Array | dict[str, dict[int, Array]],
        ancestors: Array,
        records: dict[str, Array],
        place: Placement,
    ) -> PyTree:
        """Paths of the final particles, [particles, steps, ...], from values [steps, particles, ...]."""
        return follow(stacked, lineages(ancestors), place)


ALONE = Alone()


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Resampling between islands; the methods are those of `Alone`, for use under `jax.vmap`.

    Args:
        axis: name of the mapped axis.
        num_islands: M.
        num_particles: K.
        key: key of the exchanges, the same in all islands.
        scheme: `(key, log_weights) -> ancestors`.
        policy: when, by the shares.
        place: weights of islands are copied everywhere.
        is_mixed: whether pairs of islands mix their particles, or whole islands are replaced.
        has_genealogy: whether records tell the parents.
    """

    axis: str
    num_islands: int
    num_particles: int
    key: Array
    scheme: Callable[[Array, Array], Array]
    policy: Policy
    place: Placement
    is_mixed: bool
    has_genealogy: bool

    def start(self) -> Array:
        """Equal shares."""
        return uniform(self.num_islands)

    def exchange(
        self, step: Any, moving: object, log_weights: Array, shares: Array
    ) -> tuple[PyTree, Array, Array, ExchangeOutcome]:
        """What moves with particles, their log-weights, equal shares."""
        key = jax.random.fold_in(self.key, step)

        def meet(
            moving: PyTree, log_weights: Array, shares: Array
        ) -> tuple[PyTree, Array, Array, Array]:
            swap = self.mixed if self.is_mixed else self.replaced
            known = underived(NO_GRADIENT, shares)
            moved, log_weights = swap(key, (moving, self._own()), log_weights, known)
            return *moved, log_weights, uniform(self.num_islands)

        stay = lambda moving, log_weights, shares: (moving, self._own(), log_weights, shares)
        decision = jnp.asarray(self.policy(step, shares))
        moving, parents, log_weights, shares = jax.lax.cond(
            decision, meet, stay, moving, log_weights, shares
        )
        return moving, log_weights, shares, ExchangeOutcome(parents, decision)

    def replaced(self, key: Array, moving: object, log_weights: Array, shares: Array) -> PyTree:
        """Whole islands replaced by offspring."""
        mother = self.scheme(key, shares).astype(jnp.int32)[jax.lax.axis_index(self.axis)]
        take = lambda x: x if is_key(x) else self._gathered(x)[mother]
        return jax.tree.map(take, (moving, log_weights))

    def mixed(self, key: Array, moving: object, log_weights: Array, shares: Array) -> PyTree:
        """Particles of pairs of islands resampled together, stage by stage."""
        own, size = jax.lax.axis_index(self.axis), self.num_particles
        share = shares[own]
        for stage in range((self.num_islands - 1).bit_length()):
            distance = 1 << stage
            pairs = [(m, m ^ distance) for m in range(self.num_islands)]
            is_upper = own & distance != 0

            def both(x: Array, pairs: PyTree = pairs, is_upper: Array = is_upper) -> Array:
                """[2, ...], the island of the lower number first: both islands of a pair see the same."""
                other = jax.lax.ppermute(x, self.axis, pairs)
                return jnp.where(is_upper, jnp.stack([other, x]), jnp.stack([x, other]))

            pair_key = jax.random.fold_in(jax.random.fold_in(key, stage), own & ~distance)
            pooled = both(share + underived(NO_GRADIENT, log_weights)).reshape(2 * size)
            offspring = self.scheme(pair_key, pooled).astype(jnp.int32).reshape(2, size)
            ancestors = jnp.where(is_upper, offspring[1], offspring[0])
            pick = lambda x, a=ancestors: both(x).reshape(-1, *x.shape[1:])[a]
            moving = jax.tree.map(lambda x, f=pick: x if is_key(x) else f(x), moving)
            share = jax.nn.logsumexp(both(share)) - jnp.log(2.0)
            log_weights = uniform(size)
        return moving, log_weights

    def weigh(
        self, shares: Array, increment: Array, met: ExchangeOutcome | None = None
    ) -> tuple[Array, Array, PyTree]:
        """By sum_m V_m exp(increment_m).

        The record: whether there was an exchange, log-shares [M], effective number of islands; parents [K] with a genealogy.
        """
        increments = self.place.copy(self._gathered(increment))
        pooled = self.place.copy(reweight(shares, increments))
        met = met or ExchangeOutcome(self._own(), jnp.zeros((), bool))
        record = {"parents": met.parents} if self.has_genealogy else {}
        record |= {
            "is_exchanged": met.is_exchanged,
            "log_weights": pooled.log_weights,
            "ess": pooled.ess,
        }
        return pooled.log_weights, pooled.increment, record

    def paths(
        self, stacked: object, ancestors: Array, records: dict[str, Array], place: Placement
    ) -> Any:
        """Paths of this island's final particles through all islands."""
        parents = jnp.take_along_axis(records["parents"], ancestors, 1)
        everywhere = lambda x: self._gathered(x).reshape(-1, *x.shape[1:])
        index = lineages(jax.vmap(everywhere)(parents))
        start = jax.lax.axis_index(self.axis) * self.num_particles
        own = jax.lax.dynamic_slice_in_dim(index, start, self.num_particles, 1)
        return follow(stacked, own, place, everywhere)

    def _own(self) -> Array:
        """The numbers of this island's particles."""
        start = jax.lax.axis_index(self.axis) * self.num_particles
        return start.astype(jnp.int32) + jnp.arange(self.num_particles, dtype=jnp.int32)

    def _gathered(self, x: Array) -> Array:
        """The values of all islands, leading axis island."""
        return jax.lax.all_gather(x, self.axis)
