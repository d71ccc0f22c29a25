"""Packages cut into folders of which each imports only those below it, and only through their faces."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAX_FILES = 16


def imported(text: str, package: Sequence[str]) -> set[str]:
    """The absolute names of the modules that a module of `package` imports, without the root."""
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            path = [*base, *(node.module.split(".") if node.module else ())]
            # `from . import _x` names modules, `from .x import y` names one.
            names += [".".join([*path, a.name] if not node.module else path) for a in node.names]
    return set(names)


def offences(text: str, whole: str, order: Sequence[str], folder: str) -> list[str]:
    """Imports of a module in a folder of package `whole` ("a.b") that do not go down, go past a face, or to the face of all.

    `order`: the folders from the bottom up. Private files beside them may be imported from everywhere.
    """
    found = []
    for name in sorted(imported(text, (*whole.split("."), folder))):
        if not f"{name}.".startswith(f"{whole}."):
            continue
        inner = name.removeprefix(whole).removeprefix(".")
        first, _, rest = inner.partition(".")
        own = ROOT / whole.replace(".", "/") / folder / rest  # a folder within is known by its face
        is_own = first == folder and (not rest or rest.startswith("_") or own.is_dir())
        is_beside = (
            first.startswith("_") and (ROOT / whole.replace(".", "/") / f"{first}.py").exists()
        )
        if is_own or is_beside:
            continue
        if first not in order[: order.index(folder)]:
            found.append(f"{inner} is not below {folder}")
        elif rest:
            found.append(f"{inner} is inside of a wing")
    return found


def offenders(whole: str, order: Sequence[str], folder: str) -> dict[str, list[str]]:
    """File of a folder -> what it imports wrongly."""
    files = (ROOT / whole.replace(".", "/") / folder).glob("*.py")
    return {f.name: bad for f in files if (bad := offences(f.read_text(), whole, order, folder))}
