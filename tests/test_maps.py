"""The docstrings of public packages are maps: each public name stands there once, and nothing else does."""

import ast
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

from lapilli import inference, models, ppl

# Whole packages export what their maps list; a face also serves the library, with names of other floors and its own.
TOPS = (ppl, inference, models)
FACES = (
    ppl.strategies,
    ppl.distributions,
    ppl.densities,
    inference.fitting,
    inference.local,
    inference.diffusion,
    inference.diagnostics,
    inference.evaluation,
    inference.posterior_checks,
    inference.simulators,
    inference.tilts,
    inference.search,
    inference.particles,
    inference.particles.moves,
    inference.particles.resampling,
)
MODULES = pytest.mark.parametrize("module", TOPS + FACES, ids=lambda m: m.__name__)
NAME = r"[A-Za-z]\w*"
ROW = re.compile(rf"    ({NAME}(?:, {NAME})*)  +(\S.*)")


def listed(docstring):
    """Names in the left column of a map, in order; every indented line must be a row of it."""
    lines = [line for line in docstring.splitlines() if line.startswith(" ")]
    rows = [ROW.fullmatch(line) for line in lines]
    assert all(rows), [line for line, row in zip(lines, rows, strict=True) if not row]
    return [name for row in rows for name in row[1].split(", ")]


def exported(module):
    """Names that a package's __init__ re-exports, `name as name`."""
    tree = ast.parse(Path(module.__file__).read_text())
    aliases = [a for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names]
    return [a.name for a in aliases if a.asname == a.name]


@MODULES
def test_the_map_lists_each_public_name_once(module):
    names = listed(module.__doc__)
    assert names == module.__all__
    assert len(set(names)) == len(names)
    missing = (
        set(names) ^ set(exported(module)) if module in TOPS else set(names) - set(exported(module))
    )
    assert not missing


def test_a_name_has_one_public_place():
    """A face hands names up, such as `fit`, and does not list them."""
    for top in (ppl, inference):
        tree = [top, *(m for m in FACES if m.__name__.startswith(f"{top.__name__}."))]
        places = [name for module in tree for name in module.__all__]
        assert len(tree) > 3 and len(places) == len(set(places))
    assert "fit" not in inference.fitting.__all__ and hasattr(inference.fitting, "fit")


def test_arguments_of_one_role_have_one_name():
    """Within `inference` the joint law is the model; what takes any program is in `ppl`."""
    names = [getattr(m, name) for m in (inference, *FACES) for name in m.__all__]
    functions = [f for f in names if inspect.isfunction(f)]
    ours = [f for f in functions if f.__module__.startswith("lapilli.inference")]
    odd = {
        f.__name__: name
        for f in ours
        for name in inspect.signature(f).parameters
        if name in ("target", "program", "models")
    }
    assert len(ours) > 50 and not odd


def test_every_sub_namespace_is_mapped():
    tops = (ppl, inference, inference.particles)
    below = {getattr(m, name) for m in tops for name in m.__all__}
    assert {m for m in below if isinstance(m, ModuleType)} == set(FACES)


@MODULES
def test_public_names_have_a_docstring_of_their_own(module):
    bare = [name for name in module.__all__ if not (getattr(module, name).__doc__ or "").strip()]
    assert not bare


def test_a_map_that_lacks_or_repeats_a_name_is_told():
    assert listed("Map.\n\nTask\n    a, B2    what\n    a  again") == ["a", "B2", "a"]
    with pytest.raises(AssertionError, match="no row"):
        listed("Map.\n\nTask\n    a, no row")
