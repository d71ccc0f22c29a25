"""`llms.txt`: one line a page, for readers that are programs."""

from __future__ import annotations

import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

HEAD = """# lapilli

> Probabilistic programs on NumPyro whose objectives and gradient estimators are data. What cannot be estimated without bias is
> refused when the program is traced, with the site and the remedy.
"""


def lines(app: Sphinx) -> list[str]:
    """A link for each page, with its first paragraph."""
    found = []
    for name in sorted(app.env.found_docs):
        title = app.env.titles[name].astext()
        paragraph = next(iter(app.env.get_doctree(name).findall(nodes.paragraph)), None)
        text = re.sub(r"\s+", " ", paragraph.astext()) if paragraph is not None else ""
        found.append(f"- [{title}]({name}.html): {text[:200]}")
    return found


def write(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.name == "html":
        Path(app.outdir, "llms.txt").write_text("\n".join([HEAD, "## Pages", "", *lines(app), ""]))
