"""What `make quick` runs, tests beside what has changed and the fastest first; long tests; what `make mutants` breaks."""

import importlib.util
import inspect
import re
import subprocess
import sys
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


def test_long_tests_are_those_of_the_record_that_take_longer(monkeypatch):
    monkeypatch.setattr(_durations, "recorded", lambda: {"a": 0.6, "b": 0.5})
    assert _durations.long(["a", "b", "new"]) == {"a"}


def test_what_one_run_leaves_out_as_long_is_what_the_other_runs(tmp_path):
    """A test is long by the processor's seconds that were recorded of it."""
    for name, lines in {
        "plugin.py": Path(_durations.__file__).read_text(),
        "durations.txt": "1.2 test_it.py::test_a\n",
        "test_it.py": """
            import time
            def test_a(): ...
            def test_b():
                began = time.process_time()
                while time.process_time() < began + 0.6: pass
            """,
    }.items():
        (tmp_path / name).write_text(inspect.cleandoc(lines))

    def run(*options):
        command = [sys.executable, "-m", "pytest", "-v", "-p", "plugin", "-c", "/dev/null"]
        done = subprocess.run(
            [*command, "--rootdir", tmp_path, *options, "test_it.py"],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return set(re.findall(r"::(\w+) PASSED", done.stdout))

    assert run("--long=without") == {"test_b"} and run("--long=only") == {"test_a"}
    assert run("--record-durations") == {"test_a", "test_b"}
    seconds, name = (tmp_path / "durations.txt").read_text().split()
    assert name == "test_it.py::test_b" and 0.6 <= float(seconds) < 1


@pytest.mark.parametrize("mutant", script("mutants").MUTANTS, ids=lambda m: m.name)
def test_what_a_mutant_breaks_stands_once_in_its_file(mutant):
    text = (ROOT / mutant.file).read_text()
    assert text.count(mutant.old) == 1
    compile(text.replace(mutant.old, mutant.new), mutant.file, "exec")
    assert (ROOT / "tests" / mutant.seen_by).is_file()
