"""Pictures show the numbers that they are of."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from lapilli.inference import diagnostics
from lapilli.inference.diagnostics import Calibration


def fit_of(values, averaging=None):
    objective = SimpleNamespace(name="elbo")
    return SimpleNamespace(history={"value": values}, objective=objective, averaging=averaging)


def test_the_line_is_the_mean_of_blocks_and_the_band_their_noise():
    rng = np.random.default_rng(0)
    values = np.linspace(-50, 0, 20_000) + 0.5 * rng.normal(size=20_000)
    axis = diagnostics.plot_fit(fit_of(values)).axes[0]
    line = axis.lines[0].get_ydata()
    np.testing.assert_allclose(line, values.reshape(200, 100).mean(1), rtol=1e-10)
    light = axis.collections[1].get_paths()[0].vertices[:, 1]
    # The trend of 0.25 within a block is no noise: a standard deviation of 0.5, of 100 values.
    widths = [np.ptp(light[np.isclose(light, m, atol=0.9)]) for m in line[100:101]]
    assert 0.7 < widths[0] / (2 * 0.5) < 1.9
    assert axis.get_ylabel() == "elbo (nats)"


def test_seeds_are_lines_and_skipped_steps_are_left_out():
    values = np.random.default_rng(1).normal(size=(400, 3))
    values[7, 1] = np.nan
    figure = diagnostics.plot_fit(fit_of(values))
    assert len(figure.axes[0].lines) == 3
    assert all(np.isfinite(line.get_ydata()).all() for line in figure.axes[0].lines[::2])


def test_the_first_averaged_iterate_is_marked():
    averaging = SimpleNamespace(is_averaged=True, start=np.array(300))
    axis = diagnostics.plot_fit(fit_of(np.random.default_rng(2).normal(size=600), averaging)).axes[
        0
    ]
    assert axis.lines[-1].get_xdata()[0] == 300


def test_weights_are_shown_as_shares_with_a_verdict():
    log_weights = np.random.default_rng(3).normal(size=900)
    found = diagnostics.importance_diagnostics(log_weights)
    axis = diagnostics.plot_weights(found, log_weights).axes[0]
    want = np.sort(np.exp(log_weights) / np.exp(log_weights).sum())[::-1][:90]
    np.testing.assert_allclose(axis.lines[0].get_ydata(), want, rtol=1e-10)
    assert f"k-hat {found.k_hat:.2f}, at most 0.66" in axis.get_title()


def calibration_of(ranks, num_draws=99):
    ranks = np.asarray(ranks)
    return Calibration({"z": ranks}, num_draws, {"z": np.ones(ranks.shape[1:])})


@pytest.mark.parametrize("num_draws", [99, 100, 10])
def test_coverage_is_the_share_of_truths_within_central_intervals(num_draws):
    # All ranks equally often: coverage is the level, at every level.
    ranks = np.repeat(np.arange(num_draws + 1), 3)
    axis = diagnostics.plot_calibration(calibration_of(ranks, num_draws)).axes[1]
    np.testing.assert_allclose(axis.lines[0].get_ydata(), 0.0, atol=1e-12)
    assert axis.lines[0].get_xdata()[0] == 1.0


def test_a_posterior_that_is_too_narrow_falls_below_the_band():
    rng = np.random.default_rng(4)
    ranks = np.where(rng.random(500) < 0.5, 0, 99)
    left, right = diagnostics.plot_calibration(calibration_of(ranks)).axes
    coverage = right.lines[0]
    at = np.argmin(np.abs(coverage.get_xdata() - 0.5))
    np.testing.assert_allclose(coverage.get_ydata()[at], -coverage.get_xdata()[at])
    counts = left.patches[0].get_data().values
    assert counts[0] + counts[-1] == 500 and counts[1:-1].sum() == 0


def test_what_cannot_be_shown_is_refused(monkeypatch):
    found = diagnostics.importance_diagnostics(np.zeros(30))
    with pytest.raises(ValueError, match=r"\(20,\) log-weights and diagnostics of \(30,\)"):
        diagnostics.plot_weights(found, np.zeros(20))
    with pytest.raises(ValueError, match="the fit has 1 steps"):
        diagnostics.plot_fit(fit_of(np.zeros(1)))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'lapilli\[plot\]'"):
        diagnostics.plot_fit(fit_of(np.zeros(9)))
