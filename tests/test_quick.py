"""What `make quick` runs, tests beside what has changed and the fastest first, and what `make mutants` breaks."""

import importlib.util
from pathlib import Path

import _durations
import pytest

ROOT = Path(__file__).resolve().parents[1]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name, where",
    [
        ("ppl/checks/_jumps.py", "tests/ppl/checks"),
        ("ppl/_compat.py", "tests/ppl"),
        ("inference/fitting/_fit.py", "tests/inference/fitting"),
        ("tests/ppl/test_wings.py", "tests/ppl/test_wings.py"),
        ("tests/_helpers/_stats.py", None),
        ("models/gflownet/environments/_sets.py", "tests/models/gflownet"),
        ("benchmarks/models/vae.py", "tests/benchmarks"),
        ("README.md", None),
    ],
)
def test_files_are_tested_by_the_folder_that_mirrors_theirs(name, where):
    assert script("quick").tests_of(name) == where


def test_the_fastest_tests_are_kept_while_they_fit(monkeypatch):
    monkeypatch.setattr(_durations, "recorded", lambda: {"a": 5.0, "b": 1.0, "c": 2.0})
    assert _durations.within(["a", "b", "c", "new"], 3.5) == ["new", "b", "c"]
    assert _durations.within(["a", "b"], 0.5) == []


def test_every_folder_of_tests_has_a_budget():
    names = [
        str(p.relative_to(ROOT))
        for p in ROOT.glob("tests/**/test_*.py")
        if "__pycache__" not in str(p)
    ]
    assert {_durations.folder_of(f"{n}::test") for n in names} == set(_durations.BUDGETS)
    assert sum(_durations.BUDGETS.values()) <= 2 * 8 * 60  # two cores, eight minutes


@pytest.mark.parametrize("mutant", script("mutants").MUTANTS, ids=lambda m: m.name)
def test_what_a_mutant_breaks_stands_once_in_its_file(mutant):
    text = (ROOT / mutant.file).read_text()
    assert text.count(mutant.old) == 1
    compile(text.replace(mutant.old, mutant.new), mutant.file, "exec")
    assert (ROOT / "tests" / mutant.seen_by).is_file()
