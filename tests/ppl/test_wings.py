"""The plan of `ppl`: each wing imports only those below it, and only through their faces."""

import ast
from pathlib import Path

import pytest

PPL = Path(__file__).resolve().parents[2] / "ppl"
# From the bottom up. Files of `ppl` itself (the wall, tables, messages) may be imported from everywhere.
WINGS = (
    "distributions", "jaxprs", "evaluation", "traces", "language", "strategies", "enumeration",
    "analysis", "checks", "estimation", "densities",
)  # fmt: skip
MAX_FILES = 16


def imports(source: str, depth: int) -> list[tuple[str, ...]]:
    """Modules that a file `depth` folders below `ppl` imports from `ppl`, as paths from there."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == depth + 1:
            found.append(tuple((node.module or "").split(".")))
    return found


def problems(wing: str, source: str) -> list[str]:
    found = []
    for path in imports(source, 1):
        if path[0].startswith("_"):
            continue
        if path[0] not in WINGS[: WINGS.index(wing)]:
            found.append(f"{'.'.join(path)} is not below {wing}")
        elif len(path) > 1:
            found.append(f"{'.'.join(path)} is inside of a wing")
    return found


def test_all_folders_are_listed():
    assert sorted(WINGS) == sorted(p.parent.name for p in PPL.glob("*/__init__.py"))


@pytest.mark.parametrize("wing", WINGS)
def test_wings_import_what_lies_below_through_its_face(wing):
    found = {f.name: problems(wing, f.read_text()) for f in (PPL / wing).glob("*.py")}
    assert not {name: p for name, p in found.items() if p}


@pytest.mark.parametrize("wing", WINGS)
def test_wings_are_small_and_say_what_they_are(wing):
    assert len(list((PPL / wing).glob("*.py"))) <= MAX_FILES
    assert len(ast.get_docstring(ast.parse((PPL / wing / "__init__.py").read_text())) or "") > 200


def test_arrows_up_and_into_a_wing_are_found():
    assert problems("traces", "from ..strategies import Engine") == [
        "strategies is not below traces"
    ]
    assert problems("traces", "def f():\n    from ..jaxprs._ranges import union") == [
        "jaxprs._ranges is inside of a wing"
    ]
    assert not problems("traces", "from ..jaxprs import union\nfrom .._compat import bind")
