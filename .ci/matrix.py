"""Run some tests in every supported combination of Python, jax and dependencies; the list of combinations is here only.

    python3 .ci/matrix.py --list                               the cells, as JSON
    python3 .ci/matrix.py --uv uv 'py3.13-*' -- tests/ppl      those that match a pattern, with pytest's arguments

A bare cell has what a plain install brings, the hard dependencies and nothing else, and runs `.ci/bare.py` in place of tests; its
environment is made anew each time, since the newest versions are those of the day.

A cell that cannot be set up, because its Python is not to be had, is reported and counted as not run. The status is 1 if a cell
failed, 2 if none ran: a job for one cell never passes for want of a Python.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.12", "3.13", "3.14")
JAX = {"0.11": ">=0.11,<0.12", "0.12": ">=0.12,<0.13"}
# Which of the versions that pyproject.toml allows: its lower bounds, with what these need at its newest; or all at their newest.
RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}
CELLS = {f"py{p}-jax{j}-{d}": (p, j, d) for p in PYTHONS for j in JAX for d in RESOLUTIONS}
BARE = {f"bare-py{p}-{d}": (p, None, d) for p in PYTHONS for d in RESOLUTIONS}
CELLS |= BARE
SHOWN = ("jax", "jaxlib", "numpyro", "equinox", "optax", "arviz")


class NotRun(Exception):
    """A cell that cannot be set up; the message says why."""


def output(*command: str | Path) -> str | None:
    """What a command prints, or None if it fails or is not there."""
    try:
        result = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def interpreter(uv: str, version: str) -> str:
    """A Python of this minor version: found by uv, kept by pyenv, or fetched by uv."""
    find = (uv, "python", "find", "--no-project", "--system", "--no-python-downloads", version)
    if found := output(*find):
        return found
    kept = sorted(
        Path(output("pyenv", "root") or "/nowhere").glob(f"versions/{version}.*/bin/python")
    )
    if kept:
        return str(kept[-1])
    fetched = output(uv, "python", "install", version) is not None and output(*find[:4], version)
    if fetched:
        return fetched
    raise NotRun(f"no Python {version} here, and uv could fetch none")


def environment(uv: str, cell: str, environments: Path) -> Path:
    """The cell's environment, made if it is missing or pyproject.toml has changed."""
    version, jax, dependencies = CELLS[cell]
    folder = environments / cell
    project = (ROOT / "pyproject.toml").read_bytes()
    mark, stamp = hashlib.sha256(project + repr(CELLS[cell]).encode()).hexdigest(), folder / "made"
    if stamp.exists() and stamp.read_text() == mark:
        return folder
    python = interpreter(uv, version)
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", python, folder], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", folder / "bin" / "python"]
    if cell in BARE:
        with tempfile.TemporaryDirectory() as copy:  # building leaves files behind
            hidden = shutil.ignore_patterns(".*", "__pycache__", "build", "out", "*.egg-info")
            source = shutil.copytree(ROOT, Path(copy) / "source", ignore=hidden)
            subprocess.run(
                [*install, "--resolution", RESOLUTIONS[dependencies], source], check=True
            )
        return folder
    bounds = [f"{name}{JAX[jax]}" for name in ("jax", "jaxlib")]
    chosen = ["--resolution", RESOLUTIONS[dependencies], "--extra", "test"]
    subprocess.run([*install, *chosen, "-r", "pyproject.toml", *bounds], check=True, cwd=ROOT)
    here = ["--no-deps", "--no-build-isolation", "-e", "."]
    subprocess.run([*install, *here], check=True, cwd=ROOT)
    stamp.write_text(mark)
    return folder


def run(uv: str, cell: str, environments: Path, tests: list[str]) -> tuple[str, str]:
    """Test one cell; returns what became of it ("passed", "failed", "not run") and a line about it."""
    try:
        python = environment(uv, cell, environments) / "bin" / "python"
    except NotRun as reason:
        return "not run", str(reason)
    except subprocess.CalledProcessError as error:
        return "failed", f"could not be set up: {error}"
    show = f"from importlib.metadata import version as v; print(*(f'{{n}} {{v(n)}}' for n in {SHOWN}), sep=', ')"
    versions = output(python, "-c", show)
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    if cell in BARE:  # -I: the checkout is not on the path
        command = [str(python), "-I", str(ROOT / ".ci" / "bare.py")]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": flags}, stdout=subprocess.PIPE, text=True
    )
    last = ""
    for line in process.stdout or ():
        print(line, end="", flush=True)
        last = line if re.search(r" in [0-9.]+s", line) else last
    outcome = "passed" if process.wait() == 0 else "failed"
    said = last.strip(" =\n") or f"status {process.returncode}"
    return outcome, f"{said} ({versions})"


def main() -> int:
    """Run the cells that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the cells as JSON and stop")
    parser.add_argument("--uv", default="uv", help="the uv to use")
    parser.add_argument("--environments", type=Path, default=ROOT / ".venv-matrix")
    parser.add_argument("patterns", nargs="*", help="cells to run, all of them if none is named")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, tests = parser.parse_args(sys.argv[1:split]), sys.argv[split + 1 :]
    if options.list:
        print(json.dumps(list(CELLS)))
        return 0
    patterns = options.patterns or ["*"]
    for pattern in patterns:
        if not fnmatch.filter(CELLS, pattern):
            parser.error(f"no cell matches '{pattern}'; --list shows them")
    cells = [c for c in CELLS if any(fnmatch.fnmatch(c, p) for p in patterns)]
    results = {}
    for cell in cells:
        print(f"== {cell}", flush=True)
        results[cell] = run(options.uv, cell, options.environments, tests)
    outcomes = [outcome for outcome, _ in results.values()]
    print("\n" + "\n".join(f"{c:22} {outcome:8} {line}" for c, (outcome, line) in results.items()))
    counts = {name: outcomes.count(name) for name in ("passed", "failed", "not run")}
    print("matrix: " + ", ".join(f"{n} cells {name}" for name, n in counts.items()))
    if counts["failed"]:
        return 1
    return 0 if counts["passed"] else 2


if __name__ == "__main__":
    sys.exit(main())
