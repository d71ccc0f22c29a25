"""The sub-folders of the particle methods: each imports from those below it only, through their faces."""

import ast
from pathlib import Path

import pytest

import lapilli
from lapilli.inference import particles

ROOT = Path(lapilli.__file__).parent
FOLDER = ROOT / "inference" / "particles"
# From the bottom to the top; the face of the whole says the same in its docstring.
ORDER = (
    "population",
    "resampling",
    "programs",
    "engine",
    "smoothing",
    "moves",
    "samplers",
    "parameters",
    "scaling",
    "diagnostics",
)
MAX_FILES = 16


def imported(text, package):
    """The absolute names of the modules that a module of `package` imports, without the root."""
    names = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            path = [*base, *(node.module.split(".") if node.module else ())]
            # `from . import _x` names modules, `from .x import y` names one.
            names += [".".join([*path, a.name] if not node.module else path) for a in node.names]
    return set(names)


def offences(text, folder):
    """Imports of a module in `folder` from folders that are not below it, past a face, or of the face of all."""
    whole = ("inference", "particles")
    below = {".".join((*whole, name)) for name in ORDER[: ORDER.index(folder)]}
    own = ".".join((*whole, folder))
    inside = [
        n for n in imported(text, (*whole, folder)) if f"{n}.".startswith("inference.particles.")
    ]
    return [n for n in inside if n not in below and n != own and not n.startswith(f"{own}._")]


@pytest.mark.parametrize("folder", ORDER)
def test_a_folder_imports_from_those_below_it_through_their_faces(folder):
    files = sorted((FOLDER / folder).glob("*.py"))
    assert 1 < len(files) <= MAX_FILES
    found = {f.name: bad for f in files if (bad := offences(f.read_text(), folder))}
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "from ..smoothing import smooth",
        "from ..resampling._schemes import Scheme",
        "from .. import smc",
        "from ...particles import smc",
        "from ..engine import smc",
    ],
    ids=["up", "past a face", "the whole", "the whole by name", "up by one"],
)
def test_a_wrong_import_is_found(line):
    assert offences(line, "programs")


def test_rightful_imports_are_no_offences():
    lines = (
        "import jax",
        "from ....ppl._compat import Literal",
        "from ..._depends import depends",
        "from ..population import Batch",
        "from ._traced import TracedProgram",
        "from . import _traced",
    )
    assert not offences("\n".join(lines), "programs")


def test_the_order_names_all_folders():
    assert {f.parent.name for f in FOLDER.glob("*/__init__.py")} == set(ORDER)
    assert [f.name for f in FOLDER.glob("*.py")] == ["__init__.py"]


def test_faces_say_what_they_are_for_and_are_namespaces():
    for name in ORDER:
        face = getattr(particles, name)
        assert len(face.__doc__.splitlines()[0]) > 20
    assert particles.resampling.Partial is particles.Partial


def test_the_rest_of_the_package_comes_through_the_faces():
    files = [f for part in ("inference", "models") for f in (ROOT / part).rglob("*.py")]
    found = {}
    for file in (f for f in files if FOLDER not in f.parents):
        names = imported(file.read_text(), file.parent.relative_to(ROOT).parts)
        private = [n for n in names if n.startswith("inference.particles.") and "._" in n]
        found |= {str(file): private} if private else {}
    assert not found
