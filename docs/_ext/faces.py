"""The public names of the library, by package and task: read from the maps that packages have for docstrings."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

MAPPED = (
    "ppl",
    "ppl.strategies",
    "ppl.distributions",
    "ppl.densities",
    "inference",
    "inference.fitting",
    "inference.local",
    "inference.particles",
    "inference.particles.resampling",
    "inference.particles.moves",
    "inference.diffusion",
    "inference.diagnostics",
    "inference.evaluation",
    "inference.posterior_checks",
    "inference.simulators",
    "inference.tilts",
    "inference.search",
)
NAME = r"[A-Za-z]\w*"
ROW = re.compile(rf"    ({NAME}(?:, {NAME})*)  +(\S.*)")


@dataclasses.dataclass(frozen=True)
class Group:
    """A task, and the names that serve it: pairs of the names of a row and what they are for."""

    title: str
    rows: tuple[tuple[tuple[str, ...], str], ...]

    @property
    def names(self) -> list[str]:
        return [name for names, _ in self.rows for name in names]


def load(face: str) -> ModuleType:
    """`lapilli.FACE`."""
    return importlib.import_module(f"lapilli.{face}")


def groups(face: str) -> list[Group]:
    """What a face lists, in its order. A family of models, which has no map, is one group."""
    module = load(face)
    if face not in MAPPED:
        rows = tuple(((name,), first_line(getattr(module, name))) for name in public(face))
        return [Group("", rows)]
    found: list[tuple[str, list]] = []
    title = ""
    for line in (module.__doc__ or "").splitlines():
        if row := ROW.fullmatch(line):
            if not found or found[-1][0] != title:
                found.append((title, []))
            found[-1][1].append((tuple(row[1].split(", ")), row[2]))
        elif line.strip():
            title = line.strip()
    return [Group(title, tuple(rows)) for title, rows in found]


def models() -> list[str]:
    """The model families: "models.NAME"."""
    return [f"models.{name}" for name in load("models").__all__]


def faces() -> list[str]:
    """All places with public names."""
    return [*MAPPED, *models()]


def public(face: str) -> list[str]:
    """The public names of a face, sub-namespaces left out."""
    module = load(face)
    if hasattr(module, "__all__"):
        names = list(module.__all__)
    else:
        names = _exported(module)
    return [name for name in names if not isinstance(getattr(module, name), ModuleType)]


def _exported(module: ModuleType) -> list[str]:
    """Names that a family's `__init__` re-exports, `name as name`, or that its one file defines."""
    tree = ast.parse(Path(str(module.__file__)).read_text())
    again = [
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    ]
    defined = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    return [name for name in again or defined if not name.startswith("_")]


def first_line(thing: Any) -> str:
    """The first sentence of a docstring, up to the first colon or full stop that ends it."""
    if not (callable(thing) or inspect.ismodule(thing)):
        return ""  # the docstring of a value is its class's
    line = (inspect.getdoc(thing) or "").partition("\n")[0]
    return re.split(r"(?<=[a-z)`])[.:](?:\s|$)", line)[0]


def places() -> dict[str, str]:
    """Short name -> full name, of all that are public; of equal short names the first place counts."""
    found: dict[str, str] = {}
    for face in faces():
        for name in public(face):
            for short in (name, f"{face}.{name}", f"{face.split('.')[-1]}.{name}"):
                found.setdefault(short, f"lapilli.{face}.{name}")
    return found


def renew(path: Path, text: str) -> None:
    """Write a generated page; one that has not changed keeps its date, so that Sphinx does not read it again."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
