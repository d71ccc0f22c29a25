"""How good are posteriors that are learned from stored simulations, on the tasks of the benchmark of simulation-based inference?

Question: classifier two-sample tests (C2ST, 1/2 is perfect, the benchmark's own classifier) of 10,000 draws against as many of
the exact posterior, and nats where its density is known, E_ref[log p - log q]; beside what Lueckmann et al. 2021,
arXiv:2101.04653, print for NPE and for SNPE-C, which has ten rounds at one observation. All settings are the library's defaults.

Answer, seed 0, NPE on 10,000 simulations, means of ten observations; published NPE and SNPE-C in brackets. As good as SNPE-C:
two_moons 0.533 (0.606, 0.554), gaussian_linear 0.503 (0.552, 0.544), gaussian_mixture 0.546 (0.615, 0.551), lotka_volterra 0.783
(0.997, 0.953), slcp_distractors 0.924 (0.970, 0.931). Better than NPE alone: gaussian_linear_uniform 0.538 (0.553, 0.527),
bernoulli_glm 0.633 (0.678, 0.614), bernoulli_glm_raw 0.681 (0.765, 0.658), sir 0.577 (0.680, 0.561), slcp 0.880 (0.901, 0.845).
Likelihoods (NLE), learned once for any data too, and draws of `infer`; published NLE in brackets: gaussian_linear_uniform 0.505
(0.548), slcp 0.645 (0.771), bernoulli_glm 0.611 (0.605), bernoulli_glm_raw 0.510 (0.939), each as good as SNPE-C. Ensembles of
three: bernoulli_glm 0.619, bernoulli_glm_raw 0.677, sir 0.571. Programs with the exact density have 0.49 to 0.50. NPE on 1,000
simulations is as good as SNPE-C on seven of ten and better than NPE on nine, on 100,000 as good as SNPE-C on the four that were
run (0.500 to 0.512); all figures, and other methods, are on the page of what was reproduced.

Settings were chosen by log q of fresh or held-out draws: the rate of training, the map of boxes, the decay of weights (nats, ten
uniform means -0.24 to -0.05, spikes one by one -3.58 to -2.95), the number of steps (two_moons +0.03, sir +0.07,
gaussian_mixture -0.01), ranks of continuous data (lotka_volterra 13.90 to 15.94, slcp +0.03; of counts sir -0.11, their roots
-0.05, their logarithms -0.15), the mean of parameters over eight looks, of 1, 2, 4 and 8 (bernoulli_glm -2.75 to -2.58, ten
uniform means -0.01 to 0.04, two_moons and sir within 0.01).

An ensemble has three members whose validation rows take turns, by log q of 8,000 fresh draws at 1,000 simulations, seed 11. One
training, and mixtures of three and five on the same rows: spikes' sums -3.92, -3.76, -3.73 nats, the epidemic 7.19, 7.33, 7.35.
Three whose validation rows take turns: -3.65 and 7.29, ten uniform means -0.41 to -0.40. Five gain little beside their time.

The classifier is scikit-learn's, compiled (`_sbibm/scores.py`), at a tenth of its time. Means of three seeds beside those of
scikit-learn's own, on one observation of each of six tasks, before it was adopted: sir 0.573 and 0.572, two_moons 0.575 and
0.576, gaussian_mixture 0.586 and 0.586, lotka_volterra 0.879 and 0.878, slcp 0.894 and 0.894, bernoulli_glm 0.681 and 0.681;
single seeds of either differ by up to 0.017.

    python benchmarks/inference/simulators.py [--tasks NAME ...] [--methods npe ensemble tsnpe nle nre program]
        [--budgets 1000 10000] [--observations 3 ...] [--rounds 5] [--data FOLDER] [--kept FILE] [--seed 0] [--smoke] [--record]

Without --data observations are drawn from the task's program, by their number as seed, and the references are our own: closed
forms, rejection and grids; tasks without one are left out. FOLDER is `sbibm/tasks` of an unpacked wheel of `sbibm` 1.1.0: its
observations and 10,000 reference draws of each then. Each observation is written to FILE, a line of JSON, as soon as it is
measured, and one that stands there is not measured again: a run that was ended goes on.
"""

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import numpy as np
from _common import joined, parsed, record_figure
from _sbibm import MADE_BY, METHODS, PACKAGES, PUBLISHED, REFERENCES, TASKS, measured


def main() -> None:
    parser = argparse.ArgumentParser(description="Learned posteriors on the tasks of sbibm.")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["npe"])
    parser.add_argument("--budgets", nargs="+", type=int, default=[1_000, 10_000])
    parser.add_argument(
        "--observations",
        nargs="+",
        type=int,
        default=[3],
        help="the first of ten, of all tasks or each",
    )
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--data", type=Path, help="folder sbibm/tasks of the unpacked wheel")
    parser.add_argument("--kept", type=Path, help="file of what was measured, to go on from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5, help="of tsnpe, which share the budget")
    parser.add_argument("--smoke", action="store_true", help="one small row")
    options = parsed(parser)
    if options.smoke:
        options.tasks, options.methods, options.budgets = ["two_moons"], ["npe"], [600]
        options.observations, options.draws = [1], 300
    print(
        f"{'task':<25}{'method':<10}{'N':>7}  {'C2ST':<24}{'NPE':>6}{'SNPE-C':>8}{'nats':>8}{'s':>6}  objections"
    )
    found, behind = {}, []
    if len(options.observations) not in (1, len(options.tasks)):
        parser.error("--observations wants one number, or one of each task")
    numbers = dict(zip(options.tasks, options.observations * len(options.tasks), strict=False))
    for task in options.tasks:
        if options.data is None and task not in REFERENCES:
            continue
        for method in options.methods:
            if method == "program" and TASKS[task].exact is None:
                continue
            for budget in options.budgets:
                rows = list(measured(task, method, budget, numbers[task], options))
                behind += rows
                scores, seconds = [row.score for row in rows], rows[0].seconds
                objections = sorted({name for row in rows for name in row.objections})
                each = f"{np.mean(scores):.3f} ({', '.join(f'{s:.3f}' for s in scores)})"
                claims = PUBLISHED[task].get(budget, (np.nan, np.nan))
                known = [row.nats for row in rows if row.nats is not None]
                told = f"{np.mean(known):8.4f}" if known else " " * 8
                cells = "".join(f"{c:>7.3f}" for c in claims)
                row = f"{task:<25}{method:<10}{budget:>7}  {each:<24}{cells}{told}{seconds:6.0f}"
                print(f"{row}  {', '.join(objections)}", flush=True)
                name = f"{task}, {method}, {budget}, of {len(rows)}"
                found[name] = float(np.mean(scores)), claims[1]
    if options.record:
        which = *options.methods, *map(str, options.budgets)
        record_figure(
            " ".join(["posteriors/simulators", *(() if which == ("npe", "10000") else which)]),
            what=f"C2ST of {options.draws} draws: task, method, simulations, over how many observations of the benchmark",
            value={name: score for name, (score, _) in found.items()},
            claim={name: claim for name, (_, claim) in found.items() if np.isfinite(claim)},
            claimed_by="SNPE-C over ten observations, arXiv:2101.04653", seeds=str(options.seed),
            measures=MADE_BY, packages=PACKAGES,
            before={path: joined(row.ran.get(path, "") for row in behind) for path in MADE_BY},
        )  # fmt: skip


if __name__ == "__main__":
    main()
