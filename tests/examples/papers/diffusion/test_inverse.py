"""Measured digits at smoke size."""

import json

import numpy as np
import pytest
from _examples import run_example


@pytest.mark.slow  # fits a mixture and compiles three methods
def test_particles_find_the_exact_posteriors(tmp_path):
    run_example("papers/diffusion/inverse", "--smoke", "--out", tmp_path, timeout=600)
    rows = json.loads((tmp_path / "metrics.json").read_text())
    for problem in ("upper half", "blur", "sparse views"):
        exact, tilted = (rows[f"{problem}, {arm}"] for arm in ("exact draws", "reward tilt (FKC)"))
        # 64 particles: the mean of exact draws has an error of 1/8 posterior standard deviation.
        assert np.mean(exact["error of the mean"]) < 0.25 and np.mean(exact["components"]) < 0.1
        assert np.mean(tilted["error of the mean"]) < 0.5
        assert np.mean(np.abs(tilted["log p(y) error"])) < 2
    for name in ("inverse.png", "draws.nc", "report.txt"):
        assert (tmp_path / name).stat().st_size > 100
