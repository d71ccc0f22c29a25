"""Effective robustness: what a classifier keeps under a shift, beyond what its accuracy without shift lets expect."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, PyTree

from ...ppl._calls import checked_call
from ...ppl._compat import ArrayLike
from ...ppl._data import as_numbers
from ._estimate import Estimate
from ._inputs import groups, jackknife_error

_GROUPS = 10
_LEAST = 3  # a line, and one model that can lie beside it


@checked_call
def effective_robustness(
    right: Bool[ArrayLike, " rows"],
    right_shifted: Bool[ArrayLike, " shifted"],
    others: Bool[ArrayLike, "models rows"],
    others_shifted: Bool[ArrayLike, "models shifted"],
) -> Estimate:
    """Accuracy of a classifier on shifted rows, less that of usual classifiers which are as accurate as it without the shift.

        shifted accuracy - sigmoid(line(logit(accuracy))),   line by least squares over the logits of the other models

    Models that are better without a shift are better with it, along a line; a training that makes models better in general moves
    them along it, one that makes them robust lifts them above.

    Args:
        right: whether the classifier is right, on each test row.
        right_shifted: on each row of the shifted test set. If both sets have equally many rows, row i of one is taken to be
            row i of the other, shifted.
        others: the same of at least three models that were trained in the usual way, of different sizes or amounts of data.
        others_shifted: of those, under the shift.

    Returns:
        The difference of accuracies, its jackknife error over 10 groups of test rows. `floor` is the mean of the same number of
        each other model beside the line of the rest, its error the standard deviation over models: by so much a usual model
        lies beside the line, and `z` is measured against it. Details: "accuracy", "shifted", "expected", the slope of the line,
        "slope".

    Raises:
        ValueError: arrays of other shapes, or of what is neither true nor false; fewer than three other models, fewer than 20
            rows, or other models that are all equally accurate.

    Validity: errors are given the classifiers, which are few. A line that is followed beyond the other models' accuracies is
    a guess: give some that are worse and some that are better. Logits are of (hits + 1/2) / (rows + 1).

    Reference: Taori et al. 2020, arXiv:2007.00644, section 2.

    Example:
        >>> import numpy as np
        >>> hits = lambda share: np.arange(100) < 100 * share
        >>> others = [hits(0.6), hits(0.7), hits(0.8)]
        >>> found = effective_robustness(hits(0.7), hits(0.75), others, others)  # others lose nothing
        >>> round(found.value, 2), round(found.details["slope"], 9)
        (0.05, 1.0)
    """
    label = "effective_robustness"
    given = {
        "right": right, "right_shifted": right_shifted, "others": others, "others_shifted": others_shifted,
    }  # fmt: skip
    one, one_shifted, rest, rest_shifted = _hits(label, given)
    plain, shifted = np.vstack([one, rest]), np.vstack([one_shifted, rest_shifted])
    if np.ptp(rest.mean(1)) == 0:
        raise ValueError(
            f"{label}: all {len(rest)} other models have the accuracy {rest[0].mean():.4g}, which gives no line. Add models that "
            "are worse and better, e.g. of other sizes or trained on fewer rows."
        )
    of_plain, of_shifted = groups(plain.shape[1], _GROUPS), groups(shifted.shape[1], _GROUPS)
    above, slope, expected = _above(plain, shifted)
    without = [_above(plain[:, of_plain != g], shifted[:, of_shifted != g])[0] for g in range(_GROUPS)]  # fmt: skip
    # A model left out in turn stands where the judged one stands, and the line is that of the rest.
    left_out = [_above(_first(plain[1:], i), _first(shifted[1:], i))[0] for i in range(len(rest))]
    sizes = (plain.shape[1], shifted.shape[1])
    floor = Estimate(float(np.mean(left_out)), float(np.std(left_out, ddof=1)), name=label, sizes=sizes)  # fmt: skip
    details = {
        "accuracy": float(one.mean()), "shifted": float(one_shifted.mean()), "expected": expected, "slope": slope,
    }  # fmt: skip
    error = float(jackknife_error(np.array(without)))
    return Estimate(above, error, floor=floor, name=label, sizes=sizes, details=details)


def _first(x: np.ndarray, i: int) -> np.ndarray:
    return np.concatenate([x[i : i + 1], np.delete(x, i, 0)])


def _above(plain: np.ndarray, shifted: np.ndarray) -> tuple[float, float, float]:
    """How far the first model lies above the line of the others, its slope, and the accuracy there; both [models, rows]."""
    x, y = _logits(plain), _logits(shifted)
    centred = x[1:] - x[1:].mean()
    square = (centred**2).sum()
    slope = float(centred @ y[1:] / square) if square > 0 else 0.0
    expected = float(1 / (1 + np.exp(-(y[1:].mean() + slope * (x[0] - x[1:].mean())))))
    share = (shifted[0].sum() + 0.5) / (shifted.shape[1] + 1)
    return float(share - expected), slope, expected


def _logits(hits: np.ndarray) -> np.ndarray:
    number = hits.sum(1)
    return np.log(number + 0.5) - np.log(hits.shape[1] - number + 0.5)


def _hits(label: str, given: dict[str, PyTree]) -> list[np.ndarray]:
    found = {name: as_numbers(f"{label}: {name}", x) for name, x in given.items()}
    one, one_shifted, rest, rest_shifted = found.values()
    fits = one.ndim == one_shifted.ndim == 1 and rest.ndim == 2 and len(rest) >= _LEAST
    fits = fits and rest.shape[1:] == one.shape and rest_shifted.shape == (len(rest), *one_shifted.shape)  # fmt: skip
    if not fits or min(len(one), len(one_shifted)) < 2 * _GROUPS:
        shapes = {name: x.shape for name, x in found.items()}
        raise ValueError(
            f"{label}: shapes are {shapes}. Give [rows] of the classifier and [models, rows] of at least {_LEAST} others, on the "
            f"same test rows, {2 * _GROUPS} or more; and the same under the shift."
        )
    for name, x in found.items():
        if not np.isin(x, (0, 1)).all():
            raise ValueError(
                f"{label}: {name} has values that are neither true nor false. Pass whether each row is classified right, e.g. "
                "model.predict(x) == labels."
            )
    return list(found.values())
