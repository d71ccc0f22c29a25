"""Whether a table's numbers go together in straight lines, and under which model hidden cells are likelier.

Looking costs little, and comparing a training of networks. Only where forests find something in what the joint model leaves
open of a column, some observed cells are hidden, both models are fitted without them, and their log-densities are compared.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import logsumexp

from ._sweep import Levels, TableParameters

LEAST_ROWS = 100  # of a table in which models are compared
# Share of what is left open that a forest must explain: a twentieth of a nat for each cell.
CURVED = 0.1
_ERRORS = 4.0  # standard errors of that share
_MOST_ROWS = 2000  # of a forest
_HIDDEN = 0.2, 1000  # rows of which a cell is hidden: their share, and at most


class HiddenCells(NamedTuple):
    """Observed cells of numbers that are hidden, at most one of a row.

    Attributes:
        rows: [m].
        columns: among the numbers, [m].
    """

    rows: np.ndarray
    columns: np.ndarray

    def without(self, x: np.ndarray) -> np.ndarray:
        """The numbers with NaN in these cells."""
        found = x.copy()
        found[self.rows, self.columns] = np.nan
        return found


def hide(rng: np.random.Generator, x: Float[np.ndarray, "rows d"]) -> HiddenCells:
    """Cells of columns that have holes, in rows in which something else is seen."""
    seen = ~np.isnan(x)
    eligible = seen & ~seen.all(0) & (seen.sum(1, keepdims=True) > 1)
    rows = rng.permutation(np.flatnonzero(eligible.any(1)))
    share, most = _HIDDEN
    rows = np.sort(rows[: min(int(share * len(x)), most)])
    return HiddenCells(rows, np.array([rng.choice(np.flatnonzero(r)) for r in eligible[rows]], int))


def with_dummies(x: np.ndarray, c: np.ndarray, levels: Levels) -> Float[np.ndarray, "rows d+q"]:
    """Numbers and dummies of the categories, NaN where one is missing."""
    parts = [x]
    for k, count in enumerate(levels):
        one = (c[:, k, None] == np.arange(1, count)).astype(float)
        parts.append(np.where(c[:, k, None] < 0, np.nan, one))
    return np.concatenate(parts, 1)


class CurvesFound(NamedTuple):
    """What forests find in what the joint model leaves open of columns with holes.

    Attributes:
        share: of it, or of its size, that they predict from the other columns, [d]; 0 if that may be chance.
        predicted: numbers as the joint model and a forest together predict them, each by trees that have not seen the row,
            [rows, d]; NaN where a cell is missing.
    """

    share: np.ndarray
    predicted: np.ndarray


def look_for_curves(
    full: Float[np.ndarray, "rows d+q"],
    left: Float[np.ndarray, "rows d"],
    seen: Bool[np.ndarray, "rows d"],
    seed: int,
) -> CurvesFound:
    """Forests of what is left open of each column that has holes.

    Args:
        full: the completed table, numbers and dummies.
        left: its numbers less their expectations given the rest of the row.
        seen: observed cells of numbers.
        seed: of the forests.
    """
    from sklearn.ensemble import RandomForestRegressor

    share, predicted = np.zeros(left.shape[1]), np.full(left.shape, np.nan)
    for j in np.flatnonzero(~seen.all(0)):
        rows = np.random.default_rng(seed).permutation(np.flatnonzero(seen[:, j]))[:_MOST_ROWS]
        r = left[rows, j]
        targets = np.stack([r, np.abs(r)], 1)
        forest = RandomForestRegressor(
            100, min_samples_leaf=5, max_features=0.5, oob_score=True, random_state=seed
        ).fit(np.delete(full[rows], j, 1), targets)
        found = forest.oob_prediction_
        spread = targets.var(0)
        gains = ((targets - targets.mean(0)) ** 2 - (targets - found) ** 2) / spread
        sure = gains.mean(0) > _ERRORS * gains.std(0) / np.sqrt(len(rows))
        share[j] = np.where(sure, gains.mean(0), 0.0).max()
        predicted[rows, j] = full[rows, j] - r + found[:, 0]
    return CurvesFound(share, predicted)


def kept(draws: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> float:
    """How much of the relations between columns draws of hidden cells have: their slope on a prediction over the truth's.

    Args:
        draws: [S, m].
        truth: [m].
        predicted: of the cells from the rest of their rows, NaN where there is none, [m].
    """
    known = ~np.isnan(predicted)
    centred = predicted[known] - predicted[known].mean()
    return float((draws[:, known] * centred).sum(1).mean() / (truth[known] * centred).sum())


def joint_scores(
    params: TableParameters, c: np.ndarray, x: np.ndarray, hidden: HiddenCells, levels: Levels
) -> Float[np.ndarray, " m"]:
    """Log-densities of hidden cells given the rest of their rows, averaged over draws of the parameters, nats in standard units.

    Args:
        params: draws [S, ...] of a fit without these cells.
        c: levels of their rows under each draw, [S, m, k].
        x: all numbers, [rows, d].
        hidden: the cells.
        levels: numbers of levels.
    """
    own, m = x[hidden.rows], np.arange(len(hidden.rows))
    seen = ~np.isnan(hidden.without(x)[hidden.rows])
    truth, j, found = own[m, hidden.columns], hidden.columns, []
    for B, L, levels_of in zip(
        np.asarray(params.coefficients, float), np.asarray(params.tril, float), c, strict=True
    ):
        ones = np.ones((len(m), 1))
        mean = np.concatenate([ones, with_dummies(ones[:, :0], levels_of, levels)], 1) @ B
        covariance = L @ L.T
        # Cells that are not seen stand aside with a variance of one.
        blocks = covariance * seen[:, :, None] * seen[:, None] + np.eye(len(L)) * ~seen[:, None]
        with_cell = covariance[j] * seen
        gain = np.linalg.solve(blocks, with_cell[..., None])[..., 0]
        center = mean[m, j] + (gain * np.where(seen, own - mean, 0.0)).sum(1)
        variance = covariance[j, j] - (gain * with_cell).sum(1)
        found.append(-0.5 * ((truth - center) ** 2 / variance + np.log(2 * np.pi * variance)))
    return logsumexp(found, axis=0) - np.log(len(found))
