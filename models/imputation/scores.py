"""Scores of probabilistic predictions of classes and of cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

Probs = Float[np.ndarray, "series classes"]
Labels = Int[np.ndarray, " series"]
_TINY = 1e-12


def accuracy(probs: Probs, labels: Labels) -> float:
    """Share of series whose most probable class is theirs."""
    return float((probs.argmax(-1) == labels).mean())


def nll(probs: Probs, labels: Labels) -> float:
    """Mean -log p(label), nats; probabilities below 1e-12 count as 1e-12."""
    return float(-np.log(np.maximum(probs[np.arange(len(labels)), labels], _TINY)).mean())


def brier(probs: Probs, labels: Labels) -> float:
    """Mean squared distance of the probabilities from the one-hot label, between 0 and 2."""
    return float(((probs - np.eye(probs.shape[1])[labels]) ** 2).sum(-1).mean())


def ece(probs: Probs, labels: Labels, num_bins: int = 15) -> float:
    """Expected calibration error of the most probable class: sum_b n_b / n |accuracy_b - confidence_b| over equal bins.

    Reference: Guo et al. 2017, arXiv:1706.04599.
    """
    confidence, hit = probs.max(-1), probs.argmax(-1) == labels
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gaps = np.bincount(bins, hit - confidence, num_bins)
    return float(np.abs(gaps).sum() / len(labels))


def temperature(probs: Probs, labels: Labels, *, spread: float = 0.5) -> float:
    """The most probable T given that labels have probabilities in proportion to probs^(1 / T), between 1/20 and 20.

    The prior log T ~ N(0, spread^2) keeps a handful of series, all of them right, from a T of zero. To be fitted on held-out
    series.

    Reference: Guo et al. 2017, arXiv:1706.04599, who have no prior.
    """
    from scipy.optimize import minimize_scalar  # on use: a tenth of a second

    size, limit = len(labels), np.log(20.0)

    def loss(log_t: float) -> float:
        fit = nll(tempered(probs, float(np.exp(log_t))), labels)
        return fit + 0.5 * (log_t / spread) ** 2 / size

    return float(np.exp(minimize_scalar(loss, bounds=(-limit, limit), method="bounded").x))  # pyright: ignore


def tempered(probs: Probs, temperature: float) -> Probs:
    """Probabilities in proportion to probs^(1 / temperature)."""
    log_probs = np.log(np.maximum(probs, _TINY)) / temperature
    raw = np.exp(log_probs - log_probs.max(-1, keepdims=True))
    return raw / raw.sum(-1, keepdims=True)


def macro_auroc(probs: Probs, labels: Labels) -> float:
    """Mean over classes of the area under the curve of one class against the rest; ties count half.

    NaN where a class is absent, or all there is.
    """
    return float(np.mean([_auroc(probs[:, c], labels == c) for c in range(probs.shape[1])]))


def macro_auprc(probs: Probs, labels: Labels) -> float:
    """Mean over classes of the average precision of one class against the rest."""
    return float(
        np.mean([_average_precision(probs[:, c], labels == c) for c in range(probs.shape[1])])
    )


def classification(probs: Probs, labels: Labels) -> dict[str, float]:
    """All scores of class probabilities, by name."""
    scores = (accuracy, macro_auroc, macro_auprc, nll, brier, ece)
    return {score.__name__: score(probs, labels) for score in scores}


def cells(
    truth: Any, hidden: Any, point: Any, *, crps: Any = None, low: Any = None, high: Any = None
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


def _auroc(score: np.ndarray, positive: np.ndarray) -> float:
    count, rest = positive.sum(), (~positive).sum()
    if not count or not rest:
        return np.nan
    from scipy.stats import rankdata  # on use: takes a second to load

    ranks = rankdata(score)[positive].sum()
    return float((ranks - count * (count + 1) / 2) / (count * rest))


def _average_precision(score: np.ndarray, positive: np.ndarray) -> float:
    """Sum over thresholds of (recall step) x precision; equal scores share a threshold."""
    if not positive.any():
        return np.nan
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    hits = np.cumsum(positive[order])[ends]
    return float((np.diff(hits, prepend=0) * hits / (ends + 1)).sum() / positive.sum())
