"""Counts of the house: what makes it heavy to read, as numbers that a change can be held against.

    python .ci/house.py [--list COUNT]

Of the library (ppl, inference, models): files, folders, lines and lines of code; `Any` per 1,000 lines; class names that stand in
two files; import circles, those among lazy and typing-only imports too; comments per 100 lines of code, of all and of the engine
(ppl without distributions); functions of more than ten parameters; folders of more than sixteen files; names in public faces.
`--list` names the places of a count.
"""

from __future__ import annotations

import argparse
import ast
import collections
import functools
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ("ppl", "inference", "models")
MANY_PARAMETERS = 10
MANY_FILES = 16


@functools.cache
def files() -> list[Path]:
    """Files of the library."""
    return sorted(f for name in LIBRARY for f in (ROOT / name).rglob("*.py"))


@functools.cache
def parsed(file: Path) -> ast.Module:
    """The tree of a file."""
    return ast.parse(file.read_text())


def place(file: Path, line: int | None = None) -> str:
    """Where something is, from the root."""
    return f"{file.relative_to(ROOT)}" + (f":{line}" if line else "")


@functools.cache
def nodes(file: Path) -> list[ast.AST]:
    """All nodes of a file's tree."""
    return list(ast.walk(parsed(file)))


@functools.cache
def code_lines(file: Path) -> set[int]:
    """Numbers of the lines that hold code: neither empty nor only comment or docstring."""
    strings: set[int] = set()
    for node in nodes(file):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                strings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = file.read_text().splitlines()
    is_code = lambda text: bool(text.strip()) and not text.strip().startswith("#")
    return {n for n, text in enumerate(lines, 1) if is_code(text) and n not in strings}


@functools.cache
def comments(file: Path) -> list[int]:
    """Numbers of the lines with a comment that is for a reader, and not for a tool."""
    source = file.read_text()
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    marks = ("# fmt:", "# type:", "# noqa", "# pyright:", "# ruff:", "# pragma")
    is_said = lambda t: t.type == tokenize.COMMENT and not t.string.startswith(marks)
    return [t.start[0] for t in tokens if is_said(t)]


def anys(file: Path) -> list[str]:
    """Each use of the name `Any`, imports apart."""
    names = [n for n in nodes(file) if isinstance(n, ast.Name) and n.id == "Any"]
    quoted = [
        n
        for n in nodes(file)
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and n.value == "Any"
    ]
    return [place(file, n.lineno) for n in (*names, *quoted)]


def repeated_classes() -> list[str]:
    """Names of classes that two files define, with the files."""
    found: dict[str, list[str]] = {}
    for file in files():
        for node in parsed(file).body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name.lstrip("_"), []).append(place(file, node.lineno))
    return [
        f"{name}: {', '.join(where)}" for name, where in sorted(found.items()) if len(where) > 1
    ]


def imported(file: Path) -> Iterator[str]:
    """Modules of the library that a file imports anywhere: at its head, in a function, for its annotations."""
    package = [*file.relative_to(ROOT).parts[:-1]]
    for node in nodes(file):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = package[: len(package) - node.level + 1]
        elif node.module and node.module.split(".")[0] == "lapilli":
            base = []
        else:
            continue
        path = [*base, *(node.module or "").removeprefix("lapilli").strip(".").split(".")]
        path = [part for part in path if part]
        for alias in node.names:
            deeper = [*path, alias.name]
            for parts in (deeper, path):
                folder = ROOT.joinpath(*parts)
                if folder.with_suffix(".py").is_file():
                    yield place(folder.with_suffix(".py"))
                    break
                if (folder / "__init__.py").is_file():
                    yield place(folder / "__init__.py")
                    break


def circles() -> list[str]:
    """Groups of files that import one another around, faces apart: the strongly connected parts of the graph of imports."""
    graph = {place(f): sorted(set(imported(f)) - {place(f)}) for f in files()}
    # A face imports its own rooms, which use one another directly: circles through a face are of its rooms.
    graph = {
        f: [g for g in to if not g.endswith("__init__.py")]
        for f, to in graph.items()
        if not f.endswith("__init__.py")
    }
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[str] = []

    def visit(f: str) -> None:  # Tarjan
        index[f] = low[f] = len(index)
        stack.append(f)
        for g in graph.get(f, []):
            if g not in index:
                visit(g)
                low[f] = min(low[f], low[g])
            elif g in stack:
                low[f] = min(low[f], index[g])
        if low[f] == index[f]:
            part = stack[stack.index(f) :]
            del stack[stack.index(f) :]
            if len(part) > 1:
                found.append(", ".join(sorted(part)))

    for f in graph:
        if f not in index:
            visit(f)
    return found


def long_calls() -> list[str]:
    """Functions of more than ten parameters, `self` apart."""
    found = []
    for file in files():
        for node in nodes(file):
            if isinstance(node, ast.FunctionDef):
                a = node.args
                names = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
                number = len([n for n in names if n not in ("self", "cls")])
                if number > MANY_PARAMETERS:
                    found.append(f"{place(file, node.lineno)} {node.name}, {number}")
    return found


def large_folders() -> list[str]:
    """Folders of more than sixteen files."""
    sizes = collections.Counter(f.parent for f in files())
    return [f"{place(f)}, {n}" for f, n in sorted(sizes.items()) if n > MANY_FILES]


def public_names() -> list[str]:
    """What the faces list in `__all__`."""
    found = []
    for file in (f for f in files() if f.name == "__init__.py"):
        for node in parsed(file).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                folder = ".".join(file.relative_to(ROOT).parts[:-1])
                if "._" not in folder:
                    found += [f"{folder}.{name}" for name in ast.literal_eval(node.value)]
    return found


def per_code(found: list[Path]) -> float:
    """Comments per 100 lines of code."""
    return 100 * sum(len(comments(f)) for f in found) / sum(len(code_lines(f)) for f in found)


def counts() -> dict[str, float]:
    """Each count by name."""
    own = files()
    lines = sum(len(f.read_text().splitlines()) for f in own)
    engine = [f for f in own if f.is_relative_to(ROOT / "ppl") and "distributions" not in f.parts]
    return {
        "files": len(own),
        "folders": len({f.parent for f in own}),
        "lines": lines,
        "lines of code": sum(len(code_lines(f)) for f in own),
        "Any per 1,000 lines": 1000 * sum(len(anys(f)) for f in own) / lines,
        "class names in two files": len(repeated_classes()),
        "import circles": len(circles()),
        "comments per 100 lines of code": per_code(own),
        "comments per 100 lines of code, engine": per_code(engine),
        "functions of more than ten parameters": len(long_calls()),
        "folders of more than sixteen files": len(large_folders()),
        "public names": len(public_names()),
    }


LISTS = {
    "any": lambda: [where for f in files() for where in anys(f)],
    "classes": repeated_classes,
    "circles": circles,
    "parameters": long_calls,
    "folders": large_folders,
    "public": public_names,
}


def main() -> None:
    """Print the counts, or the places of one."""
    parser = argparse.ArgumentParser(description="Counts of the house.")
    parser.add_argument("--list", choices=list(LISTS), help="name the places of a count")
    options = parser.parse_args()
    if options.list:
        print("\n".join(LISTS[options.list]()))
        return
    for name, count in counts().items():
        print(f"{name:<42}{count:>10,.1f}" if count % 1 else f"{name:<42}{count:>10,.0f}")


if __name__ == "__main__":
    main()
