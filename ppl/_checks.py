"""Checks of arguments that many functions share."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import PyTree

MOST = 2**31 - 1  # of a count: beyond it, arrays have no index in 32 bits


def is_integer(value: float) -> bool:
    """Whether it is a whole number of Python or NumPy, and no truth value."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def log_number(label: str, value: ArrayLike | None) -> Array:
    """The value as an array; refuses what is no log-weight, truth values above all. `label` says whose it is.

    Raises:
        TypeError: with its type.
    """
    found = None if value is None else jnp.asarray(value)
    if found is not None and any(
        jnp.issubdtype(found.dtype, k) for k in (jnp.floating, jnp.integer)
    ):
        return found
    kind = "nothing" if found is None else found.dtype
    raise TypeError(
        f"{label}: a log-weight in nats is wanted, got {kind}; True and False would count as 1 and 0 nats. For a constraint "
        "write jnp.where(holds, 0.0, -jnp.inf)."
    )


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
