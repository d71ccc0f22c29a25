"""The example of gaps in carbon dioxide at smoke size."""

import json

import pytest
from _examples import run_example


@pytest.mark.slow  # compiles a training step in a Python of its own
def test_gaps(tmp_path):
    text = run_example("papers/imputation/gaps", "--smoke", "--out", str(tmp_path))
    assert (tmp_path / "report.txt").read_text().strip() in text
    rows = json.loads((tmp_path / "metrics.json").read_text())
    # Forty steps: bands that hold something, and errors below those of a constant (2 ppm).
    assert rows["GP-VAE"]["mae"] < 1.5 and 0.3 < rows["GP-VAE"]["coverage"] <= 1
    assert rows["interpolation"]["mae"] < 1.5
    from matplotlib.image import imread

    assert imread(tmp_path / "gaps.png")[..., :3].std() > 0.01
    assert (tmp_path / "imputed.nc").exists()
