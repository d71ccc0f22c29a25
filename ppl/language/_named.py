"""Decorated functions in pickles: a pickle knows a function by its name, and under this name stands the program."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import PyTree


class Named(NamedTuple):
    """The place of a program that was made of a function."""

    module: str
    name: str

    def program(self) -> Any:
        """The program; None if there is none."""
        found: PyTree = sys.modules.get(self.module)
        for part in self.name.split("."):
            found = getattr(found, part, None)
        return found


def by_name(fn: Callable[..., PyTree]) -> Any:
    """The function, or the name of the program that stands in its place in its module."""
    named = Named(getattr(fn, "__module__", ""), getattr(fn, "__qualname__", ""))
    return named if getattr(named.program(), "fn", None) is fn else fn


def of_name(fn: Callable[..., PyTree]) -> Any:
    """The inverse of `by_name`."""
    if not isinstance(fn, Named):
        return fn
    importlib.import_module(fn.module)
    return fn.program().fn
