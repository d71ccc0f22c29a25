"""Objectives in pickles: by the call that made them, since what they compute is a function inside of another."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import PyTree

from ...ppl._calls import checked_call


class RecordedCall(NamedTuple):
    """A call of a function that can be found by its names, with the defaults of its arguments."""

    module: str
    name: str
    args: tuple
    kwargs: Mapping[str, Any]

    @property
    def is_global(self) -> bool:
        """Whether the function stands in a module, and not inside of another function."""
        return "<locals>" not in self.name


def recreated[F: Callable[..., Any]](factory: F) -> F:
    """Decorator of a function that makes an objective: the objective remembers the call."""
    make = checked_call(factory)

    @functools.wraps(factory)
    def remembered(*args: PyTree, **kwargs: PyTree) -> Any:
        made = make(*args, **kwargs)
        call = inspect.signature(factory, follow_wrapped=False).bind(*args, **kwargs)
        call.apply_defaults()
        recipe = RecordedCall(factory.__module__, factory.__qualname__, call.args, call.kwargs)
        return dataclasses.replace(made, recipe=recipe)

    return remembered  # pyright: ignore[reportReturnType]


def recreate(recipe: RecordedCall, fields: Mapping[str, object]) -> Any:
    """The objective that a call makes, with other fields."""
    made: PyTree = importlib.import_module(recipe.module)
    for name in recipe.name.split("."):
        made = getattr(made, name)
    return dataclasses.replace(made(*recipe.args, **recipe.kwargs), **fields)
