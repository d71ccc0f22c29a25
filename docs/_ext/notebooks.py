"""Each tutorial as a notebook, to download: the page's prose and code, and what the code printed when the page was run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parents[1]
SITE = "../"  # where the links of a notebook lead: from `notebooks/` into the site
HIDDEN = re.compile(r"^<!--.*?-->\n", re.M | re.S)
PART = re.compile(
    r"^```python\n(?P<code>.*?)^```\n|^```\{literalinclude\} /_outputs/(?P<shown>\S+)\n.*?^```\n", re.M | re.S
)  # fmt: skip
PICTURE = re.compile(r"^!\[[^\n]*\]\([^)]*_outputs/[^)]*\)\n", re.M)  # the code draws it
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\.md(#[^)]*)?\)")


def tutorials() -> list[Path]:
    return sorted((DOCS / "tutorials").glob("*.md"))


def notebook(text: str) -> dict[str, Any]:
    """A page as a notebook of format 4.5."""
    cells: list[dict[str, Any]] = []

    def say(prose: str) -> None:
        prose = LINK.sub(rf"]({SITE}tutorials/\1.html\2)", PICTURE.sub("", prose)).strip()
        if prose:
            cells.append({"cell_type": "markdown", "metadata": {}, "source": prose})

    text, end = HIDDEN.sub("", text), 0
    for part in PART.finditer(text):
        say(text[end : part.start()])
        end = part.end()
        if part["code"]:
            cells.append(
                {"cell_type": "code", "metadata": {}, "source": part["code"].rstrip(), "outputs": [], "execution_count": None}
            )  # fmt: skip
        elif part["shown"].endswith(".txt"):
            shown = (DOCS / "_outputs" / part["shown"]).read_text()
            cells[-1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": shown}]
    say(text[end:])
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": cells}


def offer(app: Sphinx, docname: str, source: list[str]) -> None:
    """At the end of a tutorial, where its notebook is."""
    if docname.startswith("tutorials/"):
        name = docname.removeprefix("tutorials/")
        link = f'<a href="../notebooks/{name}.ipynb" download>This page as a notebook</a>'
        source[0] += f"\n```{{raw}} html\n<p>{link}</p>\n```\n"


def write(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.name != "html":
        return
    folder = Path(app.outdir, "notebooks")
    folder.mkdir(exist_ok=True)
    for page in tutorials():
        made = json.dumps(notebook(page.read_text()), indent=1)
        (folder / f"{page.stem}.ipynb").write_text(made + "\n")
