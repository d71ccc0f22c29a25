"""How far do the scores of learned posteriors move with the seed, on the tasks of the benchmark of simulation-based inference?

Question: `simulators.py` trains once. Here simulations, networks, minibatches and draws are those of several seeds, by
`inference.amortise` at its defaults; the observations and their reference draws stay. A score is that of `simulators.py`, a
classifier two-sample test of 10,000 draws (1/2 is perfect), averaged over the first observations; its mean over the seeds, and
their standard deviation.

    python benchmarks/inference/simulator_seeds.py [--tasks NAME ...] [--seeds 0 1 2 3 4] [--simulations 10000]
        [--observations 2] [--data FOLDER] [--kept FILE] [--smoke] [--record]

FOLDER and FILE are as for `simulators.py`.
"""

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import numpy as np
from _common import joined, parsed, record_figure
from _sbibm import MADE_BY, PACKAGES, PUBLISHED, REFERENCES, TASKS, measured


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Seeds of posteriors learned on the tasks of sbibm."
    )
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--observations", type=int, default=2, help="the first of ten")
    parser.add_argument("--data", type=Path, help="folder sbibm/tasks of the unpacked wheel")
    parser.add_argument("--kept", type=Path, help="file of what was measured, to go on from")
    parser.add_argument("--smoke", action="store_true", help="one small row")
    options = parsed(parser)
    options.draws, options.rounds = 10_000, None
    if options.smoke:
        options.tasks, options.simulations = ["two_moons"], 600
        options.observations, options.draws, options.seeds = 1, 300, [0, 1]
    value, spread, claim, behind = {}, {}, {}, []
    print(f"{'task':<25}{'mean':>7}{'sd':>7}{'NPE':>7}{'SNPE-C':>8}  seeds")
    for task in options.tasks:
        if options.data is None and task not in REFERENCES:
            continue
        scores = []
        for seed in options.seeds:
            own = argparse.Namespace(**{**vars(options), "seed": seed})
            rows = list(measured(task, "npe", options.simulations, options.observations, own))
            behind += rows
            scores.append(np.mean([row.score for row in rows]))
        value[task], spread[task] = float(np.mean(scores)), float(np.std(scores, ddof=1))
        npe, snpe = PUBLISHED[task].get(options.simulations, (np.nan, np.nan))
        each = ", ".join(f"{score:.3f}" for score in scores)
        print(
            f"{task:<25}{value[task]:7.3f}{spread[task]:7.3f}{npe:7.3f}{snpe:8.3f}  {each}",
            flush=True,
        )
        claim[task] = snpe
    if options.record:
        record_figure(
            "posteriors/seeds of simulators",
            what=f"C2ST of {options.draws} draws, {options.simulations} simulations (npe), mean of {options.observations} "
            "observations, ± the standard deviation over seeds",
            value=value, spread=spread, claim=claim,
            claimed_by="SNPE-C over ten observations, arXiv:2101.04653",
            seeds=", ".join(map(str, options.seeds)), measures=MADE_BY, packages=PACKAGES,
            before={path: joined(row.ran.get(path, "") for row in behind) for path in MADE_BY},
        )  # fmt: skip


if __name__ == "__main__":
    main()
