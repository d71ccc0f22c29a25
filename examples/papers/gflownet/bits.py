"""Twenty hidden strings of 64 bits, found from their distance alone: four balance losses, written left to right or in any order.

What it shows: R(x) = exp(-2 d(x, nearest mode)), d the Hamming distance. A string is written in 16 words of 4 bits: from the
left, where it has one history, or at any empty place, where it has 16! of them. Far from all modes R is flat as far as single
words can tell; forward-looking flows (FL) know the distance of what is written so far. No mode is ever shown.

Exact draws of R / Z exist here (rejection from the modes' own laws), and log Z with them, so that the law is judged from both
sides, and "modes found" beside what a perfect sampler finds:

- modes: of 20, how many some draw has come near, d < 28 / 120 of the length as in the source; 500 draws at each evaluation;
- Spearman: of log p_T(x) with log R(x) over the published test set (modes with 0 to 63 of their bits turned);
- reverse KL: log Z - E[log w] over the policy's own trajectories; forward KL: E[log w] - log Z over exact strings and P_B, nats.
  What a policy never visits shows in the second only.

Source: Malkin, Jain, Bengio, Sun, Bengio, "Trajectory balance", NeurIPS 2022, arXiv:2201.13259, section 5.3, with 60 modes of 120
bits and 50,000 steps: TB correlates best, whatever the length of the words. Pan et al., ICML 2023, arXiv:2302.01687: FL finds
more modes, sooner. Modes here are made of the same five words.

Expected (1,500 steps; exact draws are near all 20 modes, uniform strings are 17.9 nats away): FL-DB comes near most modes,
soonest, as claimed; that TB correlates best is not seen. In any order TB ends on one mode: a reverse KL of log 20 = 3.0 looks
like success, and the forward KL says what is missing. No loss is close to the law at this length of training. Figures:
docs/_data/figures, gflownets/bits. Run time: 11 minutes on 2 CPU cores that were busy otherwise.

    python examples/papers/gflownet/bits.py [--smoke] [--orders append any] [--out bits_output] [--record]
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray

from lapilli import inference
from lapilli.models import gflownet

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure

RADIUS = 28 / 120
# Loss, forward-looking flows.
METHODS = {
    "TB": (gflownet.trajectory_balance(), False),
    "SubTB": (gflownet.subtrajectory_balance(0.9), False),
    "FL-SubTB": (gflownet.subtrajectory_balance(0.9), True),
    "FL-DB": (gflownet.detailed_balance(), True),
}
MEASURES = {
    "modes": "modes found", "spearman": "Spearman", "reverse_kl": "reverse KL", "forward_kl": "forward KL",
}  # fmt: skip
ORDERS = {"append": "from left", "any": "any order"}


class Config(NamedTuple):
    """Sizes of a run."""

    num_bits: int = 64
    num_modes: int = 20
    num_steps: int = 1_500
    num_seeds: int = 3
    num_hidden: int = 128
    evaluate_every: int = 150
    num_draws: int = 500
    num_tested: int = 200
    beta: float = 2.0


class Judge:
    """A callback that keeps a row of measures of every seed."""

    def __init__(self, net, config: Config):
        self.net, self.config, env = net, config, net.env
        self.log_z = env.log_z()
        mutants = np.random.default_rng(0).permutation(env.mutants())
        self.test, self.exact = mutants[: config.num_tested], env.exact_draws(config.num_draws)
        self.test_reward = jax.vmap(env.log_reward)(jnp.asarray(self.test))
        self.is_found = np.zeros((config.num_seeds, config.num_modes), bool)
        self.steps, self.rows = [], []
        self.look = jax.jit(jax.vmap(self.views))

    def views(self, params, key):
        """Strings of the policy with their log-weights; those of exact strings; log p_T over the test set."""
        net, (draw_key, back_key, test_key) = self.net, jax.random.split(key, 3)
        batch = gflownet.rollout(net, net.modules(params), draw_key, self.config.num_draws)
        strings, log_weight = batch.positions.state[:, -1], net.process(batch).log_weight
        back = net.log_weight_process(params, net.draw_backward(params, back_key, self.exact))
        log_prob = net.estimate_log_prob(
            params, test_key, self.test, num_trajectories=1 if net.env.is_append else 10
        )
        near = jax.vmap(net.env.distances)(strings) < RADIUS * self.config.num_bits
        return strings, near.any(0), log_weight.mean(), back.log_weight.mean(), log_prob

    def __call__(self, info):
        keys = jax.random.split(jax.random.key(info.step), self.config.num_seeds)
        self.strings, near, lower, upper, log_prob = jax.device_get(self.look(info.params, keys))
        self.is_found |= near
        spearman = [gflownet.rank_correlation(p, self.test_reward) for p in log_prob]
        self.steps.append(info.step)
        self.rows.append([self.is_found.sum(1), spearman, self.log_z - lower, upper - self.log_z])

    def tree(self) -> xarray.DataTree:
        """The last draws as the posterior, and the measures."""
        tree = arviz.from_dict({"posterior": {"words": self.strings}}, dims={"words": ["place"]})
        rows = zip(MEASURES, np.swapaxes(np.asarray(self.rows, float), 0, 1), strict=True)
        curves = {name: (("step", "seed"), row) for name, row in rows}
        tree["curves"] = xarray.DataTree(xarray.Dataset(curves, {"step": self.steps}))
        return tree


def environment(config: Config, order: str) -> gflownet.Bits:
    return gflownet.Bits.published(
        num_bits=config.num_bits, num_modes=config.num_modes, word_length=4, beta=config.beta,
        order=order,
    )  # fmt: skip


def run(name: str, order: str, config: Config, key) -> xarray.DataTree:
    loss, forward_looking = METHODS[name]
    env = gflownet.Bits.published(
        num_bits=config.num_bits,
        num_modes=config.num_modes,
        word_length=4,
        order=order,
        beta=config.beta,
    )
    net = gflownet.programs(
        env, flow="total" if loss.needs_whole else "shared", forward_looking=forward_looking,
        num_hidden=config.num_hidden, key=jax.random.key(0),
    )  # fmt: skip
    explore = optax.linear_schedule(0.1, 0.0, config.num_steps // 2)
    objective = gflownet.balance(net, loss, epsilon=explore)
    rates = {"policy": optax.adam(optax.cosine_decay_schedule(1e-3, config.num_steps))}
    rates |= {"log_z": optax.adam(0.1)} if net.flow == "total" else {}
    judge = Judge(net, config)
    inference.fit(
        objective, rates, (), num_steps=config.num_steps, num_seeds=config.num_seeds, key=key,
        callbacks=[judge], callback_every=config.evaluate_every, progress=False,
    )  # fmt: skip
    return judge.tree()


def distance_of_uniform(config: Config) -> float:
    """KL from R / Z to uniformly drawn strings, nats."""
    env = environment(config, "append")
    log_reward = np.asarray(jax.vmap(env.log_reward)(env.exact_draws(5_000)))
    return config.num_bits * np.log(2) + log_reward.mean() - env.log_z()


def row(name: str, tree: xarray.DataTree) -> str:
    last = tree["curves"].to_dataset().isel(step=-1)
    cells = (f"{float(last[m].mean()):.2f} ({float(last[m].std(ddof=1)):.2f})" for m in MEASURES)
    return f"  {name:9} " + " ".join(f"{cell:>14}" for cell in cells)


def record(found: dict[str, dict[str, xarray.DataTree]], config: Config) -> None:
    """Modes found, for the page of figures."""
    last = {
        f"{ORDERS[order]}, {name}": tree["curves"].to_dataset().isel(step=-1)
        for order, trees in found.items()
        for name, tree in trees.items()
    }
    record_figure(
        "gflownets/bits",
        what=f"modes found of {config.num_modes} of {config.num_bits} bits, {config.num_steps:,} steps, by order of writing and "
        "loss; spread: standard deviation over seeds",
        value={name: row["modes"].mean().item() for name, row in last.items()},
        spread={name: row["modes"].std(ddof=1).item() for name, row in last.items()},
        seeds=config.num_seeds,
        note="rank correlation of log p with log R, reverse KL, forward KL (nats): "
        + "; ".join(
            f"{name} {row['spearman'].mean().item():.2f}, {row['reverse_kl'].mean().item():.1f}, "
            f"{row['forward_kl'].mean().item():.1f}"
            for name, row in last.items()
        ),
        digits=1,
        measures=["models/gflownet"],
    )


def draw(found: dict[str, dict[str, xarray.DataTree]], config: Config, out: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(found), 4, figsize=(13, 3 * len(found)), squeeze=False, layout="constrained"
    )
    for line, (order, trees) in zip(axes, found.items(), strict=True):
        for axis, (measure, title) in zip(line, MEASURES.items(), strict=True):
            for color, (name, tree) in enumerate(trees.items()):
                step, values = tree["curves"]["step"], tree["curves"][measure].values
                axis.plot(step, values.mean(1), f"C{color}", label=name)
                axis.fill_between(
                    step, values.min(1), values.max(1), color=f"C{color}", alpha=0.2, lw=0
                )
            axis.set_xlabel("step")
            axis.set_title(f"{ORDERS[order]}: {title}", loc="left", fontsize="medium")
        # Dashed: exact draws.
        for axis, best in zip(line, (config.num_modes, 1, 0, 0), strict=True):
            axis.axhline(best, color="0.4", ls="--")
            axis.set_ylim(bottom=0)
    axes[0, -1].legend(frameon=False, fontsize="small")
    figure.savefig(out / "bits.png", dpi=120)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Balance losses on strings of bits.")
    parser.add_argument("--smoke", action="store_true", help="few bits, few steps")
    parser.add_argument("--orders", nargs="*", default=list(ORDERS), choices=list(ORDERS))
    parser.add_argument("--out", type=Path, default=Path("bits_output"))
    options = parsed(parser, arguments)
    config = Config(24, 4, 20, 2, 32, 10, 30, 20) if options.smoke else Config()
    print(
        f"{config.num_modes} modes of {config.num_bits} bits; uniform strings are {distance_of_uniform(config):.1f} nats from "
        f"R / Z; {config.num_steps} steps, {config.num_seeds} seeds, mean (sd)"
    )
    found = {}
    for order in options.orders:
        print(f"{ORDERS[order]:11} " + " ".join(f"{title:>14}" for title in MEASURES.values()))
        found[order] = {}
        for name in METHODS:
            tree = found[order][name] = run(name, order, config, jax.random.key(0))
            tree.to_netcdf(options.out / f"{order}_{name}.nc")
            print(row(name, tree), flush=True)
    draw(found, config, options.out)
    if options.record:
        record(found, config)


if __name__ == "__main__":
    main()
