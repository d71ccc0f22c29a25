"""What a particle filter returns, and the refusal of one whose weights are NaN."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ....ppl._compat import is_concrete, typed_key
from ....ppl._show import shown
from ..resampling import (
    equally_weighted,
)

Array = jax.Array


@shown
@jax.tree_util.register_dataclass
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
        offspring: the law of the offspring counts, that of the `Scheme`; "conditional" for a run with `retained`.
    """

    particles: Any
    log_weights: Array
    log_evidence: Array
    increments: Array
    ess: Array
    is_resampled: Array
    ancestors: Array | None
    step_log_weights: Array | None
    paths: Any
    failed_at: Array
    offspring: str = dataclasses.field(default="unknown", metadata={"static": True})

    def mean(self, fn: Callable[[Any], Any]) -> Any:
        """sum_k W_k fn(particle_k)."""
        values = jax.vmap(fn)(self.particles)
        return jax.tree.map(lambda x: jnp.tensordot(jnp.exp(self.log_weights), x, 1), values)

    def sample(self, key: Array, num_samples: int) -> Any:
        """Equally weighted particles, drawn by systematic resampling."""
        return equally_weighted(typed_key(key), self.particles, self.log_weights, num_samples)


def check_increments(increments: Array, has_twist: bool, limited: Sequence[str] = ()) -> None:
    """Refuse weights that are NaN: a particle without them would be left out, and the rest be biased.

    `limited`: sites whose proposal has probabilities or ends that are computed, and may lack values of the model's.
    """
    is_bad = jnp.isnan(increments)
    if not is_concrete(is_bad) or not bool(is_bad.any()):
        return
    reasons = [
        "a log-density or log-potential is NaN (return -inf for what is impossible)",
        *["twist is NaN or +inf (return finite logs of psi, e.g. of a density with heavier tails)"] * has_twist,
        *[
            f"the proposal's law of site(s) {sorted(limited)} gives probability 0 to a value, or ends before one, that the "
            "model's law can take (give it a little, also where the data rule it out, or rule it out in the model's own law)"
        ] * bool(limited),
    ]  # fmt: skip
    raise ValueError(
        f"smc: a particle's weight is NaN at weighing {int(jnp.argmax(is_bad))}, and without it evidence and draws would be "
        f"biased. That is so where {', or where '.join(reasons)}."
    )
