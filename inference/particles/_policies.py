"""When to resample: functions (step, log_weights) -> boolean, Python's own where it does not depend on the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ...ppl._checks import check_counts

Array = jax.Array
Policy = Callable[[Array, Array], Any]


def ess_below(fraction: float = 0.5) -> Policy:
    """Resample when the effective sample size falls below `fraction` of the particles.

    The evidence estimate stays unbiased (Whiteley, Lee and Heine 2016, arXiv:1309.2918).

    Args:
        fraction: between 0 and 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"ess_below: fraction must lie in (0, 1], got {fraction}.")

    def policy(_: Array, log_weights: Array) -> Array:
        log_ess = -jax.nn.logsumexp(2 * log_weights)
        return log_ess < jnp.log(fraction * len(log_weights))

    return policy


def every(period: int = 1) -> Policy:
    """Resample before step `period`, 2 `period`, ...; before every step by default.

    Args:
        period: number of steps, at least 1.
    """
    check_counts("every", period=period)
    if period == 1:
        return lambda *_: True
    return lambda step, _: step % period == 0


def never() -> Policy:
    """No resampling: importance sampling with a sequence of weights."""
    return lambda *_: False


def window(start: int, stop: int, policy: Policy | None = None) -> Policy:
    """`policy` (default: every step) from step `start` up to, not including, step `stop`; weights accumulate outside.

    Args:
        start: first step.
        stop: end of the window.
        policy: the policy inside.
    """
    if not 0 <= start < stop:
        raise ValueError(f"window: needs 0 <= start < stop, got {start} and {stop}.")
    inside = policy or every()
    return lambda step, lw: jnp.logical_and((step >= start) & (step < stop), inside(step, lw))
