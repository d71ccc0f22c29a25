"""Does it pay to look forward? Sets of items, built one by one, under four balance losses.

What it shows: a GFlowNet builds sets of k of n items in proportion to R(x) = exp(-sum of the energies of its items).
Trajectory balance (TB) hears of R at the end of 20, 60 or 80 steps, forward-looking detailed balance (FL-DB) hears of the energy
of every item as it is added. One environment, one network, four losses. For these sets log Z and the share of sets with item i
are known in closed form, so that errors are errors:

- top 100: mean reward of the 100 best sets drawn so far, over that of the 100 best there are: the paper's measure. It rewards
  greed: exact draws of R / Z, printed last and dashed in the figure, are not at the top by it;
- inclusion: mean error of P(i in x), from 4,000 draws at the end;
- KL: log Z - E[log w], of trajectories, nats.

TB appears twice: with log Z from 0, as published, and from the weights of the first batches (`log_z_start="estimate"`, the
default here).

First 6 of 12 items, where the law of the policy itself is summed exactly, from whole trajectories and from two consecutive steps
of each: the paper's incomplete trajectories, of which TB can learn nothing (it is refused).

Source: Pan, Malkin, Zhang, Bengio, "Better Training of GFlowNets with Local Credit and Incomplete Trajectories", ICML 2023,
arXiv:2302.01687, section 5.1: FL-DB ahead of DB, TB and SubTB in top-100 reward on all three sizes, the more the longer the
trajectories. Settings are the paper's (P_B learned, one network of 2 x 256, Adam 1e-3, log Z at 0.1, batches of 16, its share
of random actions for each loss), at a fraction of its 10,000 steps, and with log F pinned at complete sets: left free, as in the
published code, any policy has zero loss.

Expected: of 6 of 12 items FL-DB learns the law to a total variation of 0.01 from two steps of each trajectory, DB to 0.02. Of the
losses as published FL-DB is ahead where trajectories are long, not where they are short. But TB started at an estimate of log Z
beats all of them a hundredfold, and its P(i in x) cannot be told from those of exact draws: what held TB back was not credit but
a log Z that is 44 nats off, to which policy and learned P_B then bend. By the paper's measure FL-DB and DB are ahead of exact
draws on the large sets (0.12 and 0.11 against 0.007), since their policies are too sharp. Figures: docs/_data/figures,
gflownets/sets. Run time: thirteen minutes of processor time with --full.

    python examples/papers/gflownet/sets.py [--smoke | --full] [--sizes twelve small medium large] [--out sets_output] [--record]
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import arviz
import jax
import numpy as np
import optax
import xarray

from lapilli import inference
from lapilli.models import gflownet

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure


class Method(NamedTuple):
    """A loss and its settings: share of uniformly random actions by size, tuned by the authors (SubTB is not in their table)."""

    loss: gflownet.Loss
    forward_looking: bool = False
    epsilon: dict[str, float] = {}
    log_z_start: object = 0.0


DB, TB = gflownet.detailed_balance(), gflownet.trajectory_balance()
METHODS = {
    "FL-DB": Method(DB, True, {"small": 1.0, "medium": 0.5, "large": 0.5}),
    "DB": Method(DB, False, {"small": 1.0, "medium": 1.0, "large": 1.0}),
    "SubTB": Method(gflownet.subtrajectory_balance(0.9)),
    "TB": Method(TB, False, {"medium": 0.0625}),
    "TB, log Z estimated": Method(TB, False, {"medium": 0.0625}, "estimate"),
}
# Mean reward of the 100 best sets that exist.
CEILING = {"small": 0.26328, "medium": 9.993e5, "large": 9.003e5}
MEASURES = {
    "top": "top 100 / ceiling", "inclusion": "error of P(i in x)", "kl": "KL, nats", "log_z_error": "log Z error",
}  # fmt: skip


class Config(NamedTuple):
    """Sizes of a run."""

    steps: dict[str, int]
    num_seeds: int = 3
    evaluate_every: int = 100
    num_draws: int = 400
    final_batches: int = 10
    incomplete_steps: int = 2_000


DEFAULT = Config({"small": 1_000, "medium": 500, "large": 500})
SMOKE = Config(dict.fromkeys(CEILING, 40), 2, 20, 64, 2, 40)


def make(env, method: Method, **options):
    flow = "total" if method.loss.needs_whole else "shared"
    net = gflownet.programs(
        env, flow=flow, backward="learned", forward_looking=method.forward_looking, activation=jax.nn.leaky_relu,
        key=jax.random.key(0),
    )  # fmt: skip
    rates = {"policy": optax.adam(1e-3)} | ({"log_z": optax.adam(0.1)} if flow == "total" else {})
    return net, gflownet.balance(net, method.loss, **options), rates


class Judge:
    """Draws from the policy of every seed, and what is known exactly; a callback that keeps a row of measures."""

    def __init__(self, net, size: str, config: Config):
        self.net, self.size, self.config = net, size, config
        self.exact, self.log_z = net.env.inclusion(), net.env.log_z()
        self.best = [None] * config.num_seeds
        self.steps, self.rows = [], []
        self.draws = jax.jit(jax.vmap(self.draw))

    def draw(self, params, key):
        batch = gflownet.rollout(self.net, self.net.modules(params), key, self.config.num_draws)
        process = self.net.process(batch)
        log_z = self.net.log_z(params)
        return batch.positions.state[:, -1], process.log_reward[:, -1], process.log_weight, log_z

    def measure(self, params, step: int, num_batches: int = 1):
        """The sets drawn [seeds, draws, items], and the measures [measures, seeds]."""
        keys = jax.random.split(jax.random.key(step), (num_batches, self.config.num_seeds))
        batches = [jax.device_get(self.draws(params, row)) for row in keys]
        sets, log_reward, log_weight = (
            np.concatenate(x, 1) for x in list(zip(*batches, strict=True))[:3]
        )
        self.best = [
            gflownet.best(*seen, before=before)
            for *seen, before in zip(sets, log_reward, self.best, strict=True)
        ]
        top = [best.mean_reward / CEILING[self.size] for best in self.best]
        inclusion = np.abs(sets.mean(1) - self.exact).mean(-1)
        kl, log_z = self.log_z - log_weight.mean(1), batches[0][-1]
        return sets, (top, inclusion, kl, np.abs(log_z - self.log_z))

    def __call__(self, info):
        self.steps.append(info.step)
        self.rows.append(self.measure(info.params, info.step)[1])

    def tree(self, fit, seconds: float) -> xarray.DataTree:
        """Draws at the end as the posterior; the curves and the last measures, from more draws, as further groups."""
        sets, last = self.measure(fit.params, 10**6, self.config.final_batches)
        names = {"sample_dims": ["chain", "draw"], "dims": {"sets": ["item"]}}
        tree = arviz.from_dict({"posterior": {"sets": sets[:, :500].astype(np.int8)}}, **names)
        rows = zip(MEASURES, np.swapaxes(self.rows, 0, 1), strict=True)
        curves = {name: (("step", "seed"), row) for name, row in rows}
        tree["curves"] = xarray.DataTree(xarray.Dataset(curves, {"step": self.steps}))
        final = {name: ("seed", np.asarray(row)) for name, row in zip(MEASURES, last, strict=True)}
        tree["final"] = xarray.DataTree(xarray.Dataset(final))
        tree.attrs |= {"steps": fit.steps, "seconds": seconds}
        return tree


def learn(size: str, name: str, config: Config, key) -> xarray.DataTree:
    """Train all seeds by one method."""
    method = METHODS[name]
    options = {"epsilon": method.epsilon.get(size, 0.0), "log_z_start": method.log_z_start}
    net, objective, rates = make(gflownet.Sets.published(size), method, **options)
    judge, begin = Judge(net, size, config), time.perf_counter()
    fit = inference.fit(
        objective, rates, (), num_steps=config.steps[size], num_seeds=config.num_seeds, key=key,
        callbacks=[judge], callback_every=config.evaluate_every, progress=False,
    )  # fmt: skip
    return judge.tree(fit, time.perf_counter() - begin)


def run(
    size: str, methods, config: Config, key, out: Path, *, anew: bool
) -> dict[str, xarray.DataTree]:
    """The methods on one size; unless `anew`, what an earlier run of as many steps has left in `out` is read from there."""
    found = {}
    for name in methods:
        path = out / f"{size}_{name.replace(', ', '_').replace(' ', '_')}.nc"
        kept = xarray.open_datatree(path).load() if path.exists() and not anew else None
        if kept is None or kept.attrs["steps"] != config.steps[size]:
            kept = learn(size, name, config, key)
            kept.to_netcdf(path)
        found[name] = kept
        print(row(name, kept), flush=True)
    return found


def exact(size: str, config: Config) -> xarray.Dataset:
    """The measures of exact draws, as many as the judge sees; the last entry is that of the end."""
    env = gflownet.Sets.published(size)
    num_evaluations = config.steps[size] // config.evaluate_every
    num_batches = num_evaluations + config.final_batches
    sets = env.exact_draws(num_batches * config.num_draws)
    log_reward = np.asarray(jax.vmap(env.log_reward)(sets))
    ends = config.num_draws * np.append(np.arange(1, num_evaluations + 1), num_batches)
    top = np.array([gflownet.best(sets[:n], log_reward[:n]).mean_reward for n in ends])
    means = sets.reshape(num_batches, config.num_draws, -1).mean(1)
    last = means[-config.final_batches :].mean(0)
    errors = [np.abs(x - env.inclusion()).mean() for x in (*means[:num_evaluations], last)]
    curves = {"top": top / CEILING[size], "inclusion": np.array(errors)}
    return xarray.Dataset({name: ("evaluation", x) for name, x in curves.items()})


def row(name: str, tree: xarray.DataTree) -> str:
    cells = " ".join(f"{spread(tree['final'][measure].values):>18}" for measure in MEASURES)
    return f"  {name:19} {cells} {tree.attrs['seconds']:7.0f}"


def spread(x: np.ndarray) -> str:
    return f"{x.mean():.3f} ({x.std(ddof=1):.3f})" if len(x) > 1 else f"{x.mean():.3f}"


def incomplete(config: Config, key) -> dict[str, np.ndarray]:
    """Exact total variation [seeds] on 6 of 12 items, from whole trajectories and from two steps of each."""
    env = gflownet.Sets(2 * np.random.RandomState(7).uniform(-1, 1, 12), 6)
    table, found = gflownet.tabulate(env), {}
    for name, parts in (("FL-DB", None), ("FL-DB", 2), ("DB", 2)):
        net, objective, rates = make(env, METHODS[name], num_consecutive=parts)
        fit = inference.fit(
            objective, rates, (), num_steps=config.incomplete_steps, num_seeds=config.num_seeds, key=key,
            progress=False,
        )  # fmt: skip
        law = [table.law(net, fit.seed(s).params) for s in range(config.num_seeds)]
        distance = np.array([gflownet.total_variation(p, table.target) for p in law])
        found[f"{name}, {'whole trajectories' if parts is None else f'{parts} steps of each'}"] = (
            distance
        )
        print(f"  {list(found)[-1]:28} {spread(distance)}", flush=True)
    return found


def draw(found: dict[str, dict[str, xarray.DataTree]], config: Config, out: Path) -> None:
    from matplotlib import pyplot as plt

    shown = ("inclusion", "kl", "top")
    figure, axes = plt.subplots(
        len(found), 3, figsize=(11, 3.2 * len(found)), squeeze=False, layout="constrained"
    )
    for line, (size, methods) in zip(axes, found.items(), strict=True):
        ideal = exact(size, config)
        for axis, measure in zip(line, shown, strict=True):
            for color, (name, tree) in enumerate(methods.items()):
                step = tree["curves"]["step"]
                # An estimated KL can be negative.
                values = np.maximum(tree["curves"][measure].values, 1e-3 * (measure == "kl"))
                axis.plot(step, values.mean(1), f"C{color}", label=name)
                axis.fill_between(
                    step, values.min(1), values.max(1), color=f"C{color}", alpha=0.2, lw=0
                )
            if measure in ideal:
                axis.plot(step, ideal[measure][:-1], "0.4", ls="--", label="exact draws")
            axis.set(yscale="log", xlabel="step")
            axis.set_title(f"{size}: {MEASURES[measure]}", loc="left")
    axes[0, 0].legend(frameon=False, fontsize="small")
    figure.savefig(out / "sets.png", dpi=120)


def against_forward_looking(found: dict[str, dict[str, xarray.DataTree]]) -> str:
    """The claim as figures: error and KL over those of FL-DB, by size."""
    lines = [
        f"over FL-DB at the same number of steps (above 1: FL-DB is ahead){'error of P(i in x)':>25} {'KL':>9}"
    ]
    for size, methods in found.items():
        final = {name: tree["final"].to_dataset().mean("seed") for name, tree in methods.items()}
        for name in [name for name in final if name != "FL-DB" and "FL-DB" in final]:
            ratio = final[name] / final["FL-DB"]
            lines.append(
                f"  {size:8} {name:55} {float(ratio['inclusion']):23.2f} {float(ratio['kl']):9.2f}"
            )
    return "\n".join(lines)


def record(found: dict[str, dict[str, xarray.DataTree]], config: Config, distances: dict) -> None:
    """Divergences from the exact law, for the page of figures."""
    kl = {
        f"{size}, {name}": tree["final"]["kl"].values
        for size, methods in found.items()
        for name, tree in methods.items()
    }
    steps = ", ".join(f"{size} {config.steps[size]:,}" for size in found)
    record_figure(
        "gflownets/sets",
        what=f"sets of the forward-looking paper, KL to the exact law in nats, by size and loss (steps: {steps}); spread: "
        "standard deviation over seeds",
        value={name: x.mean() for name, x in kl.items()},
        spread={name: x.std(ddof=1) for name, x in kl.items()},
        seeds=config.num_seeds,
        note="total variation on 6 of 12 items: "
        + "; ".join(f"{name} {spread(x)}" for name, x in distances.items()),
        measures=["models/gflownet"],
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Balance losses on sets with additive energies.")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--smoke", action="store_true", help="few steps")
    length.add_argument("--full", action="store_true", help="large sets, too")
    parser.add_argument("--sizes", nargs="*", choices=["twelve", *CEILING])
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("sets_output"),
        help="results there are read, not run again, but under --record",
    )
    options = parsed(parser, arguments)
    if options.record and (not options.full or options.sizes or options.methods != list(METHODS)):
        parser.error("--record is for --full, with all sizes and methods")
    config = SMOKE if options.smoke else DEFAULT
    sizes = ["twelve", *CEILING][: 4 if options.full else 3]
    key = jax.random.key(0)
    found, distances = {}, {}
    for size in options.sizes or sizes:
        if size == "twelve":
            print(
                f"6 of 12 items: {config.incomplete_steps} steps, exact total variation, mean (sd)"
            )
            distances = incomplete(config, key)
            continue
        print(f"{size}: {config.steps[size]} steps, {config.num_seeds} seeds, mean (sd)")
        print(f"  {'':19} " + " ".join(f"{title:>18}" for title in MEASURES.values()), "seconds")
        found[size] = run(size, options.methods, config, key, options.out, anew=options.record)
        ideal = exact(size, config)
        print(
            f"  {'exact draws':19} "
            + " ".join(f"{float(ideal[m][-1]):18.3f}" for m in ("top", "inclusion"))
        )
    if found:
        print(against_forward_looking(found))
        draw(found, config, options.out)
    if options.record:
        record(found, config, distances)


if __name__ == "__main__":
    main()
