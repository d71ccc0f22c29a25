"""How results print: a title and one fact a line, ten lines at most; in notebooks the same as a table.

    @shown
    @dataclasses.dataclass(frozen=True)  # or a NamedTuple
    class Result: ...

Facts are what the method `_facts` returns, name -> value, else the fields that are not None. Large values are told, not printed:
an array by dtype and shape (a few numbers by value), a tree by its size, a mapping by its entries as far as the line goes.
Nothing is computed on a device and nothing raises, be an array traced, deleted or spread over processes. A report with tables of
text returns them from `_tables`, rows of cells with a header first; a notebook shows them below the facts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ._calls import did_you_mean
from ._compat import is_concrete

MAX_LINES, MAX_WIDTH = 10, 100
_NAME = 30  # width of a fact's name
_SMALL = 4  # entries of a vector that are worth printing
_FILES = ("save", "write", "to_netcdf", "to_csv")
_PLAIN = (str, int, float, bool, np.number, np.bool_)


def shown[C: type](cls: C) -> C:
    """Class decorator: let `repr` and notebooks show the facts, and what it lacks say what there is.

    Outside of `dataclass`, which would write its own `repr`.
    """
    methods = {"__repr__": text, "_repr_html_": html}
    if not hasattr(cls, "__getattr__"):
        methods["__getattr__"] = _lacking
    for name, method in methods.items():
        setattr(cls, name, method)
    return cls


def _lacking(result: Any, name: str) -> Any:
    """Called for an attribute that is not found."""
    cls = type(result)
    if name.startswith("_") or hasattr(cls, name):
        return object.__getattribute__(result, name)  # as Python says it, or as a property does
    fields = getattr(cls, "__dataclass_fields__", {})
    own = set(dir(cls)) - set(dir(tuple) if issubclass(cls, tuple) else ())
    public = [n for n in dict.fromkeys([*fields, *sorted(own)]) if not n.startswith("_")]
    kept = (
        " Keep it in a file by inference.to_arviz(result, path=...), or its arrays by numpy.savez."
    )
    raise AttributeError(
        f"{cls.__name__} has no '{name}'.{did_you_mean(name, public)} Take one of {', '.join(public)}.{kept * (name in _FILES)}",
        name=name,
        obj=result,
    )


def text(result: PyTree) -> str:
    """The facts as plain text."""
    facts = facts_of(result)
    title, width = type(result).__name__, max(map(len, facts), default=0)
    room = MAX_WIDTH - width - 4
    return "\n".join([title, *(f"  {k:{width}}  {describe(v, room)}" for k, v in facts.items())])


def html(result: Any) -> str:
    """The facts, and the tables if there are any, as HTML."""
    rows = [
        f"<tr><th>{escape(name)}</th><td>{escape(describe(value, MAX_WIDTH))}</td></tr>"
        for name, value in facts_of(result).items()
    ]
    head = f"<table><caption>{escape(type(result).__name__)}</caption>{''.join(rows)}</table>"
    tables = result._tables() if hasattr(result, "_tables") else []
    return "".join([head, *map(_html_table, tables)])


def facts_of(result: PyTree) -> dict[str, dict[str, np.ndarray] | int | str]:
    """Name -> value, at most one for each line below the title."""
    if hasattr(result, "_facts"):
        facts = dict(result._facts())
    elif dataclasses.is_dataclass(result):
        facts = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.repr}
    else:
        facts = dict(zip(result._fields, result, strict=True))
    facts = {_cut(name, _NAME): value for name, value in facts.items() if value is not None}
    room = MAX_LINES - 1
    if len(facts) <= room:
        return facts
    kept = list(facts)[: room - 1]
    return {k: facts[k] for k in kept} | {"...": "also " + ", ".join(list(facts)[room - 1 :])}


def describe(value: object, room: int = MAX_WIDTH) -> str:
    """A value in one line of at most `room` characters."""
    if isinstance(value, Mapping):
        return _joined([f"{name} {_leaf(x, by_value=False)}" for name, x in value.items()], room)
    is_record = hasattr(value, "_fields")
    if isinstance(value, tuple | list) and not is_record:
        return _joined([_leaf(x, by_value=False) for x in value], room)
    return _cut(_leaf(value), room)


def _leaf(value: Any, *, by_value: bool = True) -> str:
    """A value in few words; `by_value`: of a small array its entries."""
    if (
        value is None
        or isinstance(value, _PLAIN)
        and (by_value or not isinstance(value, np.generic))
    ):
        return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return (
            _entries(value)
            if by_value and is_readable(value)
            else f"{value.dtype}{list(value.shape)}"
        )
    if dataclasses.is_dataclass(value) and all(isinstance(x, _PLAIN) for x in vars(value).values()):
        return repr(value)  # a few numbers
    leaves = [x for x in jax.tree.leaves(value) if hasattr(x, "dtype") and hasattr(x, "shape")]
    if leaves:
        size = sum(math.prod(x.shape) for x in leaves)
        return f"{type(value).__name__} of {len(leaves)} arrays, {size:,} numbers"
    return str(getattr(value, "name", getattr(value, "__name__", type(value).__name__)))


def is_readable(x: PyTree) -> bool:
    """Whether an array holds a few numbers that can be read now."""
    is_there = isinstance(x, np.ndarray | jax.Array) and is_concrete(x)
    is_there = is_there and getattr(x, "is_fully_addressable", True)
    is_there = is_there and not (isinstance(x, jax.Array) and x.is_deleted())
    is_number = isinstance(x.dtype, np.dtype) and x.dtype.kind in "bif"
    return is_there and is_number and len(x.shape) <= 1 and math.prod(x.shape) <= _SMALL


def _entries(x: PyTree) -> str:
    values = np.asarray(x)
    numbers = [_leaf(v) for v in values.reshape(-1)]
    return f"[{', '.join(numbers)}]" if values.ndim else numbers[0]


def _joined(parts: Sequence[str], room: int) -> str:
    """Parts with commas between them; those that find no room are counted."""
    line = ", ".join(parts)
    if len(" ".join(line.split())) <= room:
        return _cut(line, room) or "none"
    tail = f", ... ({len(parts)} in all)"
    kept = parts[:1]
    for part in parts[1:]:
        if len(", ".join([*kept, part])) + len(tail) > room:
            break
        kept = [*kept, part]
    return _cut(", ".join(kept), room - len(tail)) + tail


def _cut(line: str, room: int) -> str:
    line = " ".join(line.split())  # a name may hold line breaks
    return line if len(line) <= room else line[: max(room - 4, 0)] + " ..."


def _html_table(rows: Iterable[Sequence[str]]) -> str:
    head, *body = ([escape(cell) for cell in row] for row in rows)
    lines = [f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in body]
    return f"<table>{''.join(lines)}</table>"
