"""The plan of `ppl`: each wing imports only those below it, and only through their faces."""

import ast

import _layers
import pytest

PPL = _layers.ROOT / "ppl"
# From the bottom up. Files of `ppl` itself (the wall, tables, messages) may be imported from everywhere.
WINGS = (
    "distributions", "jaxprs", "inputs", "evaluation", "traces", "language", "strategies", "enumeration",
    "analysis", "checks", "estimation", "gaussian", "densities", "formulas",
)  # fmt: skip


def problems(wing: str, source: str) -> list[str]:
    return _layers.offences(source, "ppl", WINGS, wing)


def test_all_folders_are_listed():
    assert sorted(WINGS) == sorted(p.parent.name for p in PPL.glob("*/__init__.py"))


@pytest.mark.parametrize("wing", WINGS)
def test_wings_import_what_lies_below_through_its_face(wing):
    assert not _layers.offenders("ppl", WINGS, wing)


@pytest.mark.parametrize("wing", WINGS)
def test_wings_are_small_and_say_what_they_are(wing):
    assert len(list((PPL / wing).glob("*.py"))) <= _layers.MAX_FILES
    assert len(ast.get_docstring(ast.parse((PPL / wing / "__init__.py").read_text())) or "") > 200


def test_arrows_up_and_into_a_wing_are_found():
    assert problems("traces", "from ..strategies import Engine") == [
        "strategies is not below traces"
    ]
    assert problems("traces", "def f():\n    from ..jaxprs._ranges import union") == [
        "jaxprs._ranges is inside of a wing"
    ]
    assert not problems("traces", "from ..jaxprs import union\nfrom .._compat import bind")
