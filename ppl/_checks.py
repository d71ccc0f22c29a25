"""Checks of arguments that many functions share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

EXAMPLES = {"num_samples": "1000", "num_particles": "100", "key": "jax.random.key(0)"}


def is_integer(value: Any) -> bool:
    """Whether it is a whole number of Python or NumPy, and no truth value."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_counts(label: str, least: int = 1, /, **counts: Any) -> None:
    """Refuse what is no integer of at least `least`; `label` is the function that was called.

    Raises:
        ValueError: with the argument's name and value.
    """
    for name, count in counts.items():
        if not is_integer(count) or count < least:
            raise ValueError(f"{label}: {name} must be an integer >= {least}, got {count!r}.")


def told_what_is_missing[F: Callable[..., Any]](fn: F) -> F:
    """Decorator of a function with options that must be given: a call without one is refused, with how to give it.

    Raises:
        TypeError: with the names of those that are missing.
    """
    kinds = inspect.signature(fn).parameters.values()
    needed = [p.name for p in kinds if p.kind is p.KEYWORD_ONLY and p.default is p.empty]

    @functools.wraps(fn)
    def checked(*args: Any, **kwargs: Any) -> Any:
        missing = [name for name in needed if name not in kwargs]
        if missing:
            called = ", ".join(f"{name}={EXAMPLES.get(name, '...')}" for name in missing)
            raise TypeError(
                f"{fn.__qualname__}: {', '.join(missing)} must be given, by name. Call {fn.__qualname__}(..., {called}); what it "
                f"means: help({fn.__qualname__})."
            )
        return fn(*args, **kwargs)

    return checked  # pyright: ignore[reportReturnType]
