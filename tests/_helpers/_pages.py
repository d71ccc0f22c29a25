"""The pages of `docs/`, read as programs: what a page shows and claims is run.

A page is one namespace. Its python fences run in order; between them, in comments that readers do not see:

    <!-- check                      python that asserts what the prose says
    assert abs(x - 1.5) < 0.1
    -->
    <!-- check full                 ... only where the page runs in full
    <!-- smoke: 2000 -> 50 -->      in make docs, every "2000" of the code is "50"
    <!-- raises -->                 the next fence ends in an exception; its text is printed
    <!-- raises full -->            ... which only happens where the page runs in full; else its last statement is left out
    <!-- budget: 90 -->             seconds of processor time at smoke size, in place of 60
    <!-- needs: flax -->            a package without which the page is not run

What a page shows was seen by its test: `_outputs/PAGE/NAME.txt`, included after a fence, is what that fence prints, and
`_outputs/PAGE/NAME.png` is a file that the page writes. `LAPILLI_WRITE_DOCS=1` writes them, once all checks have passed.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import os
import re
import shutil
import textwrap
import time
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"
OUTPUTS = DOCS / "_outputs"
IS_WRITING = bool(os.environ.get("LAPILLI_WRITE_DOCS"))
BUDGET = 60.0

BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```$"
    r"|^<!-- check(?P<full> full)?\n(?P<check>.*?)^-->$"
    r"|^<!-- (?P<raises>raises(?: full)?) -->$"
    r"|^```\{literalinclude\} \S*_outputs/(?P<shown>\S+\.txt)$",
    re.M | re.S,
)
SMOKE = re.compile(r"^<!-- smoke: (.+?) -> (.+?) -->$", re.M)
NEEDS = re.compile(r"^<!-- needs: (\w+) -->$", re.M)
BUDGETED = re.compile(r"^<!-- budget: (\d+) -->$", re.M)
PICTURE = re.compile(r"_outputs/(\S+?\.png)")
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


@dataclasses.dataclass
class Run:
    """What a page left: its names, what each shown fence printed, exceptions, seconds of processor time, statements left out."""

    names: dict[str, Any]
    printed: dict[str, str]
    raised: list[BaseException]
    seconds: float
    num_left_out: int = 0


@dataclasses.dataclass(frozen=True)
class Page:
    """A page by its path in `docs/`, without suffix."""

    name: str

    @property
    def text(self) -> str:
        return (DOCS / f"{self.name}.md").read_text()

    @property
    def budget(self) -> float:
        found = BUDGETED.search(self.text)
        return float(found[1]) if found else BUDGET

    @property
    def lacks(self) -> str | None:
        """A package that it needs and that is not here."""
        found = NEEDS.search(self.text)
        return found[1] if found and importlib.util.find_spec(found[1]) is None else None

    @property
    def has_smoke_size(self) -> bool:
        return bool(SMOKE.search(self.text))

    @property
    def pictures(self) -> list[str]:
        """Those of its own outputs."""
        return [p for p in PICTURE.findall(self.text) if p.startswith(f"{self.name}/")]

    @property
    def digest(self) -> str:
        """Of the code that made its outputs."""
        code = "\n".join(block["code"] for block in BLOCK.finditer(self.text) if block["code"])
        return hashlib.sha256(code.encode()).hexdigest()

    def run(self, is_full: bool) -> Run:
        """All fences and checks in this process, in the current folder."""
        run, started = Run({"__name__": "page"}, {}, [], 0.0), time.process_time()
        last, raises = "", None
        for block in BLOCK.finditer(self.text):
            if block["raises"]:
                raises = block["raises"]
            elif block["code"]:
                if raises == "raises full" and not is_full:
                    self._execute(block, "code", run.names, is_full, is_to_end=False)
                    last, run.num_left_out = None, run.num_left_out + 1
                else:
                    last, error = self._execute(block, "code", run.names, is_full, bool(raises))
                    run.raised += [error] if error else []
                raises = None
            elif block["shown"] and last is not None:
                run.printed[block["shown"]] = last
            elif block["check"] and (is_full or not block["full"]):
                self._execute(block, "check", run.names, is_full)
        run.seconds = time.process_time() - started
        return run

    def _execute(
        self,
        block: re.Match,
        kind: str,
        names: dict,
        is_full: bool,
        is_to_raise: bool = False,
        is_to_end: bool = True,
    ) -> tuple[str, BaseException | None]:
        code = block[kind]
        for old, new in [] if is_full else SMOKE.findall(self.text):
            code = code.replace(old, new)
        line = self.text.count("\n", 0, block.start(kind))
        tree = ast.parse("\n" * line + code)
        if not is_to_end:
            tree.body.pop()
        out, error = io.StringIO(), None
        with contextlib.redirect_stdout(out):
            try:
                exec(compile(tree, f"docs/{self.name}.md", "exec"), names)
            except Exception as raised:
                if not is_to_raise:
                    raise
                error = raised
                print(wrapped(f"{type(raised).__name__}: {raised}"))
        if is_to_raise and error is None:
            raise AssertionError(f"docs/{self.name}.md, line {line + 1}: no exception was raised.")
        return out.getvalue(), error

    def compare(self, run: Run, folder: Path) -> None:
        """Shown outputs are what was printed, shown pictures have been written; or write them."""
        if IS_WRITING:
            self._write(run, folder)
        for name, text in run.printed.items():
            shown = OUTPUTS / name
            assert shown.exists(), f"{shown} is missing: LAPILLI_WRITE_DOCS=1 writes it."
            assert is_alike(shown.read_text(), text), (
                f"{name} shows\n{shown.read_text()}\nnot\n{text}"
            )
        for name in self.pictures:
            assert (folder / Path(name).name).exists(), (
                f"the page shows {name} and does not write it"
            )
            assert (OUTPUTS / name).exists(), f"{name} is missing: LAPILLI_WRITE_DOCS=1 writes it."

    def _write(self, run: Run, folder: Path) -> None:
        if not run.printed and not self.pictures:
            return
        here = OUTPUTS / self.name
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir(parents=True)
        for name, text in run.printed.items():
            (OUTPUTS / name).write_text(text)
        for name in self.pictures:
            shutil.copy(folder / Path(name).name, OUTPUTS / name)
        (here / "code.sha256").write_text(self.digest + "\n")


def wrapped(text: str) -> str:
    """A message in lines that a page has room for."""
    return "\n".join(textwrap.fill(line, 92) for line in text.splitlines())


def is_alike(shown: str, text: str) -> bool:
    """Equal words, and numbers that agree within 2%, or two units of the last decimal shown.

    XLA's levels of optimisation differ in the last bits, and Markov chains make more of them. Seconds are left out.
    """
    shown, text = (re.sub(r"\d+(\.\d+)? ?m?s\b", "TIME", t) for t in (shown, text))
    if NUMBER.sub("#", shown).split() != NUMBER.sub("#", text).split():
        return False
    return all(map(_is_close, NUMBER.findall(shown), NUMBER.findall(text)))


def _is_close(shown: str, found: str) -> bool:
    decimals = re.search(r"\.(\d+)$", shown)
    unit = 10.0 ** -len(decimals[1]) if decimals else 0.0
    return abs(float(shown) - float(found)) <= max(0.02 * abs(float(shown)), 2.001 * unit)


GENERATED = ("gallery", "glossary", "bibliography", "figures")


def pages() -> list[Page]:
    """All pages that are written by hand and have code."""
    names = [str(f.relative_to(DOCS).with_suffix("")) for f in sorted(DOCS.rglob("*.md"))]
    own = [
        Page(n) for n in names if not n.startswith(("_", "api/", "tables/")) and n not in GENERATED
    ]
    return [page for page in own if BLOCK.search(page.text)]
