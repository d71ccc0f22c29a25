"""Means over seeds with 95 % intervals: the numbers, and a picture of many."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy import stats


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean of independent values (seeds, sequences) and half of its 95 % t interval, which is infinite for one value."""
    count = len(values)
    if count < 2:
        return float(np.mean(values)), np.inf
    half = stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count)
    return float(np.mean(values)), float(half)


def draw_intervals(
    panels: Mapping[str, Mapping[str, tuple[float, float]]],
    path: Path,
    mark: float | None = 0.0,
    *,
    claim: str = "",
    unit: str = "",
    has_one_scale: bool = False,
) -> None:
    """A panel for each measure, in it a line for each row; the rows are those of the first panel.

    An interval that leaves out the mark is drawn in colour, one that holds it in grey.

    Args:
        panels: title of a panel -> name of a row -> mean and half of its interval.
        path: of the PNG file.
        mark: where a thin line stands, e.g. 0 for differences.
        claim: what the picture shows, above it.
        unit: what the numbers are, below each panel.
        has_one_scale: whether all panels have the same numbers below.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = list(next(iter(panels.values())))
    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    height = (
        down * (0.9 + 0.28 * len(names))
        + 0.2 * (claim.count("\n") + bool(claim))
        + 0.2 * bool(unit)
    )
    figure, axes = plt.subplots(
        down, across, figsize=(2.2 + 3.0 * across, height), sharex=has_one_scale, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, rows) in zip(axes.flat, panels.items(), strict=False):
        if mark is not None:
            axis.axvline(mark, color="0.7", linewidth=1)
        places = np.array([i for i, name in enumerate(names) if name in rows])
        means, halves = np.array([rows[names[i]] for i in places]).T
        halves = np.where(np.isfinite(halves), halves, 0.0)
        is_nothing = np.zeros(len(means), bool) if mark is None else np.abs(means - mark) <= halves
        for chosen, color in ((is_nothing, "0.6"), (~is_nothing, "C0")):
            axis.errorbar(
                means[chosen], places[chosen], xerr=halves[chosen], fmt="o", markersize=4, capsize=2, linewidth=1.5,
                color=color,
            )  # fmt: skip
        axis.set(title=title, yticks=range(len(names)), yticklabels=names, xlabel=unit)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelbottom=True)
    axes[0, 0].invert_yaxis()
    if claim:
        figure.suptitle(claim)
    figure.savefig(path, dpi=120)
    plt.close(figure)
