"""What code a process has run, as digests of its pieces: a figure is older than its code when one of them is no more.

A piece is a function, a method, a class without its methods, or another statement of a file. Pieces that count: functions of
which a line has run, and the classes and statements (constants, registrations) of their files. Left out of a digest: docstrings,
comments, layout, annotations, the words of errors, and the names of definitions and of local variables; so code that is moved or
renamed is what it was, and code that is added beside it says nothing.
"""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from types import CodeType

ROOT = Path(__file__).resolve().parents[1]
_DIGITS = 8
_NAME = "lapilli figures"

Function = ast.FunctionDef | ast.AsyncFunctionDef


def watch(found: dict[str, set[int]]) -> Callable[[], None]:
    """Fill `found`, file -> first lines of the functions that run of it from now on, at the cost of one call each.

    Returns:
        What ends it.
    """
    tool = next(n for n in range(6) if sys.monitoring.get_tool(n) is None)

    def started(code: CodeType, _: int) -> object:
        file = os.path.realpath(code.co_filename)  # that of a script is as it was called
        found.setdefault(file, set()).add(code.co_firstlineno)
        return sys.monitoring.DISABLE

    sys.monitoring.use_tool_id(tool, _NAME)
    sys.monitoring.register_callback(tool, sys.monitoring.events.PY_START, started)
    sys.monitoring.set_events(tool, sys.monitoring.events.PY_START)

    def stop() -> None:
        sys.monitoring.set_events(tool, sys.monitoring.events.NO_EVENTS)
        sys.monitoring.register_callback(tool, sys.monitoring.events.PY_START, None)
        sys.monitoring.free_tool_id(tool)

    return stop


def ran(lines: dict[str, set[int]], path: Path) -> str:
    """The digests of what has run of a file or folder, in one text; "" where nothing has."""
    parts = [digests_of(f.read_text(), lines[str(f)]) for f in _files(path) if str(f) in lines]
    return "".join(parts)


def digests_of(source: str, first: Collection[int] | None = None) -> str:
    """The digests of a file, in one text: of all pieces, or without functions in which none of these lines is."""
    return "".join(
        _digest(text)
        for text, span in _pieces(ast.parse(source))
        if span is None or first is None or any(line in span for line in first)
    )


def joined(texts: Iterable[str]) -> str:
    """Each digest of these texts once."""
    return "".join(sorted(set().union(*map(_split, texts))))


def is_older(digests: str, path: Path) -> bool:
    """Whether one of the pieces that have run is no more in that file or folder."""
    return not _split(digests) <= _present(path)


def _split(digests: str) -> set[str]:
    return {digests[i : i + _DIGITS] for i in range(0, len(digests), _DIGITS)}


@functools.cache
def _present(path: Path) -> frozenset[str]:
    return frozenset().union(*map(_of_file, _files(path)))


@functools.cache
def _of_file(file: Path) -> frozenset[str]:
    return frozenset(_split(digests_of(file.read_text())))


def _files(path: Path) -> Iterable[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.suffix == ".py" else []


def _pieces(tree: ast.Module) -> Iterator[tuple[str, range | None]]:
    """Text of each piece, and the lines of a function; None of what has run when the file was imported."""
    others = frozenset(_of_other_packages(tree))
    write = lambda node: _written(_Bare().visit(node), others)
    for node in tree.body:
        if isinstance(node, Function):
            yield write(node), _span(node)
        elif isinstance(node, ast.ClassDef):
            methods = [n for n in node.body if isinstance(n, Function)]
            yield from [(write(m), _span(m)) for m in methods]
            node.body = [n for n in node.body if n not in methods]
            yield write(node), None
        elif not (isinstance(node, ast.Import | ast.ImportFrom | ast.TypeAlias) or _is_text(node)):
            if not (isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"):
                yield write(node), None


def _span(node: Function) -> range:
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return range(first, (node.end_lineno or first) + 1)


class _Bare(ast.NodeTransformer):
    """Leaves out what changes no figure."""

    def visit_Import(self, node: ast.stmt) -> None:
        return None

    visit_ImportFrom = visit_TypeAlias = visit_Import

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if _is_text(node) else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return ast.Raise(exc=error, cause=None)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(node.arg)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        plain = ast.AnnAssign(node.target, ast.Constant(None), node.value, node.simple)
        return self.generic_visit(plain)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        node.type_params = []
        if not isinstance(node, ast.ClassDef):
            node.returns = None
        return node

    visit_AsyncFunctionDef = visit_ClassDef = visit_FunctionDef


def _written(node: ast.AST, others: frozenset[str]) -> str:
    """A statement as text, its own names by number; those of builtins and of other packages stay."""
    numbers: dict[str, str] = {}
    is_kept = lambda name: name in others or hasattr(builtins, name)
    named: Callable[[str], str] = lambda name: (
        name if is_kept(name) else numbers.setdefault(name, f"#{len(numbers)}")
    )

    def write(node: object) -> str:
        if isinstance(node, list):
            return f"[{','.join(map(write, node))}]"
        if isinstance(node, ast.Name):
            return named(node.id)
        if not isinstance(node, ast.AST):
            return repr(node)
        fields = [(n, x) for n, x in ast.iter_fields(node) if n not in ("ctx", "type_comment")]
        is_own = isinstance(node, ast.arg | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        parts = [named(x) if is_own and n in ("arg", "name") else write(x) for n, x in fields]
        return f"{type(node).__name__}({','.join(parts)})"

    return write(node)


def _of_other_packages(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.asname or a.name.split(".")[0] for a in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            if not (node.module or "").startswith(("lapilli", "_")):
                yield from (a.asname or a.name for a in node.names)


def _is_text(node: ast.stmt) -> bool:
    """A docstring, wherever it stands."""
    is_value = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_value and isinstance(node.value.value, str)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
