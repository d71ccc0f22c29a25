"""When to resample: functions (step, log_weights) -> boolean, Python's own where it does not depend on the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ....ppl._checks import check_counts

Array = jax.Array
Policy = Callable[[Array, Array], Any]


def ess_below(fraction: float = 0.5) -> Policy:
    """Resample when the effective sample size falls below `fraction` of the particles.

    The evidence estimate stays unbiased (Whiteley, Lee and Heine 2016, arXiv:1309.2918).

    Args:
        fraction: between 0 and 1.

    Returns:
        The policy, for `smc` and what stands on it.

    Raises:
        ValueError: `fraction` is outside of (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"ess_below: fraction must lie in (0, 1], got {fraction}.")

    return _EssBelow(fraction)


def every(period: int = 1) -> Policy:
    """Resample before steps 0, `period`, 2 `period`, ...; before every step by default.

    The steps of a program's scans count from 0, the moves of a `FeynmanKac` from 1.

    Args:
        period: number of steps, at least 1.

    Returns:
        The policy, for `smc` and what stands on it.

    Raises:
        ValueError: `period` is no integer of at least 1.
    """
    check_counts("every", period=period)
    return _Every(period)


def never() -> Policy:
    """No resampling: importance sampling with a sequence of weights."""
    return _Never()


def window(start: int, stop: int, policy: Policy | None = None) -> Policy:
    """`policy` (default: every step) from step `start` up to, not including, step `stop`; weights accumulate outside.

    Args:
        start: first step.
        stop: end of the window.
        policy: the policy inside.

    Raises:
        ValueError: not 0 <= start < stop.
    """
    if not 0 <= start < stop:
        raise ValueError(f"window: needs 0 <= start < stop, got {start} and {stop}.")
    return _StepWindow(start, stop, policy or every())


# Values that compare, so that a run compiled with one serves for the next.


@dataclasses.dataclass(frozen=True)
class _EssBelow:
    fraction: float

    def __call__(self, step: Array, log_weights: Array) -> Array:
        # 1 / ESS; the log-weights are normalised, so that no weight exceeds 1 and the sum needs no largest one taken out.
        return jnp.exp(2 * log_weights).sum() > 1 / (self.fraction * len(log_weights))


@dataclasses.dataclass(frozen=True)
class _Every:
    period: int

    def __call__(self, step: Array, log_weights: Array) -> PyTree:
        return self.period == 1 or step % self.period == 0


@dataclasses.dataclass(frozen=True)
class _Never:
    def __call__(self, step: Array, log_weights: Array) -> bool:
        return False


@dataclasses.dataclass(frozen=True)
class _StepWindow:
    start: int
    stop: int
    policy: Policy

    def __call__(self, step: Array, log_weights: Array) -> Array:
        is_inside = (step >= self.start) & (step < self.stop)
        return jnp.logical_and(is_inside, self.policy(step, log_weights))
