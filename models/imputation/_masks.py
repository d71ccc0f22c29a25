"""Mechanisms that hide cells of complete series, with the share of hidden cells as asked for.

Each takes standardised values [N, T, D] and returns a boolean mask, true where a cell stays visible.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import expit

Values = Float[np.ndarray, "series time channels"]
Mask = Bool[np.ndarray, "series time channels"]
SLOPE = 2.0
BLOCK_STEPS = (5, 20)


def mcar(values: Values, rate: float, rng: np.random.Generator) -> Mask:
    """Missing completely at random: every cell with probability `rate`. Returns which cells stay visible.

    Args:
        values: [series, time, channels], complete.
        rate: share of cells to hide, in [0, 1).
        rng: NumPy's generator.

    Raises:
        ValueError: an impossible rate.
    """
    _check("mcar", rate)
    return rng.random(values.shape) >= rate


def mar(values: Values, rate: float, rng: np.random.Generator) -> Mask:
    """Missing at random given channel 0, which is always seen: P(miss) = logistic(2 x_t0 + b) for the other channels.

    Returns which cells stay visible.

    Args:
        values: [series, time, channels], complete.
        rate: share of hidden cells among the other channels, in [0, 1).
        rng: NumPy's generator.

    Raises:
        ValueError: there is one channel only; an impossible rate; values that are not finite.
    """
    _check("mar", rate)
    if values.shape[-1] < 2:
        raise ValueError(
            "mar: one channel is always seen and decides about the others, but there is one only. Use mcar, mnar or blocks."
        )
    _check_complete("mar", values[..., :1])
    drive = np.broadcast_to(SLOPE * values[..., :1], values[..., 1:].shape)
    seen = np.ones(values.shape, bool)
    seen[..., 1:] = rng.random(drive.shape) >= expit(drive + _offset(drive, rate))
    return seen


def mnar(values: Values, rate: float, rng: np.random.Generator) -> Mask:
    """Self-masked: P(miss | x_td) = logistic(2 x_td + b), so high values hide themselves. Returns which stay visible.

    Args:
        values: [series, time, channels], complete.
        rate: share of cells to hide, in [0, 1).
        rng: NumPy's generator.

    Raises:
        ValueError: an impossible rate; values that are not finite.
    """
    _check("mnar", rate)
    _check_complete("mnar", values)
    drive = SLOPE * values
    return rng.random(drive.shape) >= expit(drive + _offset(drive, rate))


def blocks(values: Values, rate: float, rng: np.random.Generator) -> Mask:
    """Blocks of 5 to 20 steps of single channels, laid at random until at least `rate` of each channel's cells are hidden.

    The last block of a channel is cut to length, so that each channel of each series hides round(rate T) cells.
    Returns which cells stay visible.

    Args:
        values: [series, time, channels], complete.
        rate: share of hidden cells of each channel, in [0, 1).
        rng: NumPy's generator.

    Raises:
        ValueError: an impossible rate.
    """
    _check("blocks", rate)
    num_series, num_steps, num_channels = values.shape
    seen = np.ones(values.shape, bool)
    target = round(rate * num_steps)
    for n in range(num_series):
        for d in range(num_channels):
            column = seen[n, :, d]
            while (left := target - (num_steps - column.sum())) > 0:
                length = min(rng.integers(BLOCK_STEPS[0], BLOCK_STEPS[1] + 1), num_steps)
                start = rng.integers(-length + 1, num_steps)
                free = np.flatnonzero(column[max(start, 0) : start + length]) + max(start, 0)
                column[free[:left]] = False
    return seen


MECHANISMS: dict[str, Callable[[Values, float, np.random.Generator], Mask]] = {
    "mcar": mcar,
    "mar": mar,
    "mnar": mnar,
    "blocks": blocks,
}


def _check(name: str, rate: float) -> None:
    if not 0 <= rate < 1:
        raise ValueError(
            f"{name}: rate must lie in [0, 1), got {rate}: it is the share of cells to hide, not a percentage. Give some, e.g. "
            "0.3."
        )


def _check_complete(name: str, values: Values) -> None:
    lost = int((~np.isfinite(values)).sum())
    if lost:
        raise ValueError(
            f"{name}: {lost} of {values.size} values that decide what is hidden are not finite. Give complete series, or hide "
            "cells with mcar or blocks, which read no value."
        )


def _offset(drive: np.ndarray, rate: float) -> float:
    """B with mean logistic(drive + b) = rate."""
    if rate == 0:
        return -np.inf
    from scipy.optimize import brentq  # on use: scipy.optimize takes a tenth of a second

    reach = 40 + np.abs(drive).max()
    return brentq(lambda b: expit(drive + b).mean() - rate, -reach, reach)  # pyright: ignore[reportReturnType]
