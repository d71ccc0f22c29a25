"""The matrix of versions: one list of cells, which pyproject.toml allows, and none of which passes without having run."""

import json
import os
import subprocess
import sys
import tomllib
from itertools import product
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / ".ci" / "matrix.py"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BOUNDS = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}


def matrix(*arguments, path=None):
    environment = os.environ | ({} if path is None else {"PATH": str(path)})
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
    )


def test_the_cells_are_all_combinations_that_the_project_allows():
    cells = set(json.loads(matrix("--list").stdout))
    minors = "Programming Language :: Python :: 3."
    pythons = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if c.startswith(minors)]
    jaxes = [f"0.{m}" for m in range(30) if BOUNDS["jax"].contains(f"0.{m}.0")]
    ends = "oldest", "newest"
    assert cells == {f"py{p}-jax{j}-{d}" for p, j, d in product(pythons, jaxes, ends)} | {
        f"bare-py{p}-{d}" for p, d in product(pythons, ends)
    }
    assert BOUNDS["jax"] == BOUNDS["jaxlib"]


def test_the_workflow_has_no_list_of_its_own():
    text = (ROOT / ".github" / "workflows" / "matrix.yml").read_text()
    assert "make --silent matrix-cells" in text and "make test-matrix MATRIX=" in text
    assert not any(cell in text for cell in json.loads(matrix("--list").stdout))
    assert "schedule:" in text  # what is newest changes without a push


@pytest.mark.parametrize("name", ["jax", "jaxlib", "numpyro", "arviz"])
def test_a_package_whose_internals_are_used_has_an_upper_bound(name):
    assert any(bound.operator == "<" for bound in BOUNDS[name])


def test_the_locked_versions_lie_within_the_bounds():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    locked = {r.name: str(r.specifier) for r in map(Requirement, lines)}
    for name, bound in BOUNDS.items():
        assert bound.contains(Version(locked[name].removeprefix("=="))), name


UV = """
if args[:2] == ["python", "find"]:  # the last argument is the version
    found = args[-1] in "{known}".split()
    print("python" if found else "")
    sys.exit(not found)
elif args[0] == "venv":
    python = pathlib.Path(args[-1]) / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!{{sys.executable}}\\n" + {python!r})
    python.chmod(0o755)
elif args[0] == "python":
    sys.exit(1)
"""
PYTEST = """
import sys, pathlib
if "pytest" in sys.argv:
    is_bad = "jax0.11" in __file__
    print("1 failed, 2 passed in 0.1s" if is_bad else "3 passed in 0.1s")
    sys.exit(is_bad)
print("jax 1")
"""


@pytest.fixture
def run(tmp_path):
    """Runs the matrix with a stand-in for uv that knows some Pythons; in cells with jax 0.11 a test fails."""

    def run(known, *patterns):
        uv = tmp_path / "uv"
        body = UV.format(known=known, python=PYTEST)
        uv.write_text(f"#!{sys.executable}\nimport sys, pathlib\nargs = sys.argv[1:]\n{body}")
        uv.chmod(0o755)
        folder = tmp_path / "environments"
        return matrix("--uv", uv, "--environments", folder, *patterns, path=tmp_path)

    return run


@pytest.mark.parametrize(
    ("known", "patterns", "status", "counts"),
    [
        ("", ["py3.14-jax0.12-*"], 2, (0, 0, 2)),
        ("3.12 3.13", ["*-jax0.12-newest"], 0, (2, 0, 1)),
        ("3.12", ["py3.12-*"], 1, (2, 2, 0)),
        ("3.12", ["py3.13-jax0.12-newest", "py3.12-jax0.11-oldest"], 1, (0, 1, 1)),
    ],
    ids=["none runs", "some run", "some fail", "one fails and one does not run"],
)
def test_what_became_of_the_cells_is_counted(run, known, patterns, status, counts):
    result = run(known, *patterns)
    assert result.returncode == status, result.stderr
    line = "matrix: {} cells passed, {} cells failed, {} cells not run".format(*counts)
    assert result.stdout.splitlines()[-1] == line
    assert ("uv could fetch none" in result.stdout) == bool(counts[2])
    assert ("1 failed, 2 passed" in result.stdout) == bool(counts[1])


def test_a_cell_that_cannot_be_set_up_has_failed(run, tmp_path):
    (tmp_path / "environments").write_text("in the way")
    result = run("3.12", "py3.12-jax0.12-newest")
    assert result.returncode == 1 and "could not be set up" in result.stdout


def test_a_name_that_matches_no_cell_is_an_error():
    result = matrix("py2.7-*")
    assert result.returncode == 2 and "no cell matches 'py2.7-*'" in result.stderr
