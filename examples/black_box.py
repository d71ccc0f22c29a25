"""The posterior of a black-box simulator, and whether it is calibrated.

What it shows: fish that multiply and compete are counted with error (Ricker's map), in a plain function of NumPy that has no
density. A table of simulations is drawn, a network learns the posterior given any counts, and rows that nothing was trained on
judge it.

Data: simulated, 50 years of counts with known parameters, so that the answer can be compared.
Expected: the truth within two standard deviations, and no objection of the checks of calibration.
Run time: half a minute on 2 CPU cores.

    python examples/black_box.py [--smoke] [--out black_box.png]
"""

import argparse
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist

from lapilli import inference, ppl

TRUTH = {"growth": 3.8, "noise": 0.3, "visible": 10.0}


def prior():
    ppl.sample("growth", dist.Uniform(2.0, 5.0))
    ppl.sample("noise", dist.LogNormal(-1.2, 0.5))
    ppl.sample("visible", dist.LogNormal(2.3, 0.3))


def simulate(rng: np.random.Generator, parameters: dict) -> np.ndarray:
    """Summaries of 50 yearly counts: sorted logs, and products of neighbours one and two years apart."""
    fish, counts = 1.0, []
    for error in parameters["noise"] * rng.standard_normal(50):
        fish *= np.exp(parameters["growth"] - fish + error)
        counts.append(rng.poisson(parameters["visible"] * fish))
    x = np.log1p(counts)
    return np.append(np.sort(x), [np.mean(x[lag:] * x[:-lag]) for lag in (1, 2)])


def load() -> np.ndarray:
    """What was counted."""
    return simulate(np.random.default_rng(7), TRUTH)


def solve(num_simulations: int, num_steps: int):
    """The posterior given any counts."""
    table = inference.simulators.reference_table(
        prior, simulator=simulate, num_simulations=num_simulations, loop="python",
        key=jax.random.key(0), progress=False,
    )  # fmt: skip
    return inference.amortise(table, num_steps=num_steps, progress=False)


def draw(draws: dict, out: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), layout="constrained")
    before = ppl.model(prior).simulate
    prior_draws = jax.vmap(lambda key: before(key).choices)(
        jax.random.split(jax.random.key(2), 4000)
    )
    for axis, (name, truth) in zip(axes, TRUTH.items(), strict=True):
        edges = np.linspace(*np.quantile(prior_draws[name], [0.005, 0.995]), 60)
        axis.hist(prior_draws[name], edges, density=True, color="0.8", label="prior")
        axis.hist(draws[name], edges, density=True, alpha=0.6, label="posterior")
        axis.axvline(truth, color="k", ls=":", label="truth")
        axis.set(xlabel=name, yticks=[])
    axes[0].legend(frameon=False)
    figure.suptitle("Ricker's map from 50 counts, without a density")
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(smoke: bool = False, out: Path = Path("black_box.png")) -> dict[str, float]:
    found = solve(*(800, 10) if smoke else (10_000, 3000))
    draws = found.draws(jax.random.key(1), {"x": load()})
    for name, truth in TRUTH.items():
        print(f"{name:<8} {draws[name].mean():.2f} +- {draws[name].std():.2f}, truth {truth}")
    print("objections of the checks:", found.report.objections or "none")
    draw(draws, out)
    off = [abs(draws[n].mean() - t) / draws[n].std() for n, t in TRUTH.items()]
    return {"off": float(max(off)), "objections": float(len(found.report.objections))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The posterior of a black box.")
    parser.add_argument("--smoke", action="store_true", help="few simulations and steps")
    parser.add_argument("--out", type=Path, default=Path("black_box.png"), help="the picture")
    main(**vars(parser.parse_args()))
