"""What a tempering run returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ....ppl._compat import is_concrete, typed_key
from ....ppl._show import shown
from ....ppl._types import Key
from ..._digits import told_digits
from ..._made_for import MadeFor, drops_origin
from ...inputs import UNNORMALISED
from ..population import facts_with_error, family_error, voided, weighted_mean
from ..resampling import equally_weighted
from ._judgement import problems, r_hats

Array = jax.Array


@shown
@drops_origin
@dataclasses.dataclass(frozen=True)
class TemperedResult:
    """Particles of the posterior and the path that led to them; a pytree.

    Attributes:
        particles: latent site -> values [particles, ...], after the last moves; those of an island stand together. With
            `keep="persistent"` those of all temperatures, the prior's first, by weight (-inf for temperatures that were not
            needed, under jit).
        log_weights: normalised, [particles], nats; equal inside an island, whose share is that of its evidence.
        log_evidence: estimate of log p(data), nats; see `tempered_smc` for when its exponential is unbiased.
        temperatures: exponents of the likelihood, [max_steps], increasing to 1 and filled up with 1.
        increments: log-evidence increments, [max_steps], nats.
        ess: effective sample size before each resampling, the sum over islands, [max_steps].
        acceptance: mean acceptance probability of the moves at each temperature, [max_steps].
        num_steps: number of temperatures used.
        tuning: scale and spread of the kernel, and number of moves, at each temperature.
        failed_at: number of the first temperature at which no particle had positive weight, or one was NaN; -1 if there is none.
        num_moves: moves of each chain at each temperature, [max_steps].
        correlation: the largest one over coordinates of particles before and after the moves (before their last half where
            their number was found), [max_steps]; particles of far modes keep theirs.
        drift: how far the last temperatures' moves carried particles one way, the largest over means and spreads of
            coordinates, in standard errors; 0 where particles have left their places without it.
        lag: the same of all temperatures, on which the evidence depends.
        island_log_evidence: estimates of log p(data) by each island, [islands], nats.
        island_log_apart: log-share of the pairs of particles of an island that descend from different first ones, at the
            last weighing, [islands], nats; None with `keep="persistent"`.
        dimension: number of unconstrained coordinates.
        chain_length: states that are kept of each chain, those of a first particle's block among them; 1 but with `keep="all"`.
        offspring: the law of the offspring counts, that of the `Scheme`.
        improper: latent sites with an improper law. `log_evidence` is then that of densities without a total: it has no meaning
            of its own, and its differences between models have none unless these share the improper sites.
        evidence: "unbiased" if exp(log_evidence) is, else "consistent" in the number of particles.
        made_for: the arguments that it ran with; None where the result comes out of compiled code.
    """

    particles: dict[str, Array]
    log_weights: Array
    log_evidence: Array
    temperatures: Array
    increments: Array
    ess: Array
    acceptance: Array
    num_steps: Array
    tuning: Any
    failed_at: Array
    num_moves: Array
    correlation: Array
    drift: Array
    lag: Array
    island_log_evidence: Array
    island_log_apart: Array | None = None
    dimension: int = dataclasses.field(default=0, metadata={"static": True})
    chain_length: int = dataclasses.field(default=1, metadata={"static": True})
    offspring: str = dataclasses.field(default="unknown", metadata={"static": True})
    improper: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})
    evidence: str = dataclasses.field(default="consistent", metadata={"static": True})
    made_for: MadeFor | None = dataclasses.field(default=None, repr=False)

    def _facts(self) -> dict[str, PyTree]:
        facts = facts_with_error(self, self._remedy)
        if self.improper:
            facts["log_evidence"] = f"{UNNORMALISED} ({', '.join(self.improper)})"
        return {name: value for name, value in facts.items() if name != "improper"}

    @property
    def log_evidence_std_error(self) -> Array | None:
        """Standard error of `log_evidence`, nats; None where one run does not show it.

        By `evidence_variance` where the scheme allows it, else from the spread of the islands: of four numbers, so that it is
        itself known to 40 % only. Neither sees an error that all particles share, as `lag` may. Never with
        `keep="persistent"`: a weight holds the evidence estimates of all temperatures before, so that no pair of families is
        independent of the others; a proof of what they tell is missing.
        """
        return family_error(self)

    @property
    def log_apart(self) -> Array | None:
        """Log-share of the pairs of particles that descend from different first ones, at the last weighing, nats.

        Islands are never related. None with `keep="persistent"`. See `evidence_variance`.
        """
        if self.island_log_apart is None:
            return None
        shares = jax.nn.softmax(self.island_log_evidence)
        return jnp.log1p(-(shares**2 * -jnp.expm1(self.island_log_apart)).sum())

    @property
    def r_hat(self) -> dict[str, np.ndarray]:
        """Site -> R-hat of its elements over the islands, by ranks; 1 with one island. Of a run outside of `jax.jit`."""
        return r_hats(self.particles, len(self.island_log_evidence))

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the run is not to be believed, a sentence each, as `tempered_smc` warns of it; of a run outside of `jax.jit`."""
        if int(self.failed_at) >= 0:
            return (
                f"its particles were lost at temperature {int(self.failed_at)}: all weights were 0, or one was NaN",
            )
        z = np.asarray(self.island_log_evidence, float)
        found = problems(self.r_hat, z, float(self.drift), float(self.lag), self.dimension)
        return (*found, *told_digits(self.island_log_evidence))

    @property
    def _remedy(self) -> str:
        return (
            "particles.replicate"
            if self.log_apart is None
            else "resampling='ssp', or particles.replicate"
        )

    @property
    def _num_first(self) -> int:
        return self.log_weights.shape[-1] // self.chain_length // self.island_log_evidence.shape[-1]

    def _num_resamplings(self, read: Callable[[Array], PyTree]) -> Any:
        return read(self.num_steps) - 1  # that of the last temperature comes after its weighing

    def mean(self, fn: Callable[[PyTree], PyTree]) -> Any:
        """sum_k W_k fn(particle_k); NaN where all particles were lost."""
        values = jax.vmap(fn)(self.particles)
        return voided(weighted_mean(self.log_weights, values), self.failed_at >= 0)

    def sample(self, key: Key | None, num_samples: int) -> dict[str, Array]:
        """Equally weighted particles, drawn by systematic resampling; void where all were lost."""
        kept = self.particles, self.log_weights, self.failed_at
        return equally_weighted(typed_key(key), *kept, num_samples)


def trimmed(result: TemperedResult, num_particles: int) -> TemperedResult:
    """Without the particles of temperatures that were not needed, where their number is known."""
    if not is_concrete(result.num_steps):
        return result
    count = num_particles * (int(result.num_steps) + 1)
    cut = lambda tree: jax.tree.map(lambda x: x[:count], tree)
    return dataclasses.replace(
        result, particles=cut(result.particles), log_weights=cut(result.log_weights)
    )
