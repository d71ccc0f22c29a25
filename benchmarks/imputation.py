"""Question: how does supnotMIWAE, with and without ObsDropout, compare with light peers when cells are missing?

Cells of the protocol are data set / mechanism / rate, e.g. JapaneseVowels_eq/mcar/0.9; every method sees the same masks. The
answer is a table of means over seeds with halves of their 95% intervals, and paired differences to the best peer. Where the
linear classifier on interpolated series is at its ceiling (JapaneseVowels_eq at 10%, or at 50% completely at random) no method
can show anything; the cells that tell are 90% anywhere, "mar" at 50%, and ItalyPowerDemand at 50%. The result of every cell and
seed is written to a folder when it is known, and read from there by a run that comes after it. Rows with a star have the class
probabilities at the temperature that suits the validation series best.

usage: python benchmarks/imputation.py [--cells ItalyPowerDemand/mcar/0.5 ...] [--seeds 2] [--steps 200] [--minirocket]
    [--out imputation_table]
"""

import argparse
import json
import os
import time
from pathlib import Path

import jax
import numpy as np
from scipy import stats

import lapilli
from lapilli.models.imputation import benchmark

COLUMNS = (
    "accuracy",
    "macro_auroc",
    "nll",
    "brier",
    "ece",
    "mae",
    "crps",
    "coverage",
    "ess",
    "training_seconds",
    "seconds",
)
CLASS_COLUMNS = ("accuracy", "macro_auroc", "nll", "brier", "ece")
DROPOUT = {"supnotMIWAE": 0.0, "with ObsDropout": 0.3}


def scores(cell: str, seed: int, config: argparse.Namespace) -> dict[str, dict[str, float]]:
    name, mechanism, rate = cell.split("/")
    task = benchmark.problem(name, mechanism, float(rate), seed)
    found = benchmark.peers(task, has_minirocket=config.minirocket)
    keys = jax.random.split(jax.random.key(seed), 3)
    for member, dropout in DROPOUT.items():
        recipe = benchmark.Recipe(
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
        )
        trained = benchmark.train(task, recipe, keys[0])
        row = benchmark.evaluate(task, trained, keys[1])[0] | {"training_seconds": trained.seconds}
        found[member] = row
        found[f"{member}*"] = {
            column: row.get(f"calibrated_{column}", row[column]) for column in CLASS_COLUMNS
        }
    found["gru-d"] = benchmark.recurrent_peer(task, recipe, keys[2])
    return found


def known(cell: str, seed: int, config: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Scores from the folder, or new ones that are written to it."""
    kind = "minirocket" if config.minirocket else "light"
    path = config.out / f"{cell.replace('/', '-')}-{config.steps}-{kind}-{seed}.json"
    if not path.exists():
        found = scores(cell, seed, config)
        config.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    return json.loads(path.read_text())


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean over seeds and half of its 95% t interval."""
    if len(values) < 2:
        return float(values.mean()), np.nan
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def table(cell: str, runs: list[dict[str, dict[str, float]]]) -> str:
    lines = [
        f"{cell}, {len(runs)} seed(s)",
        f"{'':<16}" + "".join(f"{c[-8:]:>15}" for c in COLUMNS),
    ]
    for method in runs[0]:
        line = f"{method:<16}"
        for column in COLUMNS:
            values = np.array([run[method].get(column, np.nan) for run in runs])
            mean, half = interval(values)
            line += " " * 15 if np.isnan(values).all() else f"{mean:8.3f}±{half:<6.3f}"
        lines.append(line)
    for column, choose in (("accuracy", max), ("nll", min), ("ece", min), ("mae", min)):
        means = {
            m: np.mean([run[m][column] for run in runs]) for m in runs[0] if column in runs[0][m]
        }
        peer = choose((m for m in means if m.rstrip("*") not in DROPOUT), key=means.__getitem__)
        for member in ("with ObsDropout", "with ObsDropout*"):
            if column in runs[0][member]:
                gaps = [run[member][column] - run[peer][column] for run in runs]
                mean, half = interval(np.array(gaps))
                lines.append(
                    f"{column}: {member} less the best peer, {peer}: {mean:+.3f} ± {half:.3f}"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Classification with missing cells, against light peers."
    )
    parser.add_argument("--cells", nargs="+", default=["ItalyPowerDemand/mcar/0.5"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--minirocket", action="store_true", help="aeon's MiniRocket too; numba compiles first"
    )
    parser.add_argument("--out", type=Path, default=Path("imputation_table"))
    config = parser.parse_args()
    print(
        f"lapilli {lapilli.__version__}, jax {jax.__version__}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}"
    )
    for cell in config.cells:
        print(table(cell, [known(cell, seed, config) for seed in range(config.seeds)]), flush=True)


if __name__ == "__main__":
    main()
