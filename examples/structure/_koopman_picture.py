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

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _intervals import interval


def draw(
    series: Mapping[str, Mapping[str, np.ndarray]],
    scores: Mapping[str, Mapping[str, Mapping[float, tuple[float, float]]]],
    path: Path,
) -> None:
    """Series above, scores below; the colours of the titles say whose they are.

    Args:
        series: data set -> title -> series [series, steps], the first title that of real ones.
        scores: title of a score -> title of its row -> share of missing cells -> mean and half of the interval.
        path: of the PNG file.
    """
    titles = list(next(iter(series.values())))
    colours = {title: "0.3" if i == 0 else f"C{i - 1}" for i, title in enumerate(titles)}
    figure = plt.figure(figsize=(8, 1.1 * len(series) + 3.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.1 * len(series) + 0.5, 2.7])
    axes = above.subplots(len(series), len(titles), squeeze=False)
    for row, (name, drawn) in zip(axes, series.items(), strict=True):
        top = 1.3 * np.max(drawn[titles[0]])
        for axis, title in zip(row, titles, strict=True):
            if title in drawn:
                axis.plot(np.asarray(drawn[title]).T, color=colours[title], linewidth=0.8)
            axis.set(ylim=(-0.1, top), xticks=[], yticks=[])
        row[0].set_ylabel(name, fontsize=8)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(
            title.replace(" ", "\n", 1).replace(", ", ",\n"), fontsize=8, color=colours[title]
        )
    panels = below.subplots(1, len(scores), squeeze=False)[0]
    for axis, (title, rows) in zip(panels, scores.items(), strict=True):
        for i, (row, values) in enumerate(rows.items()):
            means, halves = np.array(list(values.values())).T
            halves = np.where(np.isfinite(halves), halves, 0.0)
            shares = 100 * np.array(list(values)) + 0.5 * (i - len(rows) / 2)  # side by side
            axis.errorbar(
                shares, means, halves, fmt="o-", color=colours[row], markersize=3, capsize=2, linewidth=1
            )  # fmt: skip
        if "error" in title:
            axis.set_yscale("log", nonpositive="clip")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("missing cells, percent", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


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
