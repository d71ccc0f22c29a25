"""Which trees explain seven sequences? All 10,395 of them counted, and a GFlowNet that builds them, join by join.

What it shows: an alignment of seven simulated sequences, and the law R(tree) = exp(-changes / temperature), changes the parsimony
score of Fitch. A forest of half-built trees is worth the changes inside its trees, so that forward-looking detailed balance
(FL-DB) hears of every join, detailed balance (DB) and trajectory balance (TB) of the last one only. All trees and the law of the
policy are summed exactly. The score does not see where the root is: 11 rooted trees share one unrooted tree, and the figure
compares the support of its splits.

Source: Zhou et al., "PhyloGFN: Phylogenetic inference with generative flow networks", ICLR 2024, arXiv:2310.08774: trees sampled
close to the target over its whole range, near-optimal ones too, on alignments of 27 and more species that are not here. The gain
of forward-looking flows is the claim of Pan et al. 2023, arXiv:2302.01687.

Expected: the law spreads over 22 trees. In 3,000 steps of 16 trees TB, whose log Z starts at an estimate, comes closest, then
FL-DB, and DB last by far: forward-looking flows are a large gain for local losses, and over six joins no match for TB. Figures:
docs/_data/figures, gflownets/phylogeny. Run time: 3 minutes on 2 CPU cores that were busy otherwise.

    python examples/papers/gflownet/phylogeny.py [--smoke] [--out phylogeny_output] [--record]
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
import xarray

from lapilli import inference
from lapilli.models import gflownet

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure

METHODS = {
    "FL-DB": (gflownet.detailed_balance(), "shared", True),
    "DB": (gflownet.detailed_balance(), "shared", False),
    "TB": (gflownet.trajectory_balance(), "total", False),
}


class Config(NamedTuple):
    """Sizes of a run."""

    num_leaves: int = 7
    num_sites: int = 60
    num_steps: int = 3_000
    batch_size: int = 16
    num_hidden: int = 128
    evaluate_every: int = 250


class Answer(NamedTuple):
    """One loss: exact law of the trees built, total variation by step, the model's log Z, the fit."""

    law: np.ndarray
    steps: list[int]
    distances: list[float]
    log_z: float
    fit: inference.Fit
    seconds: float


def splits(into: np.ndarray, rank: np.ndarray) -> frozenset[frozenset[int]]:
    """The splits of an unrooted tree, each by its side without leaf 0; those of one leaf against all others left out."""
    num_leaves = len(into)
    below = [{leaf} for leaf in range(num_leaves)]
    found = set()
    for leaf in np.lexsort((rank, -into)):
        if into[leaf] >= 0:
            below[into[leaf]] |= below[leaf]
            clade = below[into[leaf]]
            side = set(range(num_leaves)) - clade if 0 in clade else clade
            found.add(frozenset(side))
    return frozenset(s for s in found if 2 <= len(s) <= num_leaves - 2)


def run(name: str, table: gflownet.Table, config: Config, key) -> Answer:
    loss, flow, forward_looking = METHODS[name]
    net = gflownet.programs(
        table.env, flow=flow, forward_looking=forward_looking, num_hidden=config.num_hidden,
        key=jax.random.key(0),
    )  # fmt: skip
    explore = optax.linear_schedule(0.5, 0.0, config.num_steps // 2)
    objective = gflownet.balance(net, loss, batch_size=config.batch_size, epsilon=explore)
    rates = {"policy": optax.adam(optax.cosine_decay_schedule(1e-3, config.num_steps))}
    rates |= {"log_z": optax.adam(0.1)} if flow == "total" else {}
    steps, distances, begin = [], [], time.perf_counter()

    def judge(info):
        steps.append(info.step)
        distances.append(gflownet.total_variation(table.law(net, info.params), table.target))

    fit = inference.fit(
        objective, rates, (), num_steps=config.num_steps, key=key, callbacks=[judge],
        callback_every=config.evaluate_every, progress=False,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    log_z = float(net.log_z(fit.params))
    return Answer(table.law(net, fit.params), steps, distances, log_z, fit, seconds)


def support(table: gflownet.Table) -> dict[frozenset[int], np.ndarray]:
    """For each split, which trees have it."""
    states = jax.tree.map(lambda x: np.asarray(x)[table.objects], table.states)
    of_tree = [splits(*rows) for rows in zip(states.into, states.rank, strict=True)]
    every = sorted(frozenset().union(*of_tree), key=lambda s: (len(s), sorted(s)))
    return {split: np.array([split in tree for tree in of_tree]) for split in every}


def split_error(answer: Answer, table: gflownet.Table, has_split) -> float:
    """The largest error of the support of a split."""
    return max(abs((table.target - answer.law) @ has) for has in has_split.values())


def report(answers: dict[str, Answer], table: gflownet.Table, has_split) -> str:
    exact, changes = table.target, -table.log_reward
    best = changes == changes.min()
    spread = np.exp(-np.sum(exact * np.log(exact)))
    lines = [
        f"{len(exact)} rooted trees; the law spreads over {spread:.0f} (exponential of its entropy); fewest changes "
        f"{changes.min():.0f}, by {best.sum()} of them",
        f"{'':8} {'TV':>7} {'JSD, nats':>10} {'log Z error':>12} {'P(fewest changes)':>18} {'largest split error':>20} seconds",
        f"{'exact':8} {0:7.3f} {0:10.4f} {0:12.3f} {exact @ best:18.3f}",
    ]
    for name, answer in answers.items():
        error = split_error(answer, table, has_split)
        lines.append(
            f"{name:8} {gflownet.total_variation(answer.law, exact):7.3f} {gflownet.jensen_shannon(answer.law, exact):10.4f} "
            f"{answer.log_z - table.log_z:12.3f} {answer.law @ best:18.3f} {error:20.3f} {answer.seconds:7.0f}"
        )
    return "\n".join(lines)


def record(answers: dict[str, Answer], table: gflownet.Table, has_split, config: Config) -> None:
    """Distances from the exact law, for the page of figures."""
    errors = {name: split_error(answer, table, has_split) for name, answer in answers.items()}
    record_figure(
        "gflownets/phylogeny",
        what=f"{len(table.target):,} trees of {config.num_leaves} sequences, {config.num_steps:,} steps, total variation by loss",
        value={
            name: gflownet.total_variation(answer.law, table.target)
            for name, answer in answers.items()
        },
        seeds=1,
        note="largest error of the support of a split: "
        + "; ".join(f"{name} {error:.3f}" for name, error in errors.items()),
        measures=["models/gflownet"],
    )


def draw(answers: dict[str, Answer], table: gflownet.Table, has_split, out: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for color, (name, answer) in enumerate(answers.items()):
        axes[0].plot(answer.steps, answer.distances, f"C{color}", label=name)
        axes[1].loglog(table.target, answer.law, f"C{color}.", ms=2, alpha=0.3)
    axes[0].set(yscale="log", xlabel="step")
    axes[0].set_title("total variation", loc="left")
    axes[0].legend(frameon=False)
    ends = [table.target.min(), table.target.max()]
    axes[1].plot(ends, ends, "k", lw=1)
    axes[1].set(xlabel="exact", ylabel="learned", xlim=(1e-8, 1), ylim=(1e-8, 1))
    axes[1].set_title("P(tree)", loc="left")
    exact = {split: table.target @ has for split, has in has_split.items()}
    shown = sorted(exact, key=lambda s: -exact[s])[:10]
    places = np.arange(len(shown))
    axes[2].barh(places, [exact[s] for s in shown], color="0.85", label="exact")
    for color, (name, answer) in enumerate(answers.items()):
        learned = [answer.law @ has_split[s] for s in shown]
        axes[2].plot(learned, places, f"C{color}o", ms=5, mfc="none", label=name)
    axes[2].set_yticks(places, [" ".join(map(str, sorted(s))) for s in shown])
    axes[2].invert_yaxis()
    axes[2].set_title("support of splits (leaves apart from 0)", loc="left")
    axes[2].legend(frameon=False)
    figure.savefig(out / "phylogeny.png", dpi=120)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Trees by parsimony, exact and learned.")
    parser.add_argument("--smoke", action="store_true", help="five sequences, few steps")
    parser.add_argument("--out", type=Path, default=Path("phylogeny_output"))
    options = parsed(parser, arguments)
    config = Config(5, 20, 40, 8, 32, 20) if options.smoke else Config()
    env = gflownet.Phylogenies.simulated(config.num_leaves, config.num_sites, rate=0.1)
    table = gflownet.tabulate(env)
    has_split = support(table)
    answers = {name: run(name, table, config, jax.random.key(1)) for name in METHODS}
    text = report(answers, table, has_split)
    (options.out / "report.txt").write_text(text + "\n")
    print(text)
    draw(answers, table, has_split, options.out)
    tree = inference.to_arviz(answers["FL-DB"].fit, key=jax.random.key(2), num_samples=500)
    laws = {name: ("tree", answer.law) for name, answer in answers.items()}
    tree["laws"] = xarray.DataTree(xarray.Dataset({"exact": ("tree", table.target)} | laws))
    tree.to_netcdf(options.out / "posterior.nc")
    if options.record:
        record(answers, table, has_split, config)


if __name__ == "__main__":
    main()
