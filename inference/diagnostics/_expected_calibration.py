"""Whether predicted classes are right as often as they are said to be."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from ...ppl._calls import checked_call
from ...ppl._checks import check_probabilities
from ...ppl._compat import ArrayLike
from ...ppl._data import as_data, as_numbers, as_one_array


@checked_call
def expected_calibration_error(
    probs: Float[ArrayLike, "rows classes"], labels: Int[ArrayLike, " rows"], *, num_bins: int = 15
) -> float:
    """Expected calibration error of the most probable class.

        ECE = sum_b n_b / n |accuracy_b - confidence_b|,

    over equal bins b of the confidence, the probability of the most probable class. Of perfectly calibrated predictions it is
    positive, of order sqrt(num_bins / n), since shares in bins are noisy. (What scikit-learn has, `calibration_curve`, does not
    say how many rows a bin has.)

    Args:
        probs: class probabilities.
        labels: true classes, 0 to classes - 1.
        num_bins: bins on [0, 1].

    Raises:
        ValueError: shapes that do not fit, no rows, labels that are no classes, rows that are no probabilities, or no bins.

    Example:
        >>> expected_calibration_error([[0.75, 0.25], [0.75, 0.25]], [0, 0])  # said 0.75, right always
        0.25

    Reference: Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    label = "expected_calibration_error: argument '{}'"
    probs = as_numbers(label.format("probs"), probs)
    labels = as_one_array(label.format("labels"), as_data(labels, label.format("labels")))
    _check(probs, labels, num_bins)
    confidence, hit = probs.max(-1), probs.argmax(-1) == labels
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gaps = np.bincount(bins, hit - confidence, num_bins)
    return float(np.abs(gaps).sum() / len(labels))


def _check(probs: np.ndarray, labels: np.ndarray, num_bins: int) -> None:
    if probs.ndim != 2 or not len(probs) or labels.shape != probs.shape[:1] or num_bins < 1:
        raise ValueError(
            f"expected_calibration_error: probs {probs.shape}, labels {labels.shape}, num_bins {num_bins}; give [rows, classes], "
            "[rows], at least one row and one bin."
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= probs.shape[1]:
        raise ValueError(
            f"expected_calibration_error: labels must be integers in 0 to {probs.shape[1] - 1}; they are of type "
            f"{labels.dtype}, in {labels.min()} to {labels.max()}."
        )
    check_probabilities("expected_calibration_error", probs=probs)
