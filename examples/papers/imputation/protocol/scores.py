"""Scores of class probabilities: those of scikit-learn, the calibration error, and the temperature that calibrates."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from sklearn import metrics

from lapilli import inference

Probs = Float[np.ndarray, "series classes"]
Labels = Int[np.ndarray, " series"]
_TINY = 1e-12  # a probability below counts as this one, so that one sure error is no infinite loss


def classification(probs: Probs, labels: Labels) -> dict[str, float]:
    """All scores by name.

    "accuracy"; "macro_auroc" and "macro_auprc", means over classes of one against the rest; and those of `calibration`.

    Raises:
        ValueError: a class without series, whose curves are not defined.
    """
    one_hot = np.eye(probs.shape[1])[labels]
    if not one_hot.any(0).all():
        absent = np.flatnonzero(~one_hot.any(0)).tolist()
        raise ValueError(
            f"classification: no series has the classes {absent} of {probs.shape[1]}; score series of all classes."
        )
    return {
        "accuracy": float(metrics.accuracy_score(labels, probs.argmax(-1))),
        "macro_auroc": float(metrics.roc_auc_score(one_hot, probs)),
        "macro_auprc": float(metrics.average_precision_score(one_hot, probs)),
        **calibration(probs, labels),
    }


def calibration(probs: Probs, labels: Labels) -> dict[str, float]:
    """What certainty is worth.

    "nll", mean -log p(label) in nats; "brier", mean squared distance from the one-hot label, 0 to 2; "ece".
    """
    classes = np.arange(probs.shape[1])
    return {
        "nll": nll(probs, labels),
        "brier": float(
            metrics.brier_score_loss(labels, probs, labels=classes, scale_by_half=False)
        ),
        "ece": inference.diagnostics.expected_calibration_error(probs, labels),
    }


def nll(probs: Probs, labels: Labels) -> float:
    """Mean -log p(label), nats; probabilities below 1e-12 count as 1e-12."""
    return float(
        metrics.log_loss(labels, np.maximum(probs, _TINY), labels=np.arange(probs.shape[1]))
    )


def temperature(probs: Probs, labels: Labels, *, spread: float = 0.5) -> float:
    """The most probable T given that labels have probabilities in proportion to probs^(1 / T), between 1/20 and 20.

    The prior log T ~ N(0, spread^2) keeps a handful of series, all of them right, from a T of zero. To be fitted on held-out
    series.

    Reference: Guo et al. 2017, arXiv:1706.04599, who have no prior.
    """
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
