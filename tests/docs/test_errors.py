"""How much of the catalogue of errors there is: which `raise` statements its programs reach."""

import contextlib
import traceback
import warnings

import pytest
from _pages import Page
from _refusals import not_among

pytestmark = pytest.mark.docs
# Refusals without an entry in docs/errors.md. The number may only fall: a new refusal comes with an entry. Eleven are of several
# processes, which a page is not.
WITHOUT_ENTRY = 608


@pytest.mark.parametrize("is_full", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_refusals_without_an_entry_become_fewer(is_full, tmp_path):
    """What the page shows is what its programs print; those that compile much run with the slow tests only."""
    page, frames = Page("errors"), set()
    with contextlib.chdir(tmp_path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = page.run(is_full)
        page.compare(run, tmp_path)
    for error in run.raised:
        frames |= {(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)}
    missing = not_among(frames)
    # Each program that was left out reaches one.
    assert len(missing) <= WITHOUT_ENTRY + run.num_left_out, (
        f"{len(missing)} refusals have no entry in docs/errors.md, more than {WITHOUT_ENTRY}. Add a program for the new one; "
        f"all of them: {missing}"
    )
