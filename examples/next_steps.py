"""What comes next in series of one kind: a variational recurrent network (PV-RNN), with bands.

What it shows: `SeriesForecaster` learns from forty motions of unequal lengths, with gaps; it explains the known steps of a new
one by error regression, and goes on. Errors stand step by step beside the last value and the mean of all.

Data: aeon's BasicMotions, six channels of a wrist, 40 motions to learn from and 40 new ones, 60 steps, a tenth of them lost.
Expected: 0.6 of a channel's spread at the first step, where the last value errs by 1.1 and the mean by 0.9; bands hold 92 %.
Run time: half a minute on 2 CPU cores.

    python examples/next_steps.py [--smoke] [--out next_steps.png]
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from aeon.datasets import load_basic_motions

from lapilli.models.pv_rnn import SeriesForecaster

AHEAD = 5


def load(num_new: int, num_steps: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Motions to learn from; new ones up to the last steps; the last steps."""
    rng = np.random.default_rng(0)
    train, new = (
        load_basic_motions(split=s)[0].swapaxes(1, 2)[:, :num_steps] for s in ("train", "test")
    )
    train = [x[: rng.integers(len(x) // 2, len(x) + 1)].copy() for x in train]
    for x in train:
        x[rng.random(len(x)) < 0.1] = np.nan
    chosen = np.linspace(0, len(new) - 1, num_new).astype(int)  # of all four kinds
    known, future = new[chosen, :-AHEAD].copy(), new[chosen, -AHEAD:]
    known[rng.random(known.shape[:2]) < 0.1] = np.nan
    return train, known, future


def solve(train, known, num_steps: int, num_draws: int) -> np.ndarray:
    """Draws of the steps to come, [draws, motions, AHEAD, channels]."""
    rounds = {"num_draws": num_draws, "num_iterations": 20 if num_steps > 100 else 1}
    model = SeriesForecaster(num_steps=num_steps, random_state=0, **rounds).fit(train)
    return model.sample(known, horizon=AHEAD)


def draw(known, future, mean, low, high, out: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), sharey=True, layout="constrained")
    steps = np.arange(known.shape[1] + AHEAD)
    for axis, series in zip(axes, np.linspace(0, len(known) - 1, 3).astype(int), strict=True):
        axis.plot(steps[:-AHEAD], known[series, :, 0], "k.-", lw=0.8, ms=3, label="known")
        axis.plot(steps[-AHEAD:], future[series, :, 0], "kx", label="what came")
        axis.plot(steps[-AHEAD:], mean[series, :, 0], "C0", label="mean, 90 % band")
        axis.fill_between(steps[-AHEAD:], low[series, :, 0], high[series, :, 0], alpha=0.3)
        axis.set(xlabel="step")
    axes[0].set(ylabel="acceleration")
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle("Five steps ahead, of motions that were not in the fit")
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(smoke: bool = False, out: Path = Path("next_steps.png")) -> dict[str, float]:
    train, known, future = load(*(4, 12) if smoke else (40, 60))
    draws = solve(train, known, *(5, 4) if smoke else (1500, 100))
    mean, (low, high) = draws.mean(0), np.quantile(draws, [0.05, 0.95], axis=0)
    spread, centre = np.nanstd(np.concatenate(train), 0), np.nanmean(np.concatenate(train), 0)
    last = np.stack([x[~np.isnan(x[:, 0])][-1] for x in known])[:, None] + 0 * future
    error = lambda f: np.sqrt(np.mean(((f - future) / spread) ** 2, axis=(0, 2)))
    errors = {
        "this": error(mean),
        "last value": error(last),
        "mean": error(centre + 0 * future),
    }
    for name, values in errors.items():
        print(f"{name:<12}", values.round(2))
    held = np.mean((low <= future) & (future <= high))
    print(f"90 % bands hold {held:.0%} of what came")
    draw(known, future, mean, low, high, out)
    return {name: float(values[0]) for name, values in errors.items()} | {"held": float(held)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The next steps of motions.")
    parser.add_argument("--smoke", action="store_true", help="few steps and motions")
    parser.add_argument("--out", type=Path, default=Path("next_steps.png"), help="the picture")
    main(**vars(parser.parse_args()))
