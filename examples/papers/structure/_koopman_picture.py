"""The picture of koopman.py."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from _koopman_rows import KINDS
from _koopman_scores import Score
from _koopman_table import REAL, Result, Table

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _intervals import interval

MOST_SERIES = 3  # data sets that a picture has room for


def draw(
    series: Mapping[str, Mapping[str, np.ndarray]],
    scores: Mapping[str, Mapping[str, Mapping[float, tuple[float, float]]]],
    path: Path,
) -> None:
    """A line for each model: series that it draws, by data set, and its scores.

    Args:
        series: data set -> title -> series [series, steps], the first title that of real ones.
        scores: title of a score -> title of its row -> share of missing cells -> mean and half of the interval.
        path: of the PNG file.
    """
    shown = list(series.items())[:MOST_SERIES]
    titles = list(shown[0][1])
    figure, axes = plt.subplots(
        len(titles), len(shown) + len(scores), figsize=(10, 0.72 * len(titles) + 1.2),
        layout="constrained", squeeze=False, width_ratios=[1] * len(shown) + [1.6] * len(scores),
    )  # fmt: skip
    for column, (name, drawn) in enumerate(shown):
        low, high = np.min(drawn[titles[0]]), np.max(drawn[titles[0]])
        for axis, title in zip(axes[:, column], titles, strict=True):
            if title in drawn:
                colour = "0.3" if title == titles[0] else "C0"
                axis.plot(np.asarray(drawn[title]).T, color=colour, linewidth=0.9)
            margin = 0.15 * (high - low)
            axis.set(ylim=(low - margin, high + margin), xticks=[], yticks=[])
        axes[0, column].set_title(f"{name}\n(five series)", fontsize=9)
    for axis, title in zip(axes[:, 0], titles, strict=True):
        axis.set_ylabel(title.replace(", ", ",\n"), fontsize=9, rotation=0, ha="right", va="center")
    for column, (title, rows) in enumerate(scores.items(), len(shown)):
        grid = axes[0, column].get_gridspec()
        for axis in axes[:, column]:
            axis.remove()
        _dots(figure.add_subplot(grid[:, column]), title, rows, titles)
    figure.suptitle(_claim(scores), fontsize=12)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _dots(
    axis: Any,
    title: str,
    rows: Mapping[str, Mapping[float, tuple[float, float]]],
    titles: list[str],
) -> None:
    """One score, a line for each model: with the fewest cells missing, and with the share in the middle."""
    rates = sorted(next(iter(rows.values())))
    some = [rates[0], *rates[len(rates) // 2 : len(rates) // 2 + 1]]
    for rate, colour, marker in zip(dict.fromkeys(some), ("C0", "C1"), "os", strict=False):
        places = [titles.index(row) for row in rows]
        means, halves = np.array([rows[row][rate] for row in rows]).T
        is_log = "error" in title
        down = np.minimum(halves, 0.9 * means) if is_log else halves
        label = f"{rate:.0%} missing" if rate else "all cells there"
        axis.errorbar(
            means,
            places,
            xerr=np.nan_to_num([down, halves]),
            fmt=marker,
            ms=5,
            capsize=2,
            color=colour,
            label=label,
        )
        if is_log:
            axis.set_xscale("log")
    axis.set(ylim=(len(titles) - 0.5, -0.5), yticks=[])
    axis.set_xlabel(title.split(": ")[-1], fontsize=9)
    axis.set_title(title.split(": ")[0], fontsize=9)
    axis.grid(axis="x", alpha=0.25)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.legend(fontsize=8, loc="upper right", frameon=False)


def _claim(scores: Mapping[str, Mapping[str, Mapping[float, tuple[float, float]]]]) -> str:
    """What the first score says, with all cells there."""
    rows = {row: values[min(values)][0] for row, values in next(iter(scores.values())).items()}
    ranked = sorted(rows, key=lambda row: -rows[row])
    return f"Most nats by '{ranked[0]}' ({rows[ranked[0]]:.1f}), fewest by '{ranked[-1]}' ({rows[ranked[-1]]:.1f})"


def pictured(results: list[Result], table: Table) -> tuple[Any, Any]:
    """Series of seed 0 with the fewest missing cells, and the predictive error and bound on the first data set."""
    title = lambda kind: KINDS.get(kind, REAL)
    series: dict[str, dict[str, np.ndarray]] = {}
    for (data, kind, _, seed), _, _, drawn in results:
        if seed == 0:
            series.setdefault(data, {}).setdefault(title(kind), np.array(drawn))
    scores: dict[str, Any] = {}
    for (data, kind, rate), found in table.items():
        for field, what in (
            ("nats", "bound, nats per observed cell"),
            ("predictive", "error of the next step"),
        ):
            column = found[:, Score._fields.index(field)]
            if kind != REAL and data == next(iter(series)):
                panel = scores.setdefault(f"{data}: {what}", {})
                panel.setdefault(title(kind), {})[rate] = interval(column)
    return series, scores
