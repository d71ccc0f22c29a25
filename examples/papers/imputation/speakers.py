"""Who is speaking, with half of the sound missing? Series classified through what could stand in their gaps.

What it shows: JapaneseVowels (Kudo et al. 1999; in aeon's wheel), nine speakers, 25 steps of 12 cepstral coefficients, from which
cells are hidden: by default half of 11 channels, the more likely the higher channel 0 is ("mar"). One program describes series
and classes, and the mask where it tells of the values ("mnar"; supnotMIWAE, Kim et al. 2023, arXiv:2308.06738). It is trained
with and without ObsDropout, by the importance-weighted bound. The class of a series is then predicted through many fillings
of its gaps, each weighted by what it explains (particles over time, resampled on the way), and the gaps come with bands. Beside
it stand light peers: fillers with a linear classifier, a random forest, a classifier that sees the mask only.

Published: the paper's data sets cannot be had offline, so its tables are not reproduced. Its claim is that ObsDropout makes the
imputed values informative, and the prediction more accurate and better calibrated, than deterministic fillers do. The table
below says what comes of it here, in one cell and seed; `--seed` and `--rate` make others. The classifier of this recipe cannot
tell observed cells from generated ones; where it can, ObsDropout matters more: obs_dropout.py.

Expected (seed 0): bands over time cover what they say or a little more. With ObsDropout accuracy and NLL are a little better than
without, calibration is the same, and better than that of all peers. Interpolation with a linear classifier stays ahead in
accuracy, NLL and mean absolute error of cells. With `--data BasicMotions` the bands are too narrow: particles over time are worth
little more than one (bands.py moves them). Figures: docs/_data/figures, missing_data/bands and basic_motions. Run time: five
minutes of processor time, more for BasicMotions.

    python examples/papers/imputation/speakers.py [--smoke] [--data JapaneseVowels_eq] [--mechanism mar] [--rate 0.5]
        [--out speakers_output] [--record]
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import numpy as np
import protocol

from lapilli.models import imputation

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure

COLUMNS = ("accuracy", "macro_auroc", "nll", "ece", "mae", "crps", "coverage", "ess", "seconds")


def recipe(config: argparse.Namespace, dropout: float) -> protocol.Recipe:
    mechanism = "self_masking" if config.mechanism == "mnar" else None
    if config.smoke:
        switches = {"num_hidden": 8, "encoder": "conv", "classifier": "conv"}
        return protocol.Recipe(
            switches | {"missingness": mechanism}, dropout, 3, num_steps=60, check_every=30
        )
    return protocol.Recipe(
        {"num_hidden": 32, "classifier": "conv", "missingness": mechanism, "length_scale": 3.0},
        dropout,
        num_particles=5,
        num_steps=config.steps,
        check_every=50,
    )


def run(config: argparse.Namespace):
    """The problem, the scores of every method, and the last imputation and history by name."""
    task = protocol.problem(config.data, config.mechanism, config.rate, config.seed)
    fillers = ("zero", "interp") if config.smoke else ("zero", "locf", "interp", "knn", "mice")
    rows = protocol.peers(task, fillers=fillers)
    found, trained = {}, {}
    for name, dropout in (("without ObsDropout", 0.0), ("with ObsDropout", 0.3)):
        keys = jax.random.split(jax.random.key(config.seed))
        trained[name] = protocol.train(task, recipe(config, dropout), keys[0])
        size = 10 if config.smoke else 200
        rows[name], found[name] = protocol.evaluate(
            task, trained[name], keys[1], num_particles=size
        )
    return task, rows, found, trained


def report(config: argparse.Namespace, task: protocol.Problem, rows: dict) -> str:
    share = task.hidden.mean()
    lines = [
        f"{config.data}, {config.mechanism} {config.rate:.0%} (of all test cells {share:.0%} hidden), seed {config.seed}; "
        f"{len(task.test.values)} test series, errors of cells in training standard deviations",
        f"{'':<20}" + "".join(f"{c.replace('macro_', ''):>10}" for c in COLUMNS),
    ]
    for name, row in rows.items():
        cells = "".join(f"{row[c]:10.3f}" if c in row else f"{'':>10}" for c in COLUMNS)
        lines.append(f"{name:<20}{cells}")
    ours = rows["with ObsDropout"]
    best = {
        c: min if c in ("nll", "ece", "mae") else max for c in ("accuracy", "nll", "ece", "mae")
    }
    for column, choose in best.items():
        peers = {n: r[column] for n, r in rows.items() if "Obs" not in n and column in r}
        peer = choose(peers, key=peers.get)
        lines.append(
            f"{column}: {ours[column]:.3f} with ObsDropout, best peer {peers[peer]:.3f} ({peer})"
        )
    return "\n".join(lines)


NAMES = {"JapaneseVowels_eq": "bands", "BasicMotions": "basic_motions"}  # of records


def record(config: argparse.Namespace, task: protocol.Problem, rows: dict) -> None:
    """Every score of all methods, for the page of figures."""
    measures = {
        "coverage": "coverage of 90% bands",
        "accuracy": "accuracy",
        "nll": "NLL",
        "ece": "calibration error",
        "mae": "error of cells",
    }
    record_figure(
        f"missing_data/{NAMES[config.data]}",
        what=f"{config.data}, {config.mechanism} {config.rate:.0%} of the cells hidden, {len(task.test.values)} test series: "
        "coverage of 90% bands, accuracy, NLL in nats, calibration error, mean absolute error of hidden cells",
        value={
            f"{name}, {title}": row[measure]
            for measure, title in measures.items()
            for name, row in rows.items()
            if measure in row
        },
        seeds=str(config.seed),
        note="effective number of particles: "
        + "; ".join(f"{name} {row['ess']:.1f}" for name, row in rows.items() if "ess" in row),
        measures=["models/imputation", "examples/papers/imputation/protocol"],
    )


def draw(task: protocol.Problem, found: dict, trained: dict, out: Path) -> None:
    import matplotlib.pyplot as plt

    plot_series(plt, task, found["with ObsDropout"]).savefig(out / "series.png", dpi=130)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for color, (name, one) in zip(("C7", "C0"), trained.items(), strict=True):
        window = max(1, len(one.history) // 50)
        smooth = one.history[: len(one.history) // window * window].reshape(-1, window).mean(1)
        axes[0].plot(np.arange(len(smooth)) * window, smooth, color=color, label=name)
        axes[1].plot(*zip(*one.validation, strict=True), "o-", ms=3, color=color, label=name)
        probs, labels = found[name].probs, np.asarray(task.test.labels)
        confidence, hit = probs.max(-1), probs.argmax(-1) == labels
        order = np.array_split(np.argsort(confidence), min(10, len(labels) // 5))
        axes[2].plot(
            [confidence[o].mean() for o in order],
            [hit[o].mean() for o in order],
            "o-",
            ms=3,
            color=color,
            label=name,
        )
    low = np.quantile(np.concatenate([t.history for t in trained.values()]), 0.1)
    axes[0].set(xlabel="step", ylabel="bound (nats per series)", ylim=(low, None), title="training")
    axes[1].set(xlabel="step", ylabel="NLL (nats)", title="validation labels")
    axes[2].plot([0, 1], [0, 1], "k:", lw=0.8)
    axes[2].set(
        xlabel="confidence",
        ylabel="accuracy",
        title="calibration, test",
        xlim=(0, 1.02),
        ylim=(0, 1.02),
    )
    axes[1].legend(frameon=False)
    figure.savefig(out / "training.png", dpi=130)


def plot_series(plt, task: protocol.Problem, found: imputation.Imputation):
    """Four channels of three test series: observed cells, true hidden ones, mean and bands of the imputation."""
    series = [0, len(task.truth) // 2, len(task.truth) - 1]
    channels = np.unique(np.linspace(0, task.truth.shape[-1] - 1, 4).astype(int))
    levels = (0.05, 0.25, 0.75, 0.95)
    bands, mean = task.units.undo(found.quantiles(levels)), task.units.undo(found.mean)
    figure, axes = plt.subplots(
        len(channels), 3, figsize=(11, 1.9 * len(channels) + 0.6), sharex=True, sharey="row",
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for column, n in enumerate(series):
        guess = found.probs[n].argmax() if found.logits is not None else -1
        title = f"class {task.test.labels[n]}, predicted {guess} (p = {found.probs[n].max():.2f})"
        axes[0, column].set_title(title, fontsize=9)
        for row, d in enumerate(channels):
            axis, steps = axes[row, column], np.arange(task.truth.shape[1])
            for low, high, alpha in ((0, 3, 0.2), (1, 2, 0.35)):
                axis.fill_between(
                    steps, bands[low, n, :, d], bands[high, n, :, d], color="C0", alpha=alpha, lw=0
                )
            axis.plot(steps, mean[n, :, d], color="C0", lw=1)
            hidden = task.hidden[n, :, d]
            axis.plot(steps[~hidden], task.truth[n, ~hidden, d], "k.", ms=5)
            axis.plot(steps[hidden], task.truth[n, hidden, d], "o", mfc="none", mec="C3", ms=4)
            if column == 0:
                axis.set_ylabel(f"channel {d}")
    axes[-1, 1].set_xlabel(
        "step    (black: observed; red: hidden truth; blue: mean, 50% and 90% bands)"
    )
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Classification and imputation with missing cells."
    )
    parser.add_argument("--smoke", action="store_true", help="tiny networks, few steps")
    parser.add_argument("--data", default="JapaneseVowels_eq")
    parser.add_argument("--mechanism", default="mar", choices=("mcar", "mar", "mnar", "blocks"))
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("speakers_output"))
    config = parsed(parser, arguments)

    task, rows, found, trained = run(config)
    text = report(config, task, rows)
    print(text)
    (config.out / "report.txt").write_text(text + "\n")
    (config.out / "metrics.json").write_text(json.dumps(rows, indent=1))
    imputation.to_arviz(
        found["with ObsDropout"], task.test, jax.random.key(config.seed), truth=task.test_truth,
        path=config.out / "imputed.nc",
    )  # fmt: skip
    draw(task, found, trained, config.out)
    if config.record:
        record(config, task, rows)


if __name__ == "__main__":
    main()
