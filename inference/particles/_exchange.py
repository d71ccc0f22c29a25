"""How islands of particles meet: nothing for a run by itself, resampling between islands where there are several.

Terms. M islands of K particles run side by side under `jax.vmap` with an axis name. Island m has the share V_m of the weight
(shares sum to one); a step multiplies it by the island's factor sum_k W_mk G_mk. Before a step whole islands are replaced by
offspring islands where a policy of the shares says so. One level up, this is a particle method whose particles are islands.

Invariant: shares, and what is decided by them, are equal in all islands (not mapped), so that a step without exchange moves
nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._guard import underived
from ._mesh import Placement
from ._policies import Policy
from ._population import is_key, lineages, reweight, uniform

Array = jax.Array
NO_GRADIENT = (
    "islands resamples islands, and a derivative along fixed ancestors would miss how the weights move them. Take gradients "
    "with smc(..., gradient=...). Where no derivative is wanted, jax.lax.stop_gradient what enters islands."
)


class Pooled(NamedTuple):
    """What a weighing did to the evidence: the fields of `Weights`, of islands."""

    log_weights: Any
    increment: Array
    ess: Any


class Alone:
    """A run by itself; shares are None and records empty."""

    def start(self) -> Any:
        """Shares before the first weighing."""
        return None

    def exchange(self, step: Any, moving: Any, shares: Any) -> tuple[Any, Any, Any]:
        """What moves with an island and the shares after an exchange, if there is one; and its record."""
        return moving, shares, None

    def weigh(self, shares: Any, increment: Array) -> Pooled:
        """New shares, and by how much the log of the estimated evidence grew."""
        return Pooled(None, increment, None)

    def record(self, pooled: Pooled, moved: Any = None) -> dict[str, Array]:
        """What a weighing leaves behind, after the exchange that `moved` records."""
        return {}

    def lineage(self, stacked: Any, records: dict[str, Array]) -> Any:
        """The values [steps, ...] of the forefathers of this island."""
        return stacked


ALONE = Alone()


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Resampling between islands; the methods are those of `Alone`, for use under `jax.vmap`.

    Args:
        axis: name of the mapped axis.
        num_islands: M.
        key: key of the exchanges, the same in all islands.
        scheme: `(key, log_weights) -> ancestors`.
        policy: when, by the shares.
        place: weights of islands are copied everywhere.
    """

    axis: str
    num_islands: int
    key: Array
    scheme: Callable[[Array, Array], Array]
    policy: Policy
    place: Placement

    def start(self) -> Array:
        """Equal shares."""
        return uniform(self.num_islands)

    def exchange(self, step: Any, moving: Any, shares: Array) -> tuple[Any, Array, Any]:
        """Islands replaced by offspring."""
        own = jax.lax.axis_index(self.axis)
        identity = jnp.arange(self.num_islands, dtype=jnp.int32)

        def swap(moving: Any, shares: Array) -> tuple[Any, Array, Array]:
            known = underived(NO_GRADIENT, shares)
            ancestors = self.scheme(jax.random.fold_in(self.key, step), known).astype(jnp.int32)
            # Offspring of one parent must not share their noise, so keys stay.
            take = lambda x: x if is_key(x) else self._gathered(x)[ancestors[own]]
            return jax.tree.map(take, moving), uniform(self.num_islands), ancestors

        stay = lambda moving, shares: (moving, shares, identity)
        decision = jnp.asarray(self.policy(step, shares))
        moving, shares, ancestors = jax.lax.cond(decision, swap, stay, moving, shares)
        return moving, shares, (ancestors, decision)

    def weigh(self, shares: Array, increment: Array) -> Pooled:
        """sum_m V_m exp(increment_m)."""
        increments = self.place.copy(self._gathered(increment))
        pooled = self.place.copy(reweight(shares, increments))
        # `reweight` takes NaN for zero weight, and here it marks a failed look-ahead.
        is_bad = jnp.isnan(increments).any()
        return Pooled(pooled.log_weights, jnp.where(is_bad, jnp.nan, pooled.increment), pooled.ess)

    def record(self, pooled: Pooled, moved: Any = None) -> dict[str, Array]:
        """Of islands: ancestors [M], whether they were resampled, log-weights [M], ess."""
        identity = jnp.arange(self.num_islands, dtype=jnp.int32)
        ancestors, is_resampled = (identity, jnp.zeros((), bool)) if moved is None else moved
        return {
            "ancestors": ancestors,
            "is_resampled": is_resampled,
            "log_weights": pooled.log_weights,
            "ess": pooled.ess,
        }

    def lineage(self, stacked: Any, records: dict[str, Array]) -> Any:
        """Values at each step from the island that this one descends from."""
        index = lineages(records["ancestors"])[:, jax.lax.axis_index(self.axis)]
        pick = lambda both: self._gathered(both[0])[both[1]]
        # On a mesh one step at a time, since each device gathers all islands of what it picks from.
        in_turn = jax.vmap(pick) if self.place.mesh is None else lambda x: jax.lax.map(pick, x)
        return jax.tree.map(lambda x: in_turn((x, index)), stacked)

    def _gathered(self, x: Array) -> Array:
        """The values of all islands, leading axis island."""
        return jax.lax.all_gather(x, self.axis)
