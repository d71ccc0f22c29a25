"""What stands behind draws: how they were made, what was looked at, what it cost, whether it suffices."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple

from jaxtyping import PyTree

from ...ppl._show import shown

Method = Literal["exact", "nuts", "importance", "tempered", "fit", "flow"]


class Attempt(NamedTuple):
    """One attempt at a posterior.

    Attributes:
        method: how.
        seconds: what it took, compilation included.
        outcome: "certified", or why it was left, in words.
        seen: what was measured, by name.
        gradients: evaluations of the log-density's gradient by chains, all of them together, warm-up included.
    """

    method: str
    seconds: float
    outcome: str
    seen: Mapping[str, float]
    gradients: int = 0

    def __str__(self) -> str:
        facts = f" ({told(self.seen)})" if self.seen else ""
        return f"{self.method}, {self.seconds:.1f} s: {self.outcome}{facts}"


@shown
@dataclasses.dataclass(frozen=True)
class Certificate:
    """Whether draws can be taken for the posterior, and by what; see `infer`.

    Attributes:
        method: what made the draws: "exact" (independent draws of the posterior itself), "nuts", "importance"
            (draws of a mixture that is fitted to chains in several modes, resampled by their weights), "tempered" (SMC), "fit"
            (draws of a fitted guide, resampled by their weights) or "flow" (of a flow that was trained from it).
        is_certified: whether nothing that was looked at speaks against them.
        problems: what does, in words.
        seen: what was measured, by name: r_hat, ess_bulk, ess_tail, divergences, e_bfmi of chains (the worst over all sampled
            numbers and the log-density); r_hat, spread of the log-evidence and drift of particles; k_hat and ess of weights.
        attempts: all that was tried, the last one's draws being those that were returned unless an earlier one's were better.
        eliminated: sites that were summed or integrated out, exactly, and drawn given the others.
        heavy_tails: numbers of sites whose tails leave their standard deviation open, by name -> Pareto shape: from 1/2 on there
            is none, from 1 on no mean; below, so many draws do not tell it to a tenth. Quantiles are not touched.
    """

    method: Method
    is_certified: bool
    problems: tuple[str, ...]
    seen: Mapping[str, float]
    attempts: tuple[Attempt, ...] = ()
    eliminated: tuple[str, ...] = ()
    heavy_tails: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def _facts(self) -> dict[str, PyTree]:
        return {
            "certified": "yes" if self.is_certified else f"NO: {'; '.join(self.problems)}",
            "method": self.method,
            "seen": told(self.seen),
            "heavy tails": told(self.heavy_tails) or None,
            "eliminated": ", ".join(self.eliminated) or None,
            "attempts": "; ".join(
                f"{a.method} {a.seconds:.1f} s, {a.outcome}" for a in self.attempts
            ),
        }


def told(seen: Mapping[str, float]) -> str:
    """What was measured, in one line."""
    return ", ".join(f"{name} {x:.4g}" for name, x in seen.items())
