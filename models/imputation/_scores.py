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

    Raises:
        ValueError: one end of a band without the other; arrays of other shapes; no hidden cell, or one of which a number is NaN.
    """
    hidden = np.asarray(hidden, bool)
    given = {"truth": truth, "point": point, "crps": crps, "low": low, "high": high}
    _check({name: np.asarray(a) for name, a in given.items() if a is not None}, hidden)
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


def _check(given: dict[str, np.ndarray], hidden: np.ndarray) -> None:
    problems, shape = [], given["truth"].shape
    if ("low" in given) != ("high" in given):
        problems.append(
            f"a band has two ends, and {'high' if 'low' in given else 'low'} is missing"
        )
    shapes = {name: a.shape for name, a in given.items()}
    if any(s != shape for s in shapes.values()) or hidden.shape != shape[: hidden.ndim]:
        problems.append(f"shapes differ, {shapes | {'hidden': hidden.shape}}")
    elif not hidden.any():
        problems.append(f"none of the cells of shape {hidden.shape} is hidden")
    else:
        lost = {name: int(np.isnan(a[hidden]).sum()) for name, a in given.items()}
        problems += [f"{name} is NaN in {n} hidden cells" for name, n in lost.items() if n]
    if problems:
        raise ValueError(
            f"cell_scores: {'; '.join(problems)}. Give one number of each for every cell, and hide cells whose truth is known."
        )
