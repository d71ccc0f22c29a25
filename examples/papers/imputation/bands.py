"""Do 90 % bands hold 90 % of the hidden cells? Weights of whole series, particles over time, draws moved after weighting.

What it shows: a long series has more to explain than a few hundred weighted draws can: the weights collapse on one or two of
them, and bands are those of one path. On BasicMotions (100 steps of six channels, half of the cells hidden at random) particles
over time have an effective number of about one as well. Moving the draws after weighting by Hamiltonian Monte Carlo
(`impute(num_moves=)`) repairs bands as far as weights are the cause; what is left is the model's own.

Expected (five seeds): bands hold 0.26 of the cells by weights, 0.79 by particles over time, 0.93 once moved, and means are
nearer to the truth, too (mean absolute error 0.48 and 0.40).

Settings: those of speakers.py; parameters by the NLL of validation labels; moves are a number fixed beforehand. Draws of a row:
50; test series: the first 20 of a random order, for time. Run time: five minutes of processor time a seed.

    python examples/papers/imputation/bands.py [--smoke] [--data BasicMotions] [--seeds 5] [--out bands_output]
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import protocol

from lapilli.models import imputation

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _intervals import draw_intervals, interval
from _record import parsed, record_figure

MEASURES = ("coverage", "width", "mae", "crps", "ess", "accuracy", "acceptance")


class Config(NamedTuple):
    """Sizes of the experiment."""

    data: str = "BasicMotions"
    num_seeds: int = 5
    num_steps: int = 200
    num_hidden: int = 32
    num_draws: int = 50
    num_moves: int = 40
    num_tests: int = 20


def run(config: Config) -> dict[str, dict[str, list[float]]]:
    """Measures of each way, a number for each seed."""
    found: dict[str, dict[str, list[float]]] = {}
    recipe = protocol.Recipe(
        {"num_hidden": config.num_hidden, "classifier": "conv", "length_scale": 3.0},
        num_particles=5, num_steps=config.num_steps, check_every=50,
    )  # fmt: skip
    for seed in range(config.num_seeds):
        start = time.process_time()
        whole = protocol.problem(config.data, "mcar", 0.5, seed)
        rows = np.random.default_rng(seed).permutation(len(whole.truth))[: config.num_tests]
        task = whole._replace(
            test=whole.test.rows(rows), truth=whole.truth[rows], hidden=whole.hidden[rows]
        )
        keys = jax.random.split(jax.random.key(seed))
        trained = protocol.train(whole, recipe, keys[0])
        over_time: dict[str, Any] = {"method": "smc", "memory": trained.memory}
        ways = {
            "weights of whole series": {"num_imputations": 1},
            "particles over time": over_time,
            "moved after weighting": over_time | {"num_moves": config.num_moves},
        }
        for name, options in ways.items():
            made = imputation.impute(
                trained.model, trained.guide, task.test, keys[1], num_particles=config.num_draws, **options
            )  # fmt: skip
            scores = cell_scores(task, made)
            if made.acceptance is not None:
                scores["acceptance"] = float(made.acceptance.mean())
            for measure, value in scores.items():
                found.setdefault(name, {}).setdefault(measure, []).append(value)
        print(f"seed {seed}: {time.process_time() - start:.0f} s of processor time", flush=True)
    return found


def cell_scores(task: protocol.Problem, made: imputation.Imputation) -> dict[str, float]:
    """Scores of hidden cells with 90 % bands, and accuracy."""
    low, high = (task.units.undo(q) for q in made.quantiles([0.05, 0.95]))
    crps = made.crps(task.test_truth) * task.units.scale
    mean = task.units.undo(made.mean)
    scores = imputation.cell_scores(task.truth, task.hidden, mean, crps=crps, low=low, high=high)
    hits = made.probs.argmax(-1) == np.asarray(task.test.labels)
    return {**scores, "ess": float(made.ess.mean()), "accuracy": float(hits.mean())}


def report(config: Config, found: dict[str, dict[str, list[float]]]) -> str:
    lines = [
        f"{config.data}, half of the cells hidden, {config.num_seeds} seeds, {config.num_draws} draws; halves of 95% intervals",
        f"{'':<26}" + "".join(f"{m:>18}" for m in MEASURES),
    ]
    for name, row in found.items():
        cells = [
            "{:.3f} +- {:.3f}".format(*interval(np.array(row[m]))) if m in row else "" for m in MEASURES
        ]  # fmt: skip
        lines.append(f"{name:<26}" + "".join(f"{c:>18}" for c in cells))
    return "\n".join(lines)


def record(config: Config, found: dict[str, dict[str, list[float]]]) -> None:
    """Figures for docs/_data."""
    titles = {
        "coverage": "coverage of 90% bands (0.90 is right)",
        "mae": "mean absolute error of hidden cells",
    }
    for measure, title in titles.items():
        pairs = {name: interval(np.array(row[measure])) for name, row in found.items()}
        record_figure(
            f"missing_data/bands_moved_{measure}",
            what=f"{title}, {config.data}, half of the cells hidden, {config.num_draws} draws; halves of 95% intervals",
            value={k: v[0] for k, v in pairs.items()}, spread={k: v[1] for k, v in pairs.items()},
            seeds=config.num_seeds, time="five minutes of processor time a seed",
            measures=["models/imputation", "examples/papers/imputation/protocol"],
        )  # fmt: skip


def main(arguments: list[str] | None = None) -> dict[str, dict[str, list[float]]]:
    parser = argparse.ArgumentParser(description="Coverage of bands before and after moves.")
    parser.add_argument("--smoke", action="store_true", help="tiny networks, few steps")
    parser.add_argument("--data", default="BasicMotions")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("bands_output"))
    options = parsed(parser, arguments)
    config = Config(options.data, options.seeds)
    if options.smoke:
        config = Config("ItalyPowerDemand", 2, 20, 8, 10, 6, 6)
    found = run(config)
    (options.out / "scores.json").write_text(json.dumps(found, indent=1))
    text = report(config, found)
    print(text)
    (options.out / "report.txt").write_text(text + "\n")
    panels = {
        title: {name: interval(np.array(row[measure])) for name, row in found.items()}
        for measure, title in (("coverage", "cells in 90 % bands"), ("mae", "mean absolute error"))
    }
    draw_intervals(
        panels,
        options.out / "bands.png",
        mark=None,
        claim="Bands of filled gaps, and how far means are off",
    )
    if options.record:
        record(config, found)
    return found


if __name__ == "__main__":
    main()
