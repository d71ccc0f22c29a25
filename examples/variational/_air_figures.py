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
    found(runs["ELBO", "enum"].fit, scenes, out / "scenes.png")
    learning(runs, out / "learning.png")
    variance(gradients, out / "gradient_variance.png")


def found(fit: Any, scenes: Any, path: Path, num_images: int = 24) -> None:
    """Held-out images with the windows of one draw of the guide, and what the model makes of them."""
    x = scenes.test[:num_images]

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
    columns = num_images // 2
    figure, axes = plt.subplots(4, columns, figsize=(columns * 0.95, 4.3))
    for i in range(num_images):
        block, column = divmod(i, columns)
        for row, picture in ((2 * block, x[i]), (2 * block + 1, canvas[i])):
            axis = axes[row, column]
            axis.imshow(picture.reshape(scenes.shape), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        wrong = counts[i] != scenes.test_counts[i]
        axes[2 * block, column].set_title(
            f"{counts[i]} of {scenes.test_counts[i]}", size=8, color="#D55E00" if wrong else "black"
        )
        for t in range(counts[i]):
            side, top, left = windows[i, t]
            corner = (left - side / 2 - 0.5, top - side / 2 - 0.5)
            for row in (2 * block, 2 * block + 1):
                axes[row, column].add_patch(
                    plt.Rectangle(corner, side, side, fill=False, ec=BOXES[t], lw=1.3)
                )
    for block in range(2):
        axes[2 * block, 0].set_ylabel("held out", size=8)
        axes[2 * block + 1, 0].set_ylabel("rebuilt", size=8)
    figure.suptitle(
        "Windows of one draw of the guide, in order blue, orange, purple; count found of true count",
        size=10,
    )
    figure.savefig(path, dpi=150)
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
