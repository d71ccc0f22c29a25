"""Measured digits at smoke size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "inverse.py"


@pytest.mark.slow  # fits a mixture and compiles three methods
def test_particles_find_the_exact_posteriors(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", SCRIPT, "--smoke", "--out", str(tmp_path)],
        env=os.environ | {"MPLBACKEND": "agg"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "metrics.json").read_text())
    for problem in ("upper half", "blur", "sparse views"):
        exact, tilted = (rows[f"{problem}, {arm}"] for arm in ("exact draws", "reward tilt (FKC)"))
        # 64 particles: the mean of exact draws has an error of 1/8 posterior standard deviation.
        assert np.mean(exact["error of the mean"]) < 0.25 and np.mean(exact["components"]) < 0.1
        assert np.mean(tilted["error of the mean"]) < 0.5
        assert np.mean(np.abs(tilted["log p(y) error"])) < 2
    for name in ("inverse.png", "posteriors.nc", "report.txt"):
        assert (tmp_path / name).stat().st_size > 100
