"""The docstrings of ppl, inference and models are maps: each public name stands there once, and nothing else does."""

import ast
import re
from pathlib import Path

import pytest

from lapilli import inference, models, ppl

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
    aliases = [a for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names]
    return [a.name for a in aliases if a.asname == a.name]


@pytest.mark.parametrize("module", [ppl, inference, models], ids=lambda m: m.__name__)
def test_the_map_lists_each_public_name_once(module):
    names = listed(module.__doc__)
    assert sorted(names) == sorted(exported(module))
    assert names == module.__all__


@pytest.mark.parametrize("module", [ppl, inference, models], ids=lambda m: m.__name__)
def test_public_names_have_a_docstring_of_their_own(module):
    bare = [name for name in module.__all__ if not (getattr(module, name).__doc__ or "").strip()]
    assert not bare


def test_a_map_that_lacks_or_repeats_a_name_is_told():
    assert listed("Map.\n\nTask\n    a, B2    what\n    a  again") == ["a", "B2", "a"]
    with pytest.raises(AssertionError, match="no row"):
        listed("Map.\n\nTask\n    a, no row")
