"""What a tempering run tells of its own errors, in words.

Islands are independent runs of one tuning: their means and evidences differ by the error that a run has. R-hat compares the
variance between islands with that inside them, of ranks (means) and of distances from the median (spreads):

    R = sqrt(1 + B / W),   B the variance of the islands' means, W the variance inside them.

Reference: Vehtari, Gelman, Simpson, Carpenter and Buerkner 2021, arXiv:1903.08008 (ranks and folded ranks).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Array
from scipy.special import ndtri

from ._mixing import limit_of_z

MAX_R_HAT = 1.05  # islands' means then differ by a third of a standard deviation


def r_hats(particles: Mapping[str, Array], num_islands: int) -> dict[str, np.ndarray]:
    """R-hat of each element of each site: the larger one of ranks and folded ranks; NaN where a value is not finite."""
    return {name: _of_site(np.asarray(values), num_islands) for name, values in particles.items()}


def problems(
    r_hat: Mapping[str, np.ndarray],
    island_log_evidence: np.ndarray,
    drift: float,
    lag: float,
    dimension: int,
) -> list[str]:
    """Why the run is not to be believed, a sentence each."""
    found = []
    worst = {name: np.max(x) for name, x in r_hat.items() if x.size}
    name = max(worst, key=lambda n: np.inf if np.isnan(worst[n]) else worst[n], default="")
    if name and not worst[name] <= MAX_R_HAT:
        found.append(
            f"its {len(island_log_evidence)} islands disagree on site '{name}' (R-hat {worst[name]:.3g}, above {MAX_R_HAT})"
        )
    largest = island_log_evidence.max()
    shares = np.exp(island_log_evidence - largest)
    num = len(shares)
    if not shares.sum() ** 2 / (shares**2).sum() > num / 2:
        told = ", ".join(f"{x:.4g}" for x in island_log_evidence)
        found.append(f"the log-evidences of its {num} islands disagree ({told})")
    limit, most = limit_of_z(2 * dimension), np.maximum(drift, lag)
    if not most <= limit:
        which = "all temperatures" if drift <= limit else "the last temperatures"
        what = "log_evidence comes" if drift <= limit else "particles and log_evidence come"
        found.append(
            f"at {which} moves carried the particles one way, by {most:.3g} standard errors (noise: {limit:.2g}), so that its "
            f"{what} late"
        )
    return found


def _of_site(values: np.ndarray, num_islands: int) -> np.ndarray:
    shape = values.shape[1:]
    flat = values.reshape(len(values), -1).astype(float)
    folded = np.abs(flat - np.median(flat, 0))
    worst = np.maximum(_of_ranks(flat, num_islands), _of_ranks(folded, num_islands))
    return np.where(np.isfinite(flat).all(0), worst, np.nan).reshape(shape)


def _of_ranks(x: np.ndarray, num_islands: int) -> np.ndarray:
    scores = ndtri((np.apply_along_axis(_ranks, 0, x) - 0.375) / (len(x) + 0.25))
    if num_islands == 1:
        return np.ones(x.shape[1])
    by_island = scores.reshape(num_islands, -1, x.shape[1])
    between = by_island.mean(1).var(0, ddof=1)
    within = by_island.var(1, ddof=1).mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(between > 0, between / within, 0.0)
    return np.sqrt(1 + ratio)


def _ranks(x: np.ndarray) -> np.ndarray:
    """From 1 on; equal values share the mean of theirs."""
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
