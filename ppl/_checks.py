"""Checks of arguments that many functions share."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import PyTree

_ROUNDING = 1e-3  # of a sum of probabilities, some of them in half precision
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


def check_event(
    label: str, value: PyTree, event_shape: tuple[int, ...], *, is_rows: bool = False
) -> None:
    """Refuse an array whose last axes are not those of one value of a law; `label` says what it is.

    JAX would broadcast an axis of length 1, and one number would stand for a whole value. `is_rows`: one axis stands before.

    Raises:
        ValueError: with both shapes.
    """
    shape, num_event = np.shape(value), len(event_shape)
    batch, own = shape[: len(shape) - num_event], shape[len(shape) - num_event :]
    if len(shape) < num_event or own != event_shape or (is_rows and len(batch) != 1):
        lead = "rows" if is_rows else "*batch"
        raise ValueError(
            f"{label} has shape {shape}, and the last axes must be {event_shape}, to which nothing is broadcast. Give "
            f"[{', '.join([lead, *map(str, event_shape)])}]."
        )


def check_probabilities(label: str, /, **laws: np.ndarray) -> None:
    """Refuse what are no laws over the same outcomes, the last axis; `label` is the function that was called.

    Raises:
        ValueError: shapes that differ, no outcomes, a number below 0 or NaN, a sum that is not 1.
    """
    shapes = {name: np.shape(p) for name, p in laws.items()}
    if len(set(shapes.values())) > 1 or any(not s or not s[-1] for s in shapes.values()):
        raise ValueError(
            f"{label}: {' and '.join(laws)} must be probabilities of the same outcomes, got shapes {shapes}. Give one number for "
            "each outcome, in one order."
        )
    for name, p in laws.items():
        total = np.sum(p, -1)
        if not (np.all(np.asarray(p) >= 0) and np.all(np.abs(total - 1) <= _ROUNDING)):
            raise ValueError(
                f"{label}: {name} must be probabilities of outcomes, >= 0 and of sum 1; the least is {np.min(p):.4g}, sums lie "
                f"in {np.min(total):.4g} to {np.max(total):.4g}. Divide counts by their sum; give softmax(logits) in place of "
                "logits."
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
