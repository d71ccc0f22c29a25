"""Effective robustness: lines that are known, errors over test rows, and the scatter of other models."""

import numpy as np
import pytest

from lapilli.inference import evaluation
from lapilli.inference.evaluation._inputs import generator

ROWS = 1_000
logit = lambda p: np.log(p) - np.log1p(-p)
sigmoid = lambda x: 1 / (1 + np.exp(-x))


def hits(share, rows=ROWS):
    """The first ones right."""
    return np.arange(rows) < round(float(share) * rows)


def test_models_on_a_line_of_logits_lie_on_it():
    """Shares are rounded to 1 / 1,000, and logits smoothed by half a hit."""
    shares = np.array([0.55, 0.65, 0.75, 0.85, 0.95])
    shifted = sigmoid(0.8 * logit(shares) - 1.0)
    others = [hits(p) for p in shares], [hits(p) for p in shifted]
    at = 0.8
    for above in (0.0, 0.05):
        share = sigmoid(0.8 * logit(at) - 1.0) + above
        found = evaluation.effective_robustness(hits(at), hits(share), *others)
        assert found.value == pytest.approx(above, abs=2e-3)
        assert found.details["slope"] == pytest.approx(0.8, abs=0.01)
        assert found.details["expected"] == pytest.approx(share - above, abs=2e-3)
        assert abs(found.floor.value) < 2e-3 and found.floor.standard_error < 3e-3


def test_a_straight_line_of_accuracies_is_another_one():
    """The check above would see it: between 0.55 and 0.99 the straight line misses by more than 2%."""
    shares = np.array([0.55, 0.65, 0.75, 0.85, 0.99])
    shifted = sigmoid(0.8 * logit(shares) - 1.0)
    slope, start = np.polyfit(shares, shifted, 1)
    assert abs(sigmoid(0.8 * logit(0.8) - 1.0) - start - 0.8 * slope) > 0.02


@pytest.mark.fast("seed0-same rows", "seed0-other rows")
@pytest.mark.parametrize("is_paired", [True, False], ids=["same rows", "other rows"])
def test_errors_are_those_of_test_rows(seed, is_paired):
    """Standard deviation over 300 test sets against the root mean square error, 4% of noise and a jackknife of ten groups.

    Models share how hard a row is, and so do a row and its shifted copy if they are the same.
    """
    draws, found = generator(seed), []
    levels, drop = np.linspace(0.0, 1.5, 5), 0.6
    for _ in range(300):
        hard = draws.normal(size=400)
        again = hard if is_paired else draws.normal(size=300)
        noise = lambda size: draws.logistic(size=size)
        plain = [lev + 1 - hard + noise(400) > 0 for lev in (0.7, *levels)]
        shifted = [lev + 1 - drop - again + noise(len(again)) > 0 for lev in (0.9, *levels)]
        e = evaluation.effective_robustness(plain[0], shifted[0], plain[1:], shifted[1:])
        found.append((e.value, e.standard_error))
    value, error = np.array(found).T
    assert 0.85 < (error**2).mean() ** 0.5 / value.std() < 1.2


def test_usual_models_are_the_floor():
    """Those that scatter around a line: by about as much as their floor says, |z| of one of them is ordinary."""
    draws = np.random.default_rng(0)
    shares = np.linspace(0.6, 0.95, 12)
    shifted = sigmoid(logit(shares) - 0.5 + 0.2 * draws.normal(size=12))
    others = np.array([hits(p) for p in shares]), np.array([hits(p) for p in shifted])
    usual = evaluation.effective_robustness(others[0][6], others[1][6], *others)
    assert abs(usual.floor.value) < usual.floor.standard_error
    slope = sigmoid(logit(0.8) - 0.5) * sigmoid(0.5 - logit(0.8))  # of the sigmoid, in the middle
    assert usual.floor.standard_error == pytest.approx(0.2 * slope, rel=0.5)
    assert abs(usual.z) < 3
    assert evaluation.effective_robustness(hits(0.8), hits(0.95), *others).z > 3
