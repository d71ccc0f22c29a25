"""The sub-folders of the particle methods: each imports from those below it only, through their faces."""

from pathlib import Path

import _layers
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


def offences(text, folder):
    return _layers.offences(text, "inference.particles", ORDER, folder)


@pytest.mark.parametrize("folder", ORDER)
def test_a_folder_imports_from_those_below_it_through_their_faces(folder):
    assert 1 < len(list((FOLDER / folder).glob("*.py"))) <= _layers.MAX_FILES
    assert not _layers.offenders("inference.particles", ORDER, folder)


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
    assert not hasattr(particles, "Partial")


def test_the_rest_of_the_package_comes_through_the_faces():
    files = [f for part in ("inference", "models") for f in (ROOT / part).rglob("*.py")]
    found = {}
    for file in (f for f in files if FOLDER not in f.parents):
        names = _layers.imported(file.read_text(), file.parent.relative_to(ROOT).parts)
        private = [n for n in names if n.startswith("inference.particles.") and "._" in n]
        found |= {str(file): private} if private else {}
    assert not found
