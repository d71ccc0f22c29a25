"""Question: how does supnotMIWAE, with and without ObsDropout, compare with light peers when cells are missing?

Cells of the protocol are data set / mechanism / rate, e.g. JapaneseVowels_eq/mcar/0.9; every method sees the same masks. The
answer is a table of means over seeds with halves of their 95% intervals, and paired differences to the best peer. Where the
linear classifier on interpolated series is at its ceiling (JapaneseVowels_eq at 10%, or at 50% completely at random) no method
can show anything; the cells that tell are 90% anywhere, "mar" at 50%, and ItalyPowerDemand at 50%. The result of every cell and
seed is written to a folder when it is known, and read from there by a run that comes after it. Columns with a star are scores of
class probabilities at the temperature that suits the method's predictions of the validation series best.

With an environment that has PyPOTS, its networks take part, see _peers/imputation_pypots.py.

usage: python benchmarks/models/imputation.py [--cells ItalyPowerDemand/mcar/0.5 ...] [--seeds 2] [--steps 400] [--minirocket]
    [--pypots-python pypots-env/bin/python] [--out imputation_table] [--record]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import lapilli
from lapilli.models.imputation import Series

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "papers" / "imputation"))
import protocol

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
from _intervals import interval
from _record import commit, parsed, record_figure

COLUMNS = {
    "accuracy": "accuracy",
    "macro_auroc": "auroc",
    "nll": "nll",
    "calibrated_nll": "nll*",
    "brier": "brier",
    "ece": "ece",
    "calibrated_ece": "ece*",
    "mae": "mae",
    "crps": "crps",
    "coverage": "coverage",
    "ess": "ess",
    "training_seconds": "training",
    "seconds": "seconds",
}
BEST = {
    "accuracy": max,
    "nll": min,
    "calibrated_nll": min,
    "ece": min,
    "calibrated_ece": min,
    "mae": min,
}
SCRIPT = Path(__file__).resolve().parents[1] / "_peers" / "imputation_pypots.py"
DROPOUT = {"supnotMIWAE": 0.0, "with ObsDropout": 0.3}
TORCH = ("saits", "brits", "brits, labels", "sup-not-miwae")


def scores(cell: str, seed: int, config: argparse.Namespace) -> dict[str, dict[str, float]]:
    name, mechanism, rate = cell.split("/")
    task = protocol.problem(name, mechanism, float(rate), seed)
    found = protocol.peers(task, has_minirocket=config.minirocket)
    keys = jax.random.split(jax.random.key(seed), 3)
    for member, dropout in DROPOUT.items():
        recipe = protocol.Recipe(
            {
                "num_hidden": 32,
                "num_latents": max(task.truth.shape[-1], 4),
                "classifier": "conv",
                "length_scale": 3.0,
                "missingness": "self_masking" if mechanism == "mnar" else None,
            },
            dropout,
            num_particles=5,
            num_steps=config.steps,
            learning_rate=0.02,
        )
        trained = protocol.train(task, recipe, keys[0])
        # Particles that carry their cells are worth less than those whose cells are integrated out.
        size = 200 if mechanism == "mnar" else 100
        row, _ = protocol.evaluate(task, trained, keys[1], num_particles=size)
        found[member] = row | {"training_seconds": trained.seconds}
    found["gru-d"] = protocol.recurrent_peer(task, recipe, keys[2])
    if config.pypots_python:
        found |= torch_peers(config.pypots_python, task, seed)
    return found


def torch_peers(python: str, task: protocol.Problem, seed: int) -> dict[str, dict[str, float]]:
    """Scores of the peers that need an environment of their own; they get what the others get."""
    holed = lambda data: np.where(data.observed, data.values, np.nan)
    problem = {"num_classes": task.num_classes, "seed": seed, "test_x": holed(task.test)}
    parts: dict[str, Series] = {"train": task.train, "valid": task.valid}
    for name, data in parts.items():
        problem |= {f"{name}_x": holed(data), f"{name}_y": data.labels}
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{name}.npz") for name in ("problem", "answer")]
        np.savez(files[0], **problem)
        # PyPOTS leaves files where it runs.
        subprocess.run([os.path.abspath(python), str(SCRIPT), *files], check=True, cwd=folder)
        answer = dict(np.load(files[1]))
    return protocol.outside_peers(task, answer)


def known(cell: str, seed: int, config: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Scores from the folder, or new ones that are written to it."""
    kind = "minirocket" if config.minirocket else "light"
    kind += "-torch" if config.pypots_python else ""
    path = config.out / f"{cell.replace('/', '-')}-{config.steps}-{kind}-{seed}.json"
    if not path.exists():
        found = scores(cell, seed, config)
        config.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    return json.loads(path.read_text())


def table(cell: str, runs: list[dict[str, dict[str, float]]]) -> str:
    lines = [
        f"{cell}, {len(runs)} seed(s)",
        f"{'':<18}" + "".join(f"{title:>15}" for title in COLUMNS.values()),
    ]
    for method in runs[0]:
        line = f"{method:<18}"
        for column in COLUMNS:
            values = np.array([run[method].get(column, np.nan) for run in runs])
            mean, half = interval(values)
            line += " " * 15 if np.isnan(values).all() else f"{mean:8.3f}±{half:<6.3f}"
        lines.append(line)
    for column in BEST:
        peer = best_peer(runs, column)
        gaps = [run["with ObsDropout"][column] - run[peer][column] for run in runs]
        mean, half = interval(np.array(gaps))
        lines.append(
            f"{COLUMNS[column]}: with ObsDropout less the best peer, {peer}: {mean:+.3f} ± {half:.3f}"
        )
    return "\n".join(lines)


def best_peer(runs: list[dict[str, dict[str, float]]], column: str) -> str:
    """The one with the best mean over seeds."""
    peers = [m for m in runs[0] if m not in DROPOUT and column in runs[0][m]]
    return BEST[column](peers, key=lambda m: np.mean([run[m][column] for run in runs]))


def record(found: dict[str, list[dict[str, dict[str, float]]]], config: argparse.Namespace) -> None:
    """Scores with ObsDropout beside those of the best peers, for the page of figures."""
    own = "with ObsDropout"
    light = {
        "hidden_cells": ("accuracy", "nll", "ece", "coverage"),
        "hidden_cells_temperatures": ("calibrated_nll", "calibrated_ece", "mae"),
    }
    groups = {"pypots": ("accuracy", "calibrated_nll")} if config.pypots_python else light
    scores = lambda runs, method, column: np.array([run[method][column] for run in runs])
    told = [
        f"{cell}, {peer} {scores(runs, peer, 'accuracy').mean():.3f} and {scores(runs, peer, 'calibrated_nll').mean():.2f}"
        for cell, runs in found.items()
        for peer in TORCH
        if config.pypots_python
    ]
    for name, columns in groups.items():
        cells = {
            f"{cell}, {COLUMNS[c]}": (runs, c) for cell, runs in found.items() for c in columns
        }
        pairs = {title: interval(scores(runs, own, c)) for title, (runs, c) in cells.items()}
        record_figure(
            f"missing_data/{name}",
            what="series with hidden cells (data / mechanism / rate), supnotMIWAE with ObsDropout; a star: at a temperature "
            "fitted on the validation series; spread: half of a 95% interval over seeds",
            value={title: mean for title, (mean, _) in pairs.items()},
            spread={title: half for title, (_, half) in pairs.items() if np.isfinite(half)},
            seeds=config.seeds,
            note="accuracy and nll*: " + "; ".join(told) if told else None,
            claim={
                title: scores(runs, best_peer(runs, c), c).mean()
                for title, (runs, c) in cells.items()
                if c in BEST
            },
            claimed_by="best peers",
            measures=["benchmarks/_peers/imputation_pypots.py", "examples/papers/imputation/protocol", "models/imputation"],
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Classification with missing cells, against light peers."
    )
    parser.add_argument("--cells", nargs="+", default=["ItalyPowerDemand/mcar/0.5"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument(
        "--minirocket", action="store_true", help="aeon's MiniRocket too; numba compiles first"
    )
    parser.add_argument("--pypots-python", help="a Python that has PyPOTS and notmiwae-pytorch")
    parser.add_argument("--out", type=Path, default=Path("imputation_table"))
    config = parsed(parser)
    if config.record:  # what another commit has left there does not count
        config.out = config.out / commit()
    print(
        f"lapilli {lapilli.__version__}, jax {jax.__version__}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}"
    )
    found = {}
    for cell in config.cells:
        found[cell] = [known(cell, seed, config) for seed in range(config.seeds)]
        print(table(cell, found[cell]), flush=True)
    if config.record:
        record(found, config)


if __name__ == "__main__":
    main()
