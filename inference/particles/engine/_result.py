"""What a particle filter returns, and the refusal of one whose weights are NaN."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ....ppl._compat import is_concrete, typed_key
from ....ppl._show import shown
from ..._digits import told_digits
from ..._made_for import MadeFor, drops_origin
from ..population import facts_with_error, family_error, voided, weighted_mean, worst_shape
from ..resampling import equally_weighted

Array = jax.Array
_REMEDY = "resampling='ssp', or particles.replicate"


@shown
@drops_origin
@dataclasses.dataclass(frozen=True)
class SMCResult:
    """Weighted particles and the record of their run; a pytree.

    Attributes:
        particles: for a program site -> values [particles, ...] of its latent sites (sites in `ppl.scan`: [particles, time,
            ...], the particle's own path; absent without `history="full"`); for a `FeynmanKac` the last state.
        log_weights: normalised, [particles], nats.
        log_evidence: log of the estimate of the normalising constant, nats; its exponential is unbiased if policy and
            proposals do not adapt to the run (deciding by `ess_below` is allowed).
        increments: log-evidence increments, one per weighing (a straight part of the program, or one step of a scan).
        ess: effective sample size after each weighing.
        is_resampled: whether particles were resampled before each weighing.
        ancestors: [weighings, particles] parents (a particle itself where none was resampled), None with `history="none"`.
        step_log_weights: normalised, after each weighing, [weighings, particles]; None with `history="none"`.
        paths: for a `FeynmanKac` with `history="full"`, the particles' paths [particles, steps + 1, ...].
        failed_at: number of the first weighing after which no particle had positive weight, or one was NaN; -1 if there is none.
        k_hat: Pareto shape of the largest final weights, see `inference.diagnostics.importance_diagnostics`: well above 0.7
            weighted averages and the last increment are not to be trusted. -inf where weights are equal. NaN for fewer than 25
            particles, where fewer than five weights tell (others are zero beside them, or equal), and where increments are so
            large that rounding makes a nat of them.
        num_ancestors: how many of the first particles have descendants of positive weight among the last; all of them under
            gradient="ot", which leaves no ancestors.
        log_apart: log-share of the pairs of last particles that descend from different first ones, nats: see `evidence_variance`.
        offspring: the law of the offspring counts, that of the `Scheme`; "conditional" for a run with `retained`.
        made_for: the arguments that it ran with; None where the result comes out of compiled code.
    """

    particles: PyTree
    log_weights: Array
    log_evidence: Array
    increments: Array
    ess: Array
    is_resampled: Array
    ancestors: Array | None
    step_log_weights: Array | None
    paths: Any
    failed_at: Array
    k_hat: Array
    num_ancestors: Array
    log_apart: Array
    offspring: str = dataclasses.field(default="unknown", metadata={"static": True})
    made_for: MadeFor | None = dataclasses.field(default=None, repr=False)

    def _facts(self) -> dict[str, PyTree]:
        return facts_with_error(self, _REMEDY)

    @property
    def log_evidence_std_error(self) -> Array | None:
        """Standard error of `log_evidence`, nats, by `evidence_variance`; None where one run does not show it.

        Under "negative" offspring counts (resampling="ssp", "stratified", ...) about the most that it can be. Infinite where all
        particles descend from one: `evidence_variance(result, lag=)` may tell more.
        """
        return family_error(self)

    @property
    def _num_first(self) -> int:
        return self.log_weights.shape[-1]

    def _num_resamplings(self, read: Callable[[Array], PyTree]) -> Any:
        return read(self.is_resampled).sum(-1)

    def mean(self, fn: Callable[[PyTree], PyTree]) -> Any:
        """sum_k W_k fn(particle_k); NaN where all particles were lost."""
        values = jax.vmap(fn)(self.particles)
        return voided(weighted_mean(self.log_weights, values), self.failed_at >= 0)

    def sample(self, key: Array, num_samples: int) -> PyTree:
        """Equally weighted particles, drawn by systematic resampling; void where all were lost."""
        kept = self.particles, self.log_weights, self.failed_at
        return equally_weighted(typed_key(key), *kept, num_samples)


def check_increments(increments: Array, has_twist: bool, limited: Sequence[str] = ()) -> None:
    """Refuse weights that are NaN: a particle without them would be left out, and the rest be biased.

    `limited`: sites whose proposal has probabilities or ends that are computed, and may lack values of the model's.
    """
    is_bad = jnp.isnan(increments)
    if not is_concrete(is_bad) or not bool(is_bad.any()):
        return
    reasons = [
        "a log-density or log-potential is NaN (return -inf for what is impossible)",
        "a resampling scheme of your own names particles that there are not (return 0 to num_particles - 1)",
        *["twist is NaN or +inf (return finite logs of psi, e.g. of a density with heavier tails)"] * has_twist,
        *[
            f"the proposal's law of site(s) {sorted(limited)} gives probability 0 to a value, or ends before one, that the "
            "model's law can take (give it a little, also where the data rule it out, or rule it out in the model's own law)"
        ] * bool(limited),
    ]  # fmt: skip
    raise ValueError(
        f"smc: a particle's weight is NaN at weighing {int(jnp.argmax(is_bad))}, and without it evidence and draws would be "
        f"biased. Look for where {', or where '.join(reasons)}."
    )


def warn_of_lost(name: str, failed_at: Array) -> None:
    """Warn where no particle was left, so that particles mean nothing; known values only."""
    if not is_concrete(failed_at) or int(failed_at) < 0:
        return
    warnings.warn(
        f"{name}: after weighing {int(failed_at)} no particle had positive weight, or one was NaN. Particles mean nothing then: "
        "log_evidence is -inf or NaN, mean and draws are NaN. Take more particles, a proposal that looks at the data, or "
        "densities with tails that reach them.",
        UserWarning,
        stacklevel=3,
    )


FEW = 0.01  # share of the first particles
LEAST_PARTICLES = 25  # below, one ancestor is no sign
LEAST_ESS = 5.0  # below, of so many particles, no tail of the weights is known


def warn_of_degeneracy(result: SMCResult, has_memory: bool) -> None:
    """Warn of final weights without a variance and, where the model has a memory, of hardly any ancestors; known values only.

    `has_memory`: see `FeynmanKac`. Lineages meet in every long run, and do no harm where the model forgets.
    """
    if not is_concrete(result) or int(result.failed_at) >= 0:
        return
    size, k_hat, num = len(result.log_weights), float(result.k_hat), int(result.num_ancestors)
    worst = worst_shape(size, int((result.log_weights > -jnp.inf).sum()))
    last_ess = float(jnp.append(size, result.ess)[-1])
    told = told_digits(result.increments)
    if has_memory and size >= LEAST_PARTICLES and num <= max(1, FEW * size):
        told.append(
            f"all particles descend from {num} of {size} at the start and are near copies (num_ancestors)"
        )
    if k_hat > worst and last_ess < 0.9 * size:
        told.append(
            f"the final weights have k-hat {k_hat:.2f}, above {worst:.2f}: the largest ones decide, and larger ones were not met"
        )
    elif math.isnan(k_hat) and not told and size >= LEAST_PARTICLES and last_ess < LEAST_ESS:
        told.append(
            f"the final weights leave {last_ess:.2g} effective particles of {size} (ess), too few to tell how large others can be"
        )
    if told:
        warnings.warn(
            f"smc: {'; and '.join(told)}. Particles and log_evidence are not to be trusted. Take more particles, smaller steps "
            "between targets, or moves and proposals that look ahead; compare runs by inference.particles.replicate.",
            UserWarning,
            stacklevel=3,
        )
