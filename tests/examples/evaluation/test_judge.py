"""Models of digits before their judges, at smoke size."""

import json

import pytest
from _examples import run_example


@pytest.mark.slow  # trains two models
def test_every_metric_tells_models_from_real_images(tmp_path):
    run_example("evaluation/judge", "--smoke", "--out", tmp_path)
    found = json.loads((tmp_path / "metrics.json").read_text())
    for name, row in found["frechet"].items():
        # Real images lie within the errors of 0 where the plain distance does not.
        z = row["extrapolated"] / row["error"]
        assert (abs(z) < 3 < row["plain"] / row["error"] or name != "real") and row["plain"] > row[
            "extrapolated"
        ]
        assert name == "real" or z > 3
    for judged in found["metrics"].values():
        assert all(len(row) == 5 for row in judged.values()) and len(judged) == 9
    assert found["pixels"]["real"]["detector"] < 0.6 < found["pixels"]["enum"]["detector"]
    for name in ("samples.png", "frechet.png", "draws.nc", "hidden_layer.nc", "report.txt"):
        assert (tmp_path / name).stat().st_size > 100
