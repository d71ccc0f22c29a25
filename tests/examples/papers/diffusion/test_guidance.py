"""Guided digits at smoke size."""

import json

import pytest
from _examples import run_example


@pytest.mark.slow  # trains a network and compiles its runs
def test_weights_bring_guidance_to_the_geometric_average(tmp_path):
    run_example("papers/diffusion/guidance", "--smoke", "--out", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for row in metrics["plane"].values():
        assert row["exact draws"] < row["FKC"] < 0.7 * row["guidance"]
    # 400 steps of training: the digits can be told, and guidance makes them clearer.
    accuracy = {name: row["accuracy"] for name, row in metrics["digits"].items()}
    assert 0.3 < accuracy["1, guidance"] < accuracy["3, guidance"] and accuracy["real"] > 0.95
    for name in ("plane.png", "digits.png", "draws.nc", "report.txt"):
        assert (tmp_path / name).stat().st_size > 100
