"""Writes the pages of the reference into `docs/api/`, from the faces of the packages."""

from __future__ import annotations

import inspect
import re
import shutil
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docstrings import converted
from faces import MAPPED, ROOT, Group, faces, first_line, groups, load, public, renew

API = ROOT / "docs" / "api"
TITLES = {
    "ppl": "The language",
    "inference": "Inference",
    "models": "Model families",
}
# Packages with so many names that each task has a page of its own.
BY_TASK = ("ppl", "inference")


def heading(text: str, mark: str) -> list[str]:
    return [text, mark * len(text), ""]


def entry(face: str, name: str) -> list[str]:
    """One name, with its docstring."""
    thing = getattr(load(face), name)
    full = f"lapilli.{face}.{name}"
    if inspect.isclass(thing):
        kind = "autoexception" if issubclass(thing, BaseException) else "autoclass"
        return [f".. {kind}:: {full}", "   :members:", ""]
    if callable(thing):
        return [f".. autofunction:: {full}", ""]
    return [f".. autodata:: {full}", "   :no-value:", ""]


def results(face: str, name: str, known: set[type]) -> list[type]:
    """Classes of the library that a name returns, or its methods, and of their fields; those that are `known` left out.

    They are no public names: whoever calls the function has them, and reads here what their fields are.
    """
    thing = getattr(load(face), name)
    methods = vars(thing).values() if inspect.isclass(thing) else [thing]
    waiting = [c for method in methods for c in returned(method)]
    found: list[type] = []
    while waiting:
        one = waiting.pop(0)
        if one not in known and (one.__doc__ or "").strip():
            known.add(one)
            found.append(one)
            hints = vars(one).get("__annotations__", {}).values()
            names = vars(inspect.getmodule(one))
            waiting += [c for hint in hints for c in classes(hint, names)]
    return found


def returned(thing: Any) -> list[type]:
    """Classes of the library in the annotation of what a function or a property returns."""
    fn = inspect.unwrap(
        getattr(thing, "fget", None)
        or getattr(thing, "func", None)
        or getattr(thing, "__func__", thing)
    )
    return classes(getattr(fn, "__annotations__", {}).get("return"), getattr(fn, "__globals__", {}))


def classes(hint: Any, names: dict[str, Any]) -> list[type]:
    """Public classes of the library's own in a type, which may be a text."""
    if isinstance(hint, str):
        try:
            hint = eval(hint, dict(names))
        except Exception:  # of what type checkers alone can read
            return []
    if inspect.isclass(hint) and not typing.get_args(hint):
        is_ours = hint.__module__.startswith("lapilli.") and not hint.__name__.startswith("_")
        return [hint] if is_ours else []
    return [c for part in typing.get_args(hint) for c in classes(part, names)]


def exported() -> set[type]:
    """Classes with an entry of their own."""
    found = (getattr(load(face), name) for face in faces() for name in public(face))
    return {thing for thing in found if inspect.isclass(thing)}


def entries_of_results(face: str, names: list[str], known: set[type]) -> Iterator[str]:
    """Entries of what the names of a page return."""
    found = [c for name in names for c in results(face, name, known)]
    for one in found:
        yield from [f".. autoclass:: {one.__module__}.{one.__qualname__}", "   :members:", ""]


def table(face: str, group: Group) -> list[str]:
    lines = [".. list-table::", "   :class: names", "   :widths: 35 65", ""]
    for names, purpose in group.rows:
        links = ", ".join(
            f"`{face}.{name}`" if name in public(face) else f"`{name}`" for name in names
        )
        # The text of a link is the name alone: the page says where it lies.
        links = re.sub(rf"`{re.escape(face)}\.(\w+)`", rf":py:obj:`\1 <lapilli.{face}.\1>`", links)
        lines += [f"   * - {links}", f"     - {converted([purpose])[0]}"]
    return [*lines, ""]


def slug(text: str) -> str:
    return re.sub(r"\W+", "_", text.lower()).strip("_")[:40].rstrip("_")


def prose(face: str) -> list[str]:
    """What a module's docstring says; of a map, only its first paragraph."""
    lines = (inspect.getdoc(load(face)) or "").splitlines()
    if face in MAPPED:
        lines = lines[: lines.index("")] if "" in lines else lines
    return [*converted(lines), ""]


def page(face: str, parts: list[Group], title: str, intro: list[str], known: set[type]) -> str:
    lines = [".. This page is generated.", "", *heading(title, "="), *intro]
    for group in parts:
        if len(parts) > 1 and group.title:
            lines += heading(group.title.partition(":")[0], "-")
        lines += table(face, group)
        for name in group.names:
            if name in public(face):
                lines += entry(face, name)
    names = [name for group in parts for name in group.names if name in public(face)]
    if rows := list(entries_of_results(face, names, known)):
        lines += [*heading("What these return", "-"), *rows]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """File name without suffix -> text, of all pages."""
    found: dict[str, str] = {}
    known = exported()
    for face in faces():
        parts = groups(face)
        if face in BY_TASK:
            here = [group for group in parts if any(n in public(face) for n in group.names)]
            for group in here:
                task = group.title.partition(":")[0].partition(",")[0]
                intro = [f"In ``lapilli.{face}``.", ""]
                found[f"{face}-{slug(task)}"] = page(face, [group], task, intro, known)
        else:
            found[face] = page(face, parts, face, prose(face), known)
    return found


def write() -> None:
    """Write them all, and remove what no longer is one."""
    texts = {f"{name}.rst": text for name, text in pages().items()}
    texts["index.rst"] = index(list(pages()))
    API.mkdir(exist_ok=True)
    for name, text in texts.items():
        renew(API / name, text)
    for stale in set(API.iterdir()) - {API / name for name in texts}:
        shutil.rmtree(stale) if stale.is_dir() else Path(stale).unlink()


def index(names: list[str]) -> str:
    lines = [".. This page is generated.", "", *heading("API by task", "=")]
    for package, title in TITLES.items():
        lines += heading(f"{title}: {package}", "-")
        lines += [*converted([first_line(load(package)) + "."]), ""]
        lines += [".. toctree::", "   :maxdepth: 1", ""]
        lines += [f"   {name}" for name in names if re.split(r"[.-]", name)[0] == package] + [""]
    return "\n".join(lines)
