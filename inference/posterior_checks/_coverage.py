"""How often intervals and regions of a posterior hold the truth."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

from ...ppl._calls import checked_call
from ...ppl._types import Key
from ._ranks import RankCheck, central, rank_check, ranks_of
from ._simulations import Simulations, generator

_MOST_DRAWS = 199  # densities are compared in pairs


@checked_call
def coverage(
    simulations: Simulations,
    key: Key,
    *,
    kind: Literal["below", "central", "hpd", "joint"] = "central",
) -> RankCheck:
    """Share of simulations whose regions of each level hold the truth, with a simultaneous band and a p-value.

    Args:
        simulations: of `simulate`.
        key: PRNG key of either kind, for ties.
        kind: "below", everything below a quantile of each coordinate (the ranks of simulation-based calibration); "central",
            its central intervals; "hpd", its region of highest density; "joint", the region of all coordinates together, an
            ellipsoid as the draws have it, which sees a wrong correlation behind right intervals.

    Returns:
        A `RankCheck`, a column for each coordinate (one for "joint"); `curves` is the coverage at `levels`.

    Raises:
        ValueError: an unknown kind.

    Validity: exact for any number of draws, if those of a simulation are independent draws of the posterior: densities and
    ellipsoids are made of the draws and the truth together, in which the truth has no place of its own. For "hpd" and "joint" the
    first 199 draws are used. Right marginal coverage does not prove a posterior right.

    Reference: Saeilynoja, Buerkner and Vehtari 2022, arXiv:2103.10522 (bands); Hermans et al. 2022, arXiv:2110.06581 (expected
    coverage).
    """
    rng = generator(key)
    truth, draws, labels = (
        simulations.truth_matrix,
        simulations.draw_matrix,
        simulations.coordinates,
    )
    if kind in ("below", "central"):
        ranks = ranks_of(rng, truth, draws)
        num_draws = draws.shape[1]
        shown = ranks if kind == "below" else central(ranks, num_draws)
        return rank_check(f"coverage ({kind})", labels, shown, num_draws)
    draws = draws[:, :_MOST_DRAWS]
    pooled = np.concatenate([truth[:, None], draws], 1)  # [S, 1 + L, coordinates]
    far = _rarity(pooled) if kind == "hpd" else _distance(pooled)[..., None]
    ranks = ranks_of(rng, far[:, 0], far[:, 1:])
    labels = labels if kind == "hpd" else ("all coordinates",)
    return rank_check(f"coverage ({kind})", labels, ranks, draws.shape[1])


def _rarity(pooled: Float[np.ndarray, "simulations points coordinates"]) -> np.ndarray:
    """Minus a kernel density of the points, one coordinate at a time; large where the density is low."""
    num_points = pooled.shape[1]
    width = 1.06 * pooled.std(1) * num_points**-0.2
    out = np.empty_like(pooled)
    for rows, widths, kept in zip(pooled, np.where(width > 0, width, 1.0), out, strict=True):
        for j, column in enumerate(rows.T):
            gaps = (column[:, None] - column) / widths[j]
            kept[:, j] = -np.exp(-0.5 * gaps**2).sum(1)
    return out


def _distance(pooled: Float[np.ndarray, "simulations points coordinates"]) -> np.ndarray:
    """Squared Mahalanobis distance from the mean of the points, in their own covariance."""
    centred = pooled - pooled.mean(1, keepdims=True)
    covariance = np.einsum("sld,sle->sde", centred, centred) / pooled.shape[1]
    solved = np.linalg.pinv(covariance, rcond=1e-10, hermitian=True)
    return np.einsum("sld,sde,sle->sl", centred, solved, centred)
