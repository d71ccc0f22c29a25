"""Tutorials as notebooks: the code of the page, which `test_pages.py` runs, with what it printed there."""

import json
import sys

import pytest
from _pages import BLOCK, DOCS, Page

sys.path.insert(0, str(DOCS / "_ext"))
from notebooks import notebook, tutorials  # noqa: E402

by_page = pytest.mark.parametrize("path", tutorials(), ids=lambda path: path.stem)


@by_page
def test_the_code_is_that_of_the_page(path):
    made = json.loads(json.dumps(notebook(path.read_text())))
    code = [cell["source"] for cell in made["cells"] if cell["cell_type"] == "code"]
    page = Page(f"tutorials/{path.stem}")
    assert code == [b["code"].rstrip() for b in BLOCK.finditer(page.text) if b["code"]]
    shown = "".join(o["text"] for c in made["cells"] for o in c.get("outputs", ()))
    outputs = [b["shown"] for b in BLOCK.finditer(page.text) if b["shown"]]
    assert shown == "".join((DOCS / "_outputs" / name).read_text() for name in outputs)


@by_page
def test_prose_is_read_without_the_site(path):
    """No directives, no hidden checks, no figure that is not in the file; links lead into the site."""
    made = notebook(path.read_text())
    prose = "\n".join(c["source"] for c in made["cells"] if c["cell_type"] == "markdown")
    assert made["cells"][0]["source"].startswith("# ")
    assert not any(mark in prose for mark in ("<!--", "literalinclude", "_outputs/", ".md)"))
    assert len({cell["id"] for cell in made["cells"]}) == len(made["cells"])


def test_cells_run_one_by_one(tmp_path, monkeypatch):
    """As a kernel would: one namespace, one cell after the other."""
    text = "# T\n\n```python\nx = 1\nprint(x)\n```\n```{literalinclude} /_outputs/start/tour/plan.txt\n:language: text\n```\n"
    text += (
        "<!-- check\nassert x == 2\n-->\nSee [here](../errors.md#a).\n\n```python\nx += 1\n```\n"
    )
    made, names = notebook(text), {}
    assert [c["cell_type"] for c in made["cells"]] == ["markdown", "code", "markdown", "code"]
    for cell in made["cells"]:
        if cell["cell_type"] == "code":
            exec(cell["source"], names)
    assert names["x"] == 2 and made["cells"][1]["outputs"]
    assert made["cells"][2]["source"] == "See [here](../tutorials/../errors.html#a)."
