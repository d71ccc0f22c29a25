"""The figures of demo.py."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

# Okabe and Ito: distinguishable with any colour vision.
COLORS = {
    "enum": "#0072B2",
    "reinforce": "#D55E00",
    "mvd": "#009E73",
    "gumbel_softmax": "#CC79A7",
    "reinforce, no baseline": "#E69F00",
}
STYLE = {
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}
plt.rcParams.update(STYLE)


def draw(
    model: Any, guide: Any, data: Any, runs: dict, found: dict, noise: dict, biased: set, out: Path
) -> None:
    """All figures. Except for the comparisons they show the run under enumeration."""
    params, probs = runs["enum"].fit.params, found["enum"].class_probs
    num_classes, num_columns = probs.shape[1], 12
    classes = jnp.repeat(jnp.arange(num_classes), num_columns)

    @jax.jit
    def run(params: Any, key: Any) -> Any:
        blank = jnp.zeros((len(classes), data.train.shape[1]))
        generated, _ = model.bind(params).generate(key, {"k": classes}, blank)
        inferred = guide.bind(params).simulate(key, data.test)
        rebuilt = model.bind(params).trace(inferred.choices, data.test)
        return [t.deterministic["pixels"] for t in (generated, rebuilt)], inferred.choices["z"]

    pixels, codes = jax.tree.map(np.asarray, run(params, jax.random.key(5)))
    generated, rebuilt = (p.reshape(-1, *data.shape) for p in pixels)
    by_class = generated.reshape(num_classes, num_columns, *data.shape)
    samples(by_class, probs.mean(0), out / "samples.png")
    reconstructions(
        data.test[:16].reshape(-1, *data.shape), rebuilt[:16], out / "reconstructions.png"
    )
    latents(codes, probs.argmax(-1), data.labels, out / "latents.png")
    bound = lambda run: run.fit.history["value"] / len(data.train)
    curves = {name: (run.steps, run.seconds, bound(run)) for name, run in runs.items()}
    bounds(curves, biased, out / "bounds.png")
    gradient_variance(noise, biased, out / "gradient_variance.png")


def tile(images: np.ndarray, gap: int = 2) -> np.ndarray:
    """Images [rows, columns, height, width] as one picture with light gaps."""
    rows, columns, height, width = images.shape
    picture = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
    for r in range(rows):
        for c in range(columns):
            top, left = r * (height + gap), c * (width + gap)
            picture[top : top + height, left : left + width] = images[r, c]
    return picture


def show(axis, images: np.ndarray) -> tuple[float, float]:
    """Draw a grid of images; returns the pitch of rows and columns in pixels."""
    gap = 2 if images.shape[-1] > 10 else 1
    axis.imshow(tile(images, gap), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axis.grid(False)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xticks([])
    axis.set_yticks([])
    return images.shape[-2] + gap, images.shape[-1] + gap


def samples(images: np.ndarray, shares: np.ndarray, path: Path) -> None:
    """One row per class, the most frequent first."""
    order = np.argsort(-shares)
    figure, axis = plt.subplots(figsize=(7.2, 0.5 * len(images) + 0.8))
    pitch, _ = show(axis, images[order])
    axis.set_yticks(
        pitch * np.arange(len(images)) + (pitch - 2) / 2,
        [f"class {k}  ({100 * shares[k]:.0f}%)" for k in order],
    )
    axis.set_title(
        "Generated: pixel probabilities of draws from each class\n(share of held-out images in brackets)"
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def reconstructions(originals: np.ndarray, rebuilt: np.ndarray, path: Path) -> None:
    figure, axis = plt.subplots(figsize=(10, 1.7))
    pitch, _ = show(axis, np.stack([originals, rebuilt]))
    axis.set_yticks([pitch / 2, 1.5 * pitch], ["held out", "rebuilt"])
    axis.set_title("Held-out images and their reconstructions from one draw of (k, z)")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def latents(codes: np.ndarray, classes: np.ndarray, labels: np.ndarray, path: Path) -> None:
    """Codes of the held-out images on a plane, coloured by digit and by class."""
    from sklearn.manifold import TSNE

    plane = TSNE(perplexity=min(30, len(codes) / 4), init="pca", random_state=0).fit_transform(
        codes
    )
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.8), sharex=True, sharey=True)
    palette = plt.get_cmap("tab10").colors
    for axis, groups, title in zip(
        axes,
        (labels, classes),
        ("digit (never seen in training)", "class, argmax q(k | x)"),
        strict=True,
    ):
        for group in np.unique(groups):
            chosen = plane[groups == group]
            axis.scatter(*chosen.T, s=14, color=palette[group % 10], label=str(group), linewidths=0)
            axis.annotate(
                str(group),
                np.median(chosen, 0),
                ha="center",
                va="center",
                weight="bold",
                bbox={
                    "boxstyle": "circle,pad=0.2",
                    "fc": "white",
                    "ec": palette[group % 10],
                    "lw": 1.5,
                },
            )
        axis.set_title(f"coloured by {title}")
        axis.set(xticks=[], yticks=[])
        axis.set_xlabel("t-SNE 1")
    axes[0].set_ylabel("t-SNE 2")
    figure.suptitle("Codes z of the held-out images")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def bounds(curves: dict, biased: set, path: Path) -> None:
    """Training bound against steps and against the clock: name -> (steps, seconds, value at every step)."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for name, (steps, seconds, values) in curves.items():
        edges = np.concatenate([[0], steps])
        means = [values[a:b].mean() for a, b in zip(edges, steps, strict=False)]
        for axis, x in zip(axes, (steps, seconds), strict=True):
            label = f"{name} (biased)" if name in biased else name
            axis.plot(x, means, color=COLORS[name], label=label, lw=2, marker="o", ms=3)
    low = np.concatenate([values[len(values) // 20 :] for _, _, values in curves.values()])
    axes[0].set_ylim(np.quantile(low, 0.005), None)
    axes[0].set(xlabel="step", ylabel="training ELBO, nats per image", title="Per step")
    axes[1].set(xlabel="seconds, compilation included", title="Per second")
    axes[1].set_xlim(0, None)
    axes[0].legend(title="estimator of the class", loc="lower right")
    figure.suptitle("The same program under different gradient estimators")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def gradient_variance(noise: dict, biased: set[str], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, sharex=True)
    for axis, (when, title) in zip(
        axes, (("early", "after a tenth of training"), ("late", "at its end")), strict=True
    ):
        names = list(noise[when])
        variances = [noise[when][name]["variance"] for name in names]
        bars = axis.barh(names, variances, color=[COLORS[n] for n in names])
        for bar, name in zip(bars, names, strict=True):
            if name in biased:
                bar.set(hatch="//", edgecolor="white")
        axis.bar_label(
            bars,
            [
                f" {v:.2g}" + (" (biased)" if n in biased else "")
                for n, v in zip(names, variances, strict=True)
            ],
        )
        axis.set(xscale="log", xlabel="total variance, nats²", title=title)
        axis.grid(False, axis="y")
        axis.margins(x=0.2)
    axes[0].invert_yaxis()
    figure.suptitle(
        "Variance of the gradient in the classifier's weights, same parameters for every estimator"
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)
