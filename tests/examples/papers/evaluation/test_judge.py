"""Models of digits before their judges, at smoke size."""

import json

import pytest
from _examples import run_example


@pytest.mark.slow  # trains two models
def test_every_metric_tells_models_from_real_images(tmp_path):
    run_example("papers/evaluation/judge", "--smoke", "--out", tmp_path)
    found = json.loads((tmp_path / "metrics.json").read_text())
    for name, row in found["frechet"].items():
        z = row["extrapolated"] / row["error"]
        assert abs(z) < 3 if name == "real" else z > 3
        assert row["plain"] > row["extrapolated"]
    for judged in found["metrics"].values():
        assert all(len(row) == 5 for row in judged.values()) and len(judged) == 9
    assert found["pixels"]["real"]["detector"] < 0.6 < found["pixels"]["enum"]["detector"]
    for name in ("judge.png", "draws.nc", "hidden_layer.nc", "report.txt"):
        assert (tmp_path / name).stat().st_size > 100
