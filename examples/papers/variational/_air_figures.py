"""The figures of air.py."""

from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

# Okabe and Ito: distinguishable with any colour vision.
COLORS = {
    "enum": "#0072B2",
    "mvd": "#009E73",
    "reinforce, leave-one-out": "#D55E00",
    "reinforce, no baseline": "#E69F00",
    "(none)": "#999999",
}
BOXES = ("#56B4E9", "#E69F00", "#CC79A7")
LINES = {"ELBO": "-", "IWELBO 2": "--", "RWS 5": "-."}
plt.rcParams.update(
    {
        "figure.constrained_layout.use": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
)


def draw(runs: dict, gradients: dict, scenes: Any, out: Path) -> None:
    """All figures; the scenes are those of the first run."""
    found(runs, scenes, out / "scenes.png")
    learning(runs, out / "learning.png")
    variance(gradients, out / "gradient_variance.png")


def found(runs: dict, scenes: Any, path: Path, num_images: int = 8) -> None:
    """Held-out images that hold digits, what one draw of the guide finds in them, and how counts are learned by estimator."""
    fit = runs["ELBO", "enum"].fit
    some = np.flatnonzero(scenes.test_counts > 0)[:num_images]
    x = scenes.test[some]

    @jax.jit
    def look(key: Any) -> Any:
        seen = fit.guide.simulate(key, x)
        rebuilt = fit.model.trace(seen.choices, x)
        return (
            seen.deterministic["count"],
            seen.deterministic["windows"],
            rebuilt.deterministic["canvas"],
        )

    counts, windows, canvas = map(np.asarray, look(jax.random.key(5)))
    figure = plt.figure(figsize=(11, 3.4))
    left, right = figure.subfigures(1, 2, width_ratios=[2.1, 1])
    axes = left.subplots(2, num_images)
    for i in range(num_images):
        for axis, picture in zip(axes[:, i], (x[i], canvas[i]), strict=True):
            axis.imshow(picture.reshape(scenes.shape), cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(visible=True, color="0.8")
            for (side, top, at), colour in zip(windows[i, : counts[i]], BOXES, strict=False):
                corner = (at - side / 2 - 0.5, top - side / 2 - 0.5)
                axis.add_patch(plt.Rectangle(corner, side, side, fill=False, ec=colour, lw=1.5))
        wrong = counts[i] != scenes.test_counts[some[i]]
        axes[0, i].set_title(
            f"{counts[i]} of {scenes.test_counts[some[i]]}",
            size=9,
            color="#D55E00" if wrong else "black",
        )
    axes[0, 0].set_ylabel("image", size=9)
    axes[1, 0].set_ylabel("rebuilt", size=9)
    left.suptitle(
        "New images: windows found (blue first, then orange), digits found of those there", size=10
    )
    axis = right.subplots()
    for (objective, name), run in runs.items():
        if objective == "ELBO":
            axis.plot(
                run.steps,
                run.accuracy,
                color=COLORS[name],
                lw=2,
                label=f"{name}: {run.accuracy[-1]:.2f}",
            )
    axis.set(xlabel="training step", ylabel="share of counts right", ylim=(0, 1.02), xlim=(0, None))
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, loc="lower right", title="gradient of the count by", title_fontsize=8)
    right.suptitle("Counts on new images; no label was seen", size=10)
    best = max(run.accuracy[-1] for run in runs.values())
    figure.suptitle(
        f"Digits found and counted without labels: {best:.0%} of the counts are right", size=12
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def learning(runs: dict, path: Path) -> None:
    """Accuracy of the count against steps and seconds."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.2), sharey=True)
    for (objective, name), run in runs.items():
        for axis, x in zip(axes, (run.steps, run.seconds), strict=True):
            axis.plot(
                x, run.accuracy, ls=LINES[objective], color=COLORS[name], lw=2,
                label=name if objective == "ELBO" else f"{objective}, {name}",
            )  # fmt: skip
    for axis, label in zip(axes, ("step", "seconds, compilation included"), strict=True):
        axis.axhline(0.9, color="black", lw=0.7, ls=":")
        axis.set(xlabel=label, xlim=(0, None), ylim=(0, 1))
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("held-out accuracy of the count")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle("One program, several estimators of whether there is one more digit")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def variance(gradients: dict, path: Path) -> None:
    """Variance and cost of every objective and estimator."""
    rows = [row for row in gradients if isinstance(row, tuple)]
    labels = [f"{objective}: {name}" for objective, name in rows]
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), sharey=True)
    for axis, numbers, label in (
        (axes[0], [gradients[r].variance for r in rows], "variance, nats²"),
        (axes[1], [1e3 * gradients[r].seconds for r in rows], "ms per training step"),
    ):
        bars = axis.barh(labels, numbers, color=[COLORS[name] for _, name in rows])
        axis.bar_label(bars, [f" {n:.3g}" for n in numbers], fontsize=8)
        axis.set_xlabel(label)
        axis.margins(x=0.2)
    smallest = min(gradients[r].variance for r in rows)
    axes[0].set(xscale="log", xlim=(0.5 * smallest, None))
    axes[0].xaxis.set_minor_formatter("")
    axes[0].invert_yaxis()
    figure.suptitle("Gradient of the guide at one checkpoint, 64 images")
    figure.savefig(path, dpi=150)
    plt.close(figure)
