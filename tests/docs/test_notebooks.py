"""Tutorials as notebooks: the code of the page, which `test_pages.py` runs, with what it printed there."""

import json
import os
import sys

import nbclient
import nbformat
import pytest
from _pages import BLOCK, DOCS, SMOKE, Page

sys.path.insert(0, str(DOCS / "_ext"))
from notebooks import notebook, tutorials  # noqa: E402

pytestmark = pytest.mark.docs

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


def run_by_a_kernel(made, folder):
    """The notebook with what its cells gave; an exception in a cell is one here."""
    ran = nbformat.from_dict(made)
    nbformat.validate(ran)
    names = {name: x for name, x in os.environ.items() if name != "MPLBACKEND"}  # pictures in cells
    client = nbclient.NotebookClient(ran, resources={"metadata": {"path": str(folder)}})
    client.execute(env=names)
    return ran


def outputs(ran):
    return [o for cell in ran.cells for o in cell.get("outputs", ())]


@by_page
@pytest.mark.slow  # a kernel at work is seen by the fast tests, too
def test_a_kernel_runs_it(path, tmp_path):
    """At the page's smoke size; what is drawn shows."""
    text = path.read_text()
    made = notebook(text)
    for cell in made["cells"]:
        for full, smoke in SMOKE.findall(text) if cell["cell_type"] == "code" else ():
            cell["source"] = cell["source"].replace(full, smoke)
    ran = run_by_a_kernel(made, tmp_path)
    assert all(cell.execution_count for cell in ran.cells if cell.cell_type == "code")
    if "matplotlib" in text or "plot" in text:
        assert any("image/png" in o.get("data", ()) for o in outputs(ran))


CELL = """
import jax, numpyro.distributions as dist, optax
from lapilli import inference, ppl

def model(x):
    ppl.sample("x", dist.Normal(ppl.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

def guide(x):
    ppl.sample("z", dist.Normal(ppl.param("m", 0.0), 0.7))

objective = inference.elbo(model, guide)
key = jax.random.key(0)
fit = inference.fit(objective, optax.sgd(0.1), (0.5,), num_steps=20, key=key, progress=True)
"""


def test_a_kernel_shows_bars_and_tables(tmp_path):
    cells = [
        {"cell_type": "code", "metadata": {}, "source": source, "outputs": [], "execution_count": None, "id": f"c{n}"}
        for n, source in enumerate([CELL, "fit", "objective.plan(fit.params, 0.5)"])
    ]  # fmt: skip
    ran = run_by_a_kernel(notebook("# T\n\ntext") | {"cells": cells}, tmp_path)
    bar, result, plan = (cell.outputs for cell in ran.cells)
    assert any("application/vnd.jupyter.widget-view+json" in o.get("data", ()) for o in bar)
    for shown in (result, plan):
        assert "<table" in shown[-1]["data"]["text/html"]


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
