"""The verdict on draws: measured numbers, and what of them speaks against taking the draws for the posterior."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ._convergence import e_bfmi, ess, r_hat

MOST_R_HAT = 1.01
APART = 1.1  # R-hat above which chains are at different places, and not only slow
LEAST_ESS = 400  # that R-hat itself and quantiles are stable
_TOLERATED = 1e-4  # of all trajectories that broke off: none of 4,000
_FEW = 0.01  # ... at which smaller steps may be all that is missing
LEAST_E_BFMI = 0.2


class Verdict(NamedTuple):
    """What was seen, and the problems in words; none, if the draws are certified."""

    seen: dict[str, float]
    problems: tuple[str, ...]
    is_short: bool = False  # whether more draws of the same kind may be all that is missing
    is_apart: bool = False  # whether chains are at different places, and not only slow
    is_stiff: bool = False  # whether they hardly move in these coordinates
    is_nearly: bool = False  # whether a few trajectories that broke off are all
    is_funnel: bool = False  # whether scales differ so much from place to place that no coordinates serve all of them

    @property
    def is_certified(self) -> bool:
        return not self.problems

    @property
    def outcome(self) -> str:
        """In words."""
        return "certified" if self.is_certified else "; ".join(self.problems)

    @property
    def rank(self) -> tuple:
        """Smaller is better."""
        return len(self.problems), self.seen.get("r_hat", 0.0), self.seen.get("divergences", 0)


def of_chains(
    numbers: np.ndarray, names: list[str], energy: np.ndarray, is_diverging: np.ndarray
) -> Verdict:
    """The verdict on chains.

    Args:
        numbers: sampled numbers, log-density among them, [chains, draws, d].
        names: of each.
        energy: [chains, draws].
        is_diverging: [chains, draws].
    """
    moved = np.isfinite(numbers).all((0, 1)) & (np.ptp(numbers, axis=(0, 1)) > 0)
    ratios = np.full(len(names), np.inf)
    bulk, tail = np.zeros(len(names)), np.zeros(len(names))
    if moved.any():
        ratios[moved] = np.nan_to_num(r_hat(numbers[:, :, moved]), nan=np.inf)
        bulk[moved], tail[moved] = (np.nan_to_num(x) for x in ess(numbers[:, :, moved]))
    energies = e_bfmi(energy)
    seen = {
        "r_hat": float(ratios.max()),
        "ess_bulk": float(bulk.min()),
        "ess_tail": float(tail.min()),
        "divergences": int(is_diverging.sum()),
        "e_bfmi": energies,
    }
    problems = []
    if not seen["r_hat"] <= MOST_R_HAT:
        where = names[int(ratios.argmax())]
        problems.append(
            f"R-hat is {seen['r_hat']:.3f} at {where}, above {MOST_R_HAT}: the chains do not agree"
        )
    for kind, sizes in (("bulk", bulk), ("tail", tail)):
        if not sizes.min() >= LEAST_ESS:
            where = names[int(sizes.argmin())]
            problems.append(
                f"the {kind} effective sample size is {sizes.min():.0f} at {where}, below {LEAST_ESS}"
            )
    is_apart = not seen["r_hat"] <= APART
    is_short = bool(problems) and not is_apart and not seen["divergences"]
    if seen["divergences"] > _TOLERATED * is_diverging.size:
        problems.append(
            f"{seen['divergences']} of {is_diverging.size} trajectories broke off: part of the posterior is too narrow for the "
            "chains' steps and may be missing"
        )
    is_funnel = not energies >= LEAST_E_BFMI
    if is_funnel:
        problems.append(
            f"E-BFMI is {energies:.2f}, below {LEAST_E_BFMI}: the chains hardly reach the tails"
        )
        is_short = False
    is_few = 0 < seen["divergences"] <= _FEW * is_diverging.size
    is_nearly = is_few and len(problems) == 1
    return Verdict(
        seen, tuple(problems), is_short, is_apart, is_nearly=is_nearly, is_funnel=is_funnel
    )
