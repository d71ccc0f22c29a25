"""Writes the pages of the reference into `docs/api/`, from the faces of the packages."""

from __future__ import annotations

import inspect
import re
import shutil
from pathlib import Path

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


def page(face: str, parts: list[Group], title: str, intro: list[str]) -> str:
    lines = [".. This page is generated.", "", *heading(title, "="), *intro]
    for group in parts:
        if len(parts) > 1 and group.title:
            lines += heading(group.title.partition(":")[0], "-")
        lines += table(face, group)
        for name in group.names:
            if name in public(face):
                lines += entry(face, name)
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """File name without suffix -> text, of all pages."""
    found: dict[str, str] = {}
    for face in faces():
        parts = groups(face)
        if face in BY_TASK:
            here = [group for group in parts if any(n in public(face) for n in group.names)]
            for group in here:
                task = group.title.partition(":")[0].partition(",")[0]
                intro = [f"In ``lapilli.{face}``.", ""]
                found[f"{face}-{slug(task)}"] = page(face, [group], task, intro)
        else:
            found[face] = page(face, parts, face, prose(face))
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
