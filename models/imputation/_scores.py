"""Scores of imputed cells."""

from __future__ import annotations

import numpy as np


def cell_scores(
    truth: object,
    hidden: object,
    point: object,
    *,
    crps: object = None,
    low: object = None,
    high: object = None,
) -> dict[str, float]:
    """Scores of imputed cells, over the cells that were hidden; in the unit of the values.

    Args:
        truth: true values.
        hidden: boolean, the cells to score.
        point: imputed values: their mean absolute ("mae") and root mean squared ("rmse") errors.
        crps: score of each cell; its mean.
        low: lower end of a band.
        high: upper end: the share of cells inside ("coverage") and the band's mean width ("width").
    """
    hidden = np.asarray(hidden, bool)
    error = np.asarray(point)[hidden] - np.asarray(truth)[hidden]
    found = {"mae": np.abs(error).mean(), "rmse": np.sqrt((error**2).mean())}
    if crps is not None:
        found["crps"] = np.asarray(crps)[hidden].mean()
    if low is not None and high is not None:
        low, high, truth = (np.asarray(a)[hidden] for a in (low, high, truth))
        found |= {
            "coverage": ((low <= truth) & (truth <= high)).mean(),
            "width": (high - low).mean(),
        }
    return {name: float(value) for name, value in found.items()}
