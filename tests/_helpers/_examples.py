"""The scripts of examples/ and benchmarks/, run as a user runs them or loaded as modules."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def run_example(name, *options, timeout=900):
    """What a script prints in a Python of its own, once it has run without warnings of ours."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", EXAMPLES / f"{name}.py", *map(str, options)],
        env=os.environ | {"MPLBACKEND": "agg"}, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def kept_by(name, out, *files):
    """The metrics that a script of papers keeps at smoke size; these files it has to write as well."""
    run_example(f"papers/{name}", "--smoke", "--out", out)
    for file in files:
        assert (out / file).stat().st_size > 100
    return json.loads((out / "metrics.json").read_text())


def load_example(name, root=EXAMPLES):
    """A script, or a helper of some, as a module; it may import those beside it.

    Args:
        name: path from `root` without ".py"; or of a folder with an `__init__.py`.
        root: the folder of examples, or of benchmarks.
    """
    path = root / name
    if path.is_dir():
        return _imported(path.name, path.parent)
    return _imported(path.stem, path.parent, path.with_suffix(".py"))


def _imported(name, folder, file=None):
    sys.path.insert(0, str(folder))
    try:
        if file is None:
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(f"{name}_example", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(folder))
