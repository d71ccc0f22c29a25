"""Where ObsDropout helps, and bands before and after moves: masks of shifted problems, and the scripts at smoke size."""

import numpy as np
import pytest
from _examples import load_example


@pytest.fixture(scope="module")
def script():
    return load_example("papers/imputation/obs_dropout")


def test_test_masks_have_a_rate_of_their_own(script):
    """Shares within 4.5 standard errors; the training part is that of the problem without a shift."""
    usual = script.protocol.problem("ItalyPowerDemand", "mcar", 0.1, 0)
    shifted = script.protocol.problem("ItalyPowerDemand", "mcar", 0.1, 0, test_rate=0.8)
    for a, b in zip(usual.train, shifted.train, strict=True):
        np.testing.assert_array_equal(a, b)
    for task, rate in ((usual, 0.1), (shifted, 0.8)):
        size = task.hidden.size
        assert abs(task.hidden.mean() - rate) < 4.5 * np.sqrt(rate * (1 - rate) / size)
    more = script.further_hidden(script.Config(num_masks=50), usual.valid, 0.1, 0.8, 0)
    assert more.observed.shape[0] == 50 * len(usual.valid.values)
    first = np.asarray(more.observed)[: len(usual.valid.values)]
    assert not (first & ~np.asarray(usual.valid.observed)).any()
    rate, size = np.asarray(more.observed).mean(), more.observed.size
    # Cells that were hidden before are so in all copies: their share is known.
    expected = np.asarray(usual.valid.observed).mean() * 0.2 / 0.9
    assert abs(rate - expected) < 4.5 * np.sqrt(expected * (1 - expected) / size)


@pytest.mark.slow  # six fits are compiled: some minutes of CPU
def test_obs_dropout_at_smoke_size(script, tmp_path, capsys):
    found = script.main(["--smoke", "--out", str(tmp_path)])
    assert (tmp_path / "report.txt").read_text().strip() in capsys.readouterr().out
    assert len(found) == 24
    for name, values in found.items():
        assert set(values) == set(script.MEASURES) and values["nll"].shape == (2,)
        assert np.all(np.isfinite(values["nll"])), name
    gaps = script.differences(found, "nll")
    assert any(abs(mean) > 1e-4 for mean, _ in gaps.values())


@pytest.mark.slow  # two trainings and three ways to impute are compiled
def test_bands_at_smoke_size(tmp_path, capsys):
    found = load_example("papers/imputation/bands").main(["--smoke", "--out", str(tmp_path)])
    assert (tmp_path / "report.txt").read_text().strip() in capsys.readouterr().out
    moved = found["moved after weighting"]
    assert len(moved["coverage"]) == 2 and all(0 < a < 1 for a in moved["acceptance"])
