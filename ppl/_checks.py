"""Checks of arguments that many functions share."""

from __future__ import annotations

from typing import Any


def check_counts(label: str, least: int = 1, /, **counts: Any) -> None:
    """Refuse what is no integer of at least `least`; `label` is the function that was called.

    Raises:
        ValueError: with the argument's name and value.
    """
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < least:
            raise ValueError(f"{label}: {name} must be an integer >= {least}, got {count!r}.")
