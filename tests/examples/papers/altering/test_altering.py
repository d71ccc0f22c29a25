"""Scripts on altered models at smoke size."""

import json

import pytest
from _examples import run_example

pytestmark = pytest.mark.slow  # each trains several policies


def metrics(name, out):
    run_example(f"papers/altering/{name}", "--smoke", "--out", out)
    assert (out / "report.txt").stat().st_size > 100
    return json.loads((out / "metrics.json").read_text())


def test_every_way_to_a_tilt_of_strings(tmp_path):
    """60 steps: all policies are nearer than the model was; best of N and search are where their laws are."""
    found = metrics("strings", tmp_path)
    before = found["the model itself"]["KL"]
    assert all(
        row["KL"] < before / 2 for name, row in found.items() if "leave" in name or "log-" in name
    )
    end = lambda name: found[name]["variance"][1]
    assert end("reinforce, leave one out") < end("reinforce") / 2
    best = [found[f"best of {n}"] for n in (4, 16, 64)]
    assert all(row["KL"] > 0.3 for row in best)
    searched = [found[f"zero-order search, {n} moves"]["reward"] for n in (4, 64, 512)]
    assert searched == sorted(searched) and searched[-1] > found["resampling of 256"]["reward"]


def test_a_class_is_forgotten(tmp_path):
    found = metrics("forget", tmp_path)
    left = {name: row["left of the class"] for name, row in found.items()}
    assert abs(left["the model itself, exact"] - 1) < 0.2
    assert abs(left["particles, exact"] - left["draws without the class"]) < 0.05
    assert abs(found["particles, exact"]["log Z"] + 0.105) < 0.02


def test_rare_events_are_told(tmp_path):
    found = metrics("rare", tmp_path)
    mean, best = found["P(Z > 4.5), mean"], found["P(Z > 4.5), the optimum"]
    assert abs(mean["relative error"]) < 4.5 * mean["its standard error"]
    assert mean["narrow rays"] == 0 < best["narrow rays"]
    assert found["P(Z > 4.5), mean and width"]["width"] < 0.4
