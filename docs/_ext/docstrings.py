"""Docstrings as reStructuredText: formulas and maps stay as they are typed, names in backticks become links.

The docstrings of this library are plain text: formulas such as `sum_k w_k f(x*)` stand in prose and in indented blocks. Sphinx
would read markup into them.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from faces import places
from sphinx import addnodes
from sphinx.application import Sphinx

SECTION = re.compile(
    r"(Args|Raises|Attributes|Returns|Example|Examples|Validity|Reference|References|Warns|Yields|Guide):(\s.*)?$"
)
LITERAL = re.compile(r"(``.+?``|`[^`]+`)")


def escape(text: str) -> str:
    """Prose without accidental markup: stars, bars, and underscores at the ends of words."""
    pieces = LITERAL.split(text)
    for i in range(0, len(pieces), 2):
        pieces[i] = re.sub(r"([*|])", r"\\\1", re.sub(r"\\(?! )", r"\\\\", pieces[i]))
        pieces[i] = re.sub(r"(?<=[A-Za-z0-9])_(?![A-Za-z0-9])", r"\\_", pieces[i])
        if i and pieces[i][:1].isalnum():  # "`Particle`s"
            pieces[i] = "\\ " + pieces[i]
    return "".join(pieces)


def converted(lines: list[str]) -> list[str]:
    """A docstring, ready for napoleon."""
    out: list[str] = []
    section, i = None, 0
    while i < len(lines):
        line = lines[i]
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent == 0:
            match = SECTION.match(line)
            section = match[1] if match else None
            if (
                match and (match[2] or "").strip()
            ):  # "Reference: Author 2020, ...", on one line or several
                out += ["", f"{match[1]}:"]
                body = [match[2].strip()]
                while (
                    i + 1 < len(lines) and lines[i + 1].strip() and not SECTION.match(lines[i + 1])
                ):
                    body.append(lines[i + 1].strip())
                    i += 1
                out += [*("    " + escape(text) for text in body), ""]
                section, i = None, i + 1
                continue
            if match:
                out += ["", line]
                i += 1
                continue
        is_block = section is None and line.strip() and (indent >= 4 or line.startswith("| "))
        if (
            is_block
            and not line.lstrip().startswith(">>>")
            or (
                section in ("Example", "Examples")
                and line.strip()
                and ">>>" not in line
                and not _in_doctest(lines, i)
            )
        ):
            block = []
            while i < len(lines) and _continues(lines, i, line):
                block.append(lines[i])
                i += 1
            while block and not block[-1].strip():
                block.pop()
            depth = "    " if section else ""
            out += ["", f"{depth}.. code-block:: text", ""]
            least = min(len(b) - len(b.lstrip()) for b in block if b.strip())
            out += [f"{depth}    {b[least:]}" if b.strip() else "" for b in block] + [""]
            continue
        if (
            section in ("Example", "Examples")
            or line.lstrip().startswith(">>>")
            or not line.strip()
        ):
            out.append(line)
            i += 1
            continue
        prose = [
            line
        ]  # to the end of the paragraph: what stands in backticks may go on in the next line
        while i + 1 < len(lines) and lines[i + 1].strip() and not _begins(lines[i + 1], section):
            i += 1
            prose.append(lines[i])
        out += escape("\n".join(prose)).split("\n")
        i += 1
    return out


def _begins(line: str, section: str | None) -> bool:
    """Whether a line after a paragraph's is none of it: a section, a formula, a table, an example."""
    is_block = section is None and (line.startswith(("    ", "| ")))
    return bool(SECTION.match(line)) or is_block or line.lstrip().startswith(">>>")


def _continues(lines: list[str], i: int, first: str) -> bool:
    line = lines[i]
    if first.startswith("| "):
        return line.startswith("|")
    if not line.strip():
        return any(later.strip() for later in lines[i:]) and _next(lines, i).startswith("    ")
    return line.startswith("    ") and not line.lstrip().startswith(">>>")


def _next(lines: list[str], i: int) -> str:
    return next((line for line in lines[i:] if line.strip()), "")


def _in_doctest(lines: list[str], i: int) -> bool:
    """Whether a line is a continuation or the output of an example above it."""
    while i >= 0 and lines[i].strip():
        if ">>>" in lines[i]:
            return True
        i -= 1
    return False


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = converted(lines)
    if what in ("property", "attribute"):
        _kept[name] = list(lines)


def restore(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """After napoleon, which reads the first line of a property, "what: more", as its type."""
    if name in _kept:
        lines[:] = _kept.pop(name)


_kept: dict[str, list[str]] = {}


def plain_types(app: Sphinx, env: Any, node: Any, content: Any) -> Any:
    """Types beside attributes that lead nowhere are text: other packages have no inventory where there is no network."""
    return content if (node.get("refdomain"), node.get("reftype")) == ("py", "class") else None


def skip(app: Sphinx, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """Fields of named tuples say nothing of their own: the class lists its attributes. Nor do methods that scikit-learn adds."""
    doc = getattr(obj, "__doc__", None) or ""
    is_added = name.startswith("set_") and name.endswith("_request")
    return True if is_added or doc.startswith("Alias for field number") else None


def link(role: str, rawtext: str, text: str, lineno: int, inliner: Any, options=None, content=()):
    """The default role: a public name links to its place, anything else is code."""
    name = text.strip().removeprefix("lapilli.").removesuffix("()")
    literal = nodes.literal(rawtext, text, classes=["code"])
    target = _places().get(name)
    if target is None:
        return [literal], []
    reference = addnodes.pending_xref(
        rawtext, literal, refdomain="py", reftype="obj", reftarget=target, refexplicit=True, refwarn=True,
    )  # fmt: skip
    reference["refdoc"] = inliner.document.settings.env.docname
    return [reference], []


_known: dict[str, str] = {}


def _places() -> dict[str, str]:
    if not _known:
        _known.update(places())
    return _known
