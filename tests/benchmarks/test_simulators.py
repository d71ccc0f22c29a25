"""Tasks of simulation-based inference against one another, and what counts as measured already."""

import argparse
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _examples import ROOT

sys.path.append(str(ROOT / "benchmarks"))
sys.path.append(str(ROOT / "benchmarks" / "inference"))

from _sbibm import runs, tasks


def test_spikes_and_their_sums_have_one_posterior():
    """Densities differ by a number of the data alone, in which parameters are not."""
    spikes = np.random.default_rng(0).integers(0, 2, 100)
    sums = (tasks.DESIGN.T @ spikes).astype(np.float32)
    thetas = jax.random.normal(jax.random.key(0), (20, 10))
    one = jax.vmap(lambda t: tasks.bernoulli_glm_raw.log_density({"theta": t}, spikes))(thetas)
    exact = tasks.bernoulli_glm_given_sums
    other = jax.vmap(lambda t: exact.log_density({"theta": t}, sums))(thetas)
    assert np.std(one) > 10 and np.std(one - other) < 1e-3


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Scores of two observations by a method that counts how often it learns, and the file of what is kept."""
    count = []

    def counted(task, table, key, options):
        count.append(task)
        return (lambda key, x, size: jnp.zeros((size, 2))), lambda x: None

    monkeypatch.setitem(runs.METHODS, "tsnpe", counted)
    monkeypatch.setattr(runs, "c2st", lambda reference, draws: 0.5)
    given = {"seed": 0, "draws": 50, "rounds": 2, "data": None}

    def run(**changed):
        options = argparse.Namespace(**given | {"kept": tmp_path / "kept.jsonl"} | changed)
        before = len(count)
        rows = list(runs.measured("gaussian_mixture", "tsnpe", 240, 2, options))
        assert [row.score for row in rows] == [0.5, 0.5]
        return len(count) - before

    return run


def test_what_was_measured_is_kept_for_the_same_run_alone(run, monkeypatch, tmp_path):
    assert run() == 1 and run() == 0
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 2
    for changed in ({"rounds": 4}, {"seed": 1}, {"draws": 60}):
        assert run(**changed) == 1 and run() == 0, changed
    reference = runs.REFERENCES["gaussian_mixture"]
    monkeypatch.setitem(runs.REFERENCES, "gaussian_mixture", lambda *args: reference(*args) + 1e-3)
    assert run() == 1 and run() == 0
    monkeypatch.setattr(runs, "PACKAGES", ("jax",))
    assert run() == 1 and run() == 0
    rows = [json.loads(row) for row in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert len({tuple(row["of"]) for row in rows}) == len(rows) == 12


def test_what_a_changed_function_has_measured_is_measured_again(run, monkeypatch):
    """Another function beside those that had run changes nothing."""
    monkeypatch.setattr(runs, "ran_so_far", lambda paths: {"inference/simulators": "0" * 8})
    assert run() == 1 and run() == 1
    monkeypatch.setattr(runs, "is_older", lambda digests, path: "1" in digests)
    assert run() == 0
