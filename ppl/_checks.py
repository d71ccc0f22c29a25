"""Checks of arguments that many functions share."""

from __future__ import annotations

import numpy as np
from jaxtyping import PyTree

MOST = 2**31 - 1  # of a count: beyond it, arrays have no index in 32 bits


def is_integer(value: float) -> bool:
    """Whether it is a whole number of Python or NumPy, and no truth value."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_seconds(label: str, seconds: float | None) -> None:
    """Refuse a limit of time that is no positive number, or None; `label` is the function that was called.

    Raises:
        ValueError: with the value.
    """
    if seconds is not None and not seconds > 0:
        raise ValueError(
            f"{label}: max_seconds must be positive, got {seconds!r}. Give seconds, or None for as long as it takes."
        )


def check_counts(label: str, least: int = 1, /, **counts: PyTree) -> None:
    """Refuse what is no integer of at least `least`; `label` is the function that was called.

    Raises:
        ValueError: with the argument's name and value.
    """
    for name, count in counts.items():
        if not is_integer(count) or not least <= count <= MOST:
            most = " and < 2^31" if is_integer(count) and count > MOST else ""
            raise ValueError(f"{label}: {name} must be an integer >= {least}{most}, got {count!r}.")
