"""The expected calibration error, against sums by hand and in the limit of many rows."""

import numpy as np
import pytest

from lapilli.inference.diagnostics import expected_calibration_error


def test_by_hand():
    sure = np.eye(4)[[0, 1, 3]]
    assert expected_calibration_error(sure, [0, 1, 3]) == 0.0
    # Four predictions at confidence 0.75, three right; two at 0.55, none right: 4/6 * 0 + 2/6 * 0.55.
    probs = np.array([[0.75, 0.25]] * 4 + [[0.55, 0.45]] * 2)
    assert expected_calibration_error(probs, [0, 0, 0, 1, 1, 1]) == pytest.approx(0.55 / 3)


def test_calibrated_and_sure_predictions_of_many_rows():
    """20,000 labels of probability 0.7: a standard error of 0.0032."""
    rng = np.random.default_rng(3)
    probs = np.tile([0.7, 0.3], (20_000, 1))
    labels = (rng.uniform(size=20_000) > 0.7).astype(int)
    assert expected_calibration_error(probs, labels) < 0.015
    assert expected_calibration_error(probs, 0 * labels) == pytest.approx(0.3)


def test_what_is_no_prediction_is_refused():
    good, labels = np.full((3, 2), 0.5), np.array([0, 1, 0])
    for probs, y, options in (
        (good[:2], labels, {}), (good[0], labels, {}), (good[:0], labels[:0], {}), (good, labels, {"num_bins": 0})
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"give \[rows, classes\], \[rows\], at least one row"):
            expected_calibration_error(probs, y, **options)
    for y in (labels + 1, labels - 1, labels.astype(float)):
        with pytest.raises(ValueError, match="labels must be integers in 0 to 1; they are of type"):
            expected_calibration_error(good, y)
    for probs in (2 * good, good - [0.0, 0.6], good * np.nan):
        with pytest.raises(
            ValueError, match=r"probs must be probabilities of outcomes, .* give softmax"
        ):
            expected_calibration_error(probs, labels)
