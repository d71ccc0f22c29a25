"""The project's own part of the site: pages that are generated, docstrings, formulas, outputs of pages."""

from __future__ import annotations

import re

import docstrings
import figures
import gallery
import llms
import mathml
import messages
import notebooks
import reference
import tables
import words
from sphinx.application import Sphinx

# What the tests of pages read, and readers need not see.
COMMENT = re.compile(r"^<!-- (check|smoke|budget)\b.*?-->\n", re.M | re.S)


def generate(app: Sphinx) -> None:
    reference.write()
    tables.write()
    gallery.write()
    figures.write()
    words.write()
    messages.write()


def strip(app: Sphinx, docname: str, source: list[str]) -> None:
    source[0] = COMMENT.sub("", source[0])


def set_default_role(app: Sphinx) -> None:
    from docutils.parsers.rst import roles

    roles.register_local_role("name", docstrings.link)


def setup(app: Sphinx) -> dict:
    mathml.setup(app)
    set_default_role(app)
    app.connect("builder-inited", generate)
    app.connect("source-read", strip)
    app.connect("source-read", notebooks.offer)
    app.connect("autodoc-process-docstring", docstrings.process, priority=400)
    app.connect("autodoc-process-docstring", docstrings.restore, priority=600)
    app.connect("autodoc-skip-member", docstrings.skip)
    app.connect("missing-reference", docstrings.plain_types)
    app.connect("build-finished", llms.write)
    app.connect("build-finished", notebooks.write)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
