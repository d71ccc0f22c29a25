"""Draw subsets in proportion to how good they are: a GFlowNet beside the exact answer.

What it shows: which of ten measurements belong into a regression? The reward of a subset is the density of the data with the
coefficients integrated out (Zellner's g-prior), and a policy learns to build subsets with probability reward / Z. There are
1,024 of them, so that its exact law can be compared with the posterior.

Data: scikit-learn's diabetes, 442 patients.
Expected: a total variation below 0.1 to the exact posterior; the best subset has probability 0.28; bmi, bp and s5 are always
in.
Run time: half a minute on 2 CPU cores.

    python examples/subsets.py [--smoke] [--out subsets.png]
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_diabetes

from lapilli import inference
from lapilli.models import gflownet

NUM = 10


def load() -> tuple[list[str], int, np.ndarray, np.ndarray]:
    """Names, number of rows, correlations of the columns, and of columns and outcome."""
    data = load_diabetes()
    x = (data.data - data.data.mean(0)) / data.data.std(0)
    y = (data.target - data.target.mean()) / data.target.std()
    return data.feature_names, len(y), x.T @ x / len(y), x.T @ y / len(y)


class Subsets(gflownet.Environment):
    """Add one column after the other, and stop at any time."""

    num_actions = num_steps = NUM
    stops = True

    def __init__(self, num_rows, gram, moment):
        self.num_rows, self.gram, self.moment = num_rows, jnp.asarray(gram), jnp.asarray(moment)

    def start(self):
        return jnp.zeros(NUM, bool)

    def observe(self, subset):
        return subset.astype(float)

    def legal(self, subset):
        return ~subset

    def removable(self, subset):
        return subset

    def step(self, subset, column):
        return subset.at[column].set(True)

    def undo(self, subset, column):
        return subset.at[column].set(False)

    def log_reward(self, subset):
        n, k, b = self.num_rows, subset.sum(), jnp.where(subset, self.moment, 0.0)
        r2 = b @ jnp.linalg.solve(jnp.where(subset[:, None] & subset, self.gram, jnp.eye(NUM)), b)
        return 0.5 * (n - 1 - k) * jnp.log1p(n) - 0.5 * (n - 1) * jnp.log1p(n * (1 - r2))


def solve(env: Subsets, num_steps: int) -> tuple[gflownet.Table, np.ndarray]:
    """All subsets with their exact probabilities, and the law of what the learned policy builds."""
    net = gflownet.programs(env, flow="total", num_hidden=64, key=jax.random.key(0))
    falling = lambda step: jnp.maximum(0.0, 1.0 - 2.0 * step / num_steps)  # of random actions
    loss = gflownet.balance(net, gflownet.trajectory_balance(), batch_size=32, epsilon=falling)
    rates = {"policy": optax.adam(1e-3), "log_z": optax.adam(0.1)}
    fit = inference.fit(loss, rates, (), num_steps=num_steps, key=jax.random.key(1), progress=False)
    table = gflownet.tabulate(env)
    return table, np.asarray(table.law(net, fit.params))


def draw(names, subsets, target, law, out: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    shown = target > 1e-5
    left.loglog(target[shown], law[shown], ".", ms=4)
    left.plot([1e-5, 1], [1e-5, 1], "0.6", lw=1)
    left.set(xlabel="exact probability", ylabel="learned probability", title="1,024 subsets")
    at = np.arange(NUM)
    right.bar(at - 0.2, target @ subsets, 0.4, color="0.7", label="exact")
    right.bar(at + 0.2, law @ subsets, 0.4, label="learned")
    right.set(xticks=at, xticklabels=names, ylabel="probability to be in", ylim=(0, 1.3))
    right.legend(frameon=False, ncols=2)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(smoke: bool = False, out: Path = Path("subsets.png")) -> dict[str, float]:
    names, *numbers = load()
    table, law = solve(Subsets(*numbers), 20 if smoke else 4000)
    subsets = np.asarray(table.states)[table.objects]
    distance = float(gflownet.total_variation(law, table.target))
    print(f"log Z {table.log_z:.2f} nats; total variation to the exact posterior {distance:.3f}")
    for i in np.argsort(-table.target)[:4]:
        chosen = " ".join(n for n, is_in in zip(names, subsets[i], strict=True) if is_in)
        print(f"exact {table.target[i]:.3f}  learned {law[i]:.3f}  {chosen}")
    draw(names, subsets, np.asarray(table.target), law, out)
    return {"distance": distance, "total": float(law.sum())}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Subsets of columns, by a GFlowNet.")
    parser.add_argument("--smoke", action="store_true", help="few steps")
    parser.add_argument("--out", type=Path, default=Path("subsets.png"), help="the picture")
    main(**vars(parser.parse_args()))
