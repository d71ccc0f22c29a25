"""How benchmarks take and compare times; and which files `make bench` runs."""

import ast
import re

import numpy as np
import pytest
from _examples import ROOT, load_example

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def timing():
    return load_example("_common", BENCHMARKS)


def test_runs_take_turns_and_the_first_rounds_warm_up(timing):
    ticks, calls, seen = iter(range(100)), [], []
    runs = {name: lambda i, name=name: calls.append((i, name)) or name.upper() for name in "abc"}
    times = timing.interleaved(
        runs, 4, clock=lambda: next(ticks) ** 2, see=lambda *pair: seen.append(pair)
    )
    assert sorted(calls) == [(i, name) for i in range(6) for name in "abc"]
    assert [i for i, _ in calls] == sorted(i for i, _ in calls)  # round by round
    assert {calls[3 * i : 3 * i + 3][0][1] for i in range(6)} == set("abc")  # each comes first
    assert seen == [(name, name.upper()) for _, name in calls]
    for name in "abc":
        own = [4 * k + 1 for k, call in enumerate(calls) if call[1] == name]  # (2k + 1)^2 - (2k)^2
        assert times.first[name] == own[0]
        np.testing.assert_array_equal(times.steady[name], own[2:])


def test_several_clocks_at_once(timing):
    ticks = iter(range(100))
    times = timing.interleaved(
        {"a": lambda i: i}, 3, clock=lambda: np.array([1.0, 10.0]) * next(ticks)
    )
    np.testing.assert_array_equal(times.steady["a"], [[1.0, 10.0]] * 3)


def test_ratios_are_taken_pair_by_pair(timing):
    """A machine that is three times as slow half of the time moves both of a pair."""
    rng = np.random.default_rng(0)
    load = rng.choice([1.0, 3.0], 200)
    ratio = timing.paired(1.5 * load * rng.normal(1, 0.01, 200), load)
    assert ratio.low < ratio.median < ratio.high
    assert ratio == pytest.approx((1.5, 1.5, 1.5), abs=0.01)
    assert re.fullmatch(r"1\.50 \[1\.\d\d, 1\.\d\d\]", f"{ratio:.2f}")


@pytest.mark.slow
def test_the_interval_covers_the_median_as_often_as_it_says(timing):
    """400 samples of 30: 95% of the intervals, with a standard error of 1.1%; discreteness of the median costs up to 2%."""
    rng = np.random.default_rng(1)
    found = [timing.paired(rng.exponential(size=30), np.ones(30)) for _ in range(400)]
    share = np.mean([r.low <= np.log(2) <= r.high for r in found])
    assert 0.88 < share < 0.99


def test_first_calls_see_no_compilation_cache(timing, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "somewhere")
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys; print(sys.argv[1], 'JAX_COMPILATION_CACHE_DIR' in os.environ)"
    )
    assert timing.output_of(str(script), "word") == "word False"


def test_make_bench_runs_the_scripts_and_no_helper():
    (pattern,) = re.findall(r"for script in (\S+);", (ROOT / "Makefile").read_text())
    run = {f.relative_to(ROOT) for f in ROOT.glob(pattern.replace("[!_]", "[a-z]"))}
    with_main = set()
    for file in BENCHMARKS.rglob("*.py"):
        names = {node.name for node in ast.parse(file.read_text()).body if hasattr(node, "name")}
        if "main" in names:
            with_main.add(file.relative_to(ROOT))
    assert run == {f for f in with_main if "_peers" not in f.parts} and len(run) > 10
