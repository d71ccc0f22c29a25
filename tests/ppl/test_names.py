"""The public names of `ppl`: listed once, by task, and documented."""

import re

import pytest

from lapilli import ppl

LISTED = [
    name
    for line in (ppl.__doc__ or "").split("More in the wings")[0].splitlines()
    if line.startswith("    ")
    for name in re.findall(r"\w+", line.split(": ")[0])
]


def test_the_docstring_lists_each_public_name_once():
    assert sorted(n for n in LISTED if n in ppl.__all__) == sorted(ppl.__all__)


@pytest.mark.parametrize("name", ppl.__all__)
def test_names_are_there_and_documented(name):
    assert getattr(ppl, name).__doc__


def test_nothing_else_is_public_but_the_wings_and_modules():
    import types

    others = {n for n, v in vars(ppl).items() if not n.startswith("_")} - set(ppl.__all__)
    assert all(isinstance(getattr(ppl, n), types.ModuleType) for n in others)
