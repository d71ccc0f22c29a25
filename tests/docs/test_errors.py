"""How much of the catalogue of errors there is: which `raise` statements its programs reach."""

import ast
import contextlib
import traceback
import warnings

import pytest
from _pages import DOCS, Page

ROOT = DOCS.parent
# Refusals without an entry in docs/errors.md. The number may only fall: a new refusal comes with an entry.
WITHOUT_ENTRY = 569


def refusals():
    """(file, first line, last line) of every statement that raises an exception with a message."""
    found = []
    for package in ("ppl", "inference", "models"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                    found.append((file, node.lineno, node.end_lineno))
    return found


@pytest.fixture(scope="module")
def reached(tmp_path_factory):
    """The refusals that the page's programs reach; what it shows is what they print."""
    page, folder, frames = Page("errors"), tmp_path_factory.mktemp("errors"), set()
    with contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = page.run(is_full=True)
        page.compare(run, folder)
    for error in run.raised:
        frames |= {(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)}
    return {
        (file, first, last)
        for file, first, last in refusals()
        if any((str(file), line) in frames for line in range(first, last + 1))
    }


def test_every_program_of_the_catalogue_reaches_a_refusal(reached):
    assert len(reached) >= 20


def test_refusals_without_an_entry_become_fewer(reached):
    missing = [
        f"{f.relative_to(ROOT)}:{first}"
        for f, first, _ in refusals()
        if (f, first, _) not in reached
    ]
    assert len(missing) <= WITHOUT_ENTRY, (
        f"{len(missing)} refusals have no entry in docs/errors.md, more than {WITHOUT_ENTRY}. Add a program for the new one; "
        f"all of them: {missing}"
    )
