"""Guided digits at smoke size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "guidance.py"


@pytest.mark.slow  # trains a network and compiles its runs
def test_weights_bring_guidance_to_the_geometric_average(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", SCRIPT, "--smoke", "--out", str(tmp_path)],
        env=os.environ | {"MPLBACKEND": "agg"}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for row in metrics["plane"].values():
        assert row["exact draws"] < row["FKC"] < 0.7 * row["guidance"]
    # 400 steps of training: the digits can be told, and guidance makes them clearer.
    accuracy = {name: row["accuracy"] for name, row in metrics["digits"].items()}
    assert 0.3 < accuracy["1, guidance"] < accuracy["3, guidance"] and accuracy["real"] > 0.95
    for name in ("plane.png", "digits.png", "images.nc", "report.txt"):
        assert (tmp_path / name).stat().st_size > 100
