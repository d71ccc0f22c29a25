"""Digits of log-weights: where they are so large that rounding makes a nat of them, what draws are worth cannot be told."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree


def lost_nats(log_weights: Array) -> Array:
    """What rounding leaves unknown of the largest finite one, under transformations too."""
    size = jnp.abs(jnp.where(jnp.isfinite(log_weights), log_weights, 0.0))
    return jnp.spacing(size.max(initial=0.0))


def unknown_digits(log_weights: PyTree) -> str | None:
    """What rounding leaves unknown of log-weights, in words; None where it is less than a nat."""
    found = np.asarray(log_weights)
    is_number = np.isfinite(found)
    if not jnp.issubdtype(found.dtype, jnp.floating) or not is_number.any():
        return None
    largest = np.abs(found[is_number]).max()
    if not np.spacing(largest) >= 1.0:
        return None
    return (
        f"The log-weights are as large as {largest:.3g}, which {found.dtype} knows to {np.spacing(largest):.2g} nats: what the "
        "draws are worth cannot be told. A log-density that grows without bound has no posterior: look at its factors. Else turn "
        "on double precision, jax.config.update('jax_enable_x64', True)."
    )


def told_digits(log_weights: PyTree) -> list[str]:
    """`unknown_digits` as one of several things that are wrong, told behind another and before a full stop."""
    text = unknown_digits(log_weights)
    return [] if text is None else [text[0].lower() + text[1:].rstrip(".")]
