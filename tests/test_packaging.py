"""What is installed: the wheel, the editable install, the version, what an import loads."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import lapilli

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ppl", "inference", "models")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Loaded where they are used. What NumPy, JAX and NumPyro load themselves does not count.
LATE = """arviz arviz_base arviz_stats blackjax diffrax equinox flax formulae funsor matplotlib netCDF4 optax pandas
    scipy.integrate scipy.interpolate scipy.ndimage scipy.optimize scipy.stats sklearn statsmodels xarray""".split()


def run(*args, cwd, **env):
    """Runs a command with Python's own path variables removed; returns what it prints."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    result = subprocess.run(
        [str(a) for a in args], cwd=cwd, env=clean | env, capture_output=True, text=True
    )
    assert result.returncode == 0, f"{args} failed\n{result.stdout}\n{result.stderr}"
    return result.stdout


def source_packages():
    """The packages on disk, by their import names."""
    inits = [init for name in PACKAGES for init in (ROOT / name).rglob("__init__.py")]
    return {"lapilli"} | {
        ".".join(("lapilli", *init.parent.relative_to(ROOT).parts)) for init in inits
    }


def test_every_package_on_disk_is_declared():
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == source_packages()


def test_the_tests_run_the_code_of_this_checkout():
    assert Path(lapilli.__file__).resolve() == ROOT / "__init__.py"
    assert Path(lapilli.ppl.__file__).resolve() == ROOT / "ppl" / "__init__.py"


def test_compiled_programs_are_kept_between_runs():
    import jax

    jax.jit(lambda x: x + 1)(1.0)
    assert list(Path(jax.config.jax_compilation_cache_dir).iterdir())


def test_version_of_the_metadata_is_the_version_of_the_module():
    assert metadata.version("lapilli") == lapilli.__version__


def entries(file):
    """`key: value` lines of a YAML file that has no others to speak of."""
    pairs = re.findall(r"^[ -]*([\w-]+): *(.+)$", (ROOT / file).read_text(), flags=re.MULTILINE)
    return [(key, value.strip('"')) for key, value in pairs]


def test_the_citation_says_what_the_metadata_say():
    said, project = dict(entries("CITATION.cff")), PROJECT["project"]
    assert said["version"] == lapilli.__version__ and said["license"] == project["license"]
    assert said["cff-version"] == "1.2.0" and said["title"].startswith(project["name"])
    keywords = (ROOT / "CITATION.cff").read_text().partition("keywords:\n")[2].splitlines()
    assert [line.removeprefix("  - ") for line in keywords] == project["keywords"]


def test_hooks_run_the_environment_and_fetch_nothing():
    hooks = entries(".pre-commit-config.yaml")
    assert [value for key, value in hooks if key == "repo"] == ["local"]
    commands = [value.split()[:2] for key, value in hooks if key == "entry"]
    assert commands == [[".venv/bin/ruff", "check"], [".venv/bin/ruff", "format"]]
    assert {value for key, value in hooks if key == "language"} == {"system"}


def test_the_changelog_begins_with_what_is_to_come_or_is_here():
    titles = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert titles[0].endswith(" (unreleased)") or titles[0].split()[0] == lapilli.__version__
    assert not any("unreleased" in title for title in titles[1:])


def test_attributes_are_the_packages_and_no_others():
    assert {"ppl", "inference", "models", "__version__"} <= set(dir(lapilli))
    with pytest.raises(AttributeError, match="'lapilli' has no attribute 'nothing'"):
        lapilli.nothing  # noqa: B018


@pytest.mark.slow
def test_no_module_imports_the_package_by_its_absolute_name():
    # House rule: imports inside the package are relative, so that tools that do not know the
    # package's name (an editor, a type checker) can follow them.
    offenders = []
    for file in (f for name in PACKAGES for f in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            if any(name.partition(".")[0] == "lapilli" for name in names):
                offenders.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not offenders


def loaded_late(code, cwd):
    """Which of the late modules some code loads, in a process that has loaded NumPyro and JAX."""
    (cwd / "lapilli").symlink_to(ROOT)  # found before any installed one
    code = f"""
import json, sys
import jax, numpyro
before = set(sys.modules)
{code}
print(json.dumps([m for m in {LATE} if m in sys.modules and m not in before]))
"""
    return json.loads(run(sys.executable, "-c", code, cwd=cwd))


def imports(folders, on_use):
    """Names of packages that the files under some folders import: at import, or also on use (in functions, of estimators)."""
    found = set()
    for file in (f for name in folders for f in (ROOT / name).rglob("*.py")):
        if not on_use and ("estimators" in file.parts or file.name == "_series_inputs.py"):
            continue  # loaded when an estimator is asked for
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree) if on_use else tree.body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            found |= {name.partition(".")[0] for name in names}
    return found - set(sys.stdlib_module_names)


# Where the name of the import is not that of the project to install; pandas comes with xarray.
DISTRIBUTIONS = {
    "pandas": "xarray", "arviz_base": "arviz", "arviz_stats": "arviz", "ot": "pot", "sklearn": "scikit-learn",
    "netCDF4": "netcdf4",
}  # fmt: skip
# Not imported by any file, and who needs it: NumPyro sums discrete sites with funsor, ArviZ writes files with netCDF4.
NOT_IMPORTED = {
    "furo": "make docs", "myst-parser": "make docs", "sphinx-design": "make docs",
    "funsor": "numpyro", "jaxlib": "jax", "netcdf4": "arviz", "pyright": "make lint", "pytest-xdist": "make test",
    "ruff": "make lint", "setuptools": "the wheel under test", "ipykernel": "notebooks", "ipywidgets": "notebooks",
}  # fmt: skip


def declared(*extras):
    """Names of the declared dependencies, with those of some extras."""
    optional = PROJECT["project"]["optional-dependencies"]
    lines = [*PROJECT["project"]["dependencies"], *(r for extra in extras for r in optional[extra])]
    return {r.name for r in map(Requirement, lines)} - {"lapilli"}


@pytest.mark.slow
def test_imports_of_the_packages_are_declared():
    extras = {e for e in PROJECT["project"]["optional-dependencies"] if e not in ("test", "dev")}
    name = lambda package: DISTRIBUTIONS.get(package, package)
    assert set(map(name, imports(PACKAGES, on_use=False))) <= declared()
    assert set(map(name, imports(PACKAGES, on_use=True))) <= declared(*extras)


@pytest.mark.slow
def test_every_declared_dependency_is_used():
    everywhere = imports((*PACKAGES, "tests", "docs", "examples", "benchmarks"), on_use=True)
    used = {DISTRIBUTIONS.get(package, package) for package in everywhere} | set(NOT_IMPORTED)
    assert declared(*PROJECT["project"]["optional-dependencies"]) <= used


def test_the_lock_holds_exact_versions_and_nothing_else():
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        (bound,) = Requirement(line).specifier
        assert bound.operator == "==" and "/" not in line, line


@pytest.mark.fast("ppl, inference, models-needed2")
@pytest.mark.parametrize(
    ("packages", "needed"),
    [("ppl", []), ("ppl, inference", []), ("ppl, inference, models", ["equinox"])],
)
def test_import_does_not_load_what_is_needed_on_use_only(packages, needed, tmp_path):
    """Networks of models are equinox modules."""
    assert loaded_late(f"from lapilli import {packages}", tmp_path) == needed


def test_p_values_of_a_calibration_load_no_statistics_package(tmp_path):
    code = """
import numpy as np
from lapilli.inference.diagnostics._calibration import _p_values
assert _p_values(np.arange(200) % 8, 7) > 0.9
"""
    assert loaded_late(code, tmp_path) == []


@pytest.mark.slow
def test_late_modules_are_told_from_others(tmp_path):
    # NumPyro or JAX may come to load it themselves: then it is of no use in the list.
    assert "scipy.stats" in loaded_late("import scipy.stats", tmp_path)


def test_import_of_the_root_loads_no_jax(tmp_path):
    code = "import sys, lapilli; assert not {'jax', 'numpy'} & set(sys.modules)"
    run(sys.executable, "-c", code, cwd=tmp_path)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the sources: building in place would leave build/ behind."""
    source = tmp_path_factory.mktemp("source")
    texts = ("pyproject.toml", "LICENSE", "README.md", "py.typed")
    for file in (*(ROOT / name for name in texts), *ROOT.glob("*.py")):
        shutil.copy(file, source)
    for folder in (*PACKAGES, "tests", "examples"):
        if (ROOT / folder).exists():
            shutil.copytree(
                ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__")
            )
    out = tmp_path_factory.mktemp("wheel")
    # The build backend is called as PEP 517 says, so neither pip nor a network is needed.
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    run(sys.executable, "-c", code, cwd=source)
    (path,) = out.glob("*.whl")
    return path


def test_wheel_holds_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = {f for f in archive.namelist() if ".dist-info/" not in f}
    sources = {f"lapilli/{f.relative_to(ROOT)}" for p in PACKAGES for f in (ROOT / p).rglob("*.py")}
    sources |= {f"lapilli/{f.name}" for f in ROOT.glob("*.py")}
    assert files == sources | {"lapilli/py.typed"}


def test_wheel_metadata_names_version_license_and_python(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (f for f in archive.namelist() if f.endswith("METADATA"))
        text = archive.read(name).decode()
        assert any(f.endswith("licenses/LICENSE") for f in archive.namelist())
    for line in (f"Version: {lapilli.__version__}", "Requires-Python: >=3.12"):
        assert line in text.splitlines()


@pytest.mark.slow
def test_installed_wheel_imports_from_another_folder(wheel, tmp_path):
    target, cwd = tmp_path / "site", tmp_path / "elsewhere"
    cwd.mkdir()
    with zipfile.ZipFile(wheel) as archive:  # a pure-Python wheel is installed by unpacking it
        archive.extractall(target)
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        # The finder of an editable install would hand out modules that the wheel lacks.
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in f'{f}'.lower()]\n"
        "import lapilli\n"
        "from lapilli import ppl, inference, models\n"
        "print(lapilli.__file__, ppl.__file__, inference.__file__, models.__file__, sep='\\n')"
    )
    for line in run(sys.executable, "-c", code, cwd=cwd).splitlines():
        assert Path(line).is_relative_to(target)
