"""A posterior of many modes, by particles that are tempered, and its evidence beside the exact one.

What it shows: how long is the cycle of the sunspots? Each wrong period that fits by chance is a mode, narrow and far from the
others, in which a Markov chain stays. `tempered_smc` goes from the prior to the posterior by steps and weighs the modes. Given
period and noise all is linear and normal, so that `ppl.eliminate` and a grid have the exact evidence.

Data: statsmodels' sunspots, yearly numbers of 1700 to 2008, square roots.
Expected: a period of 11.0 years (and half a year); log evidence within 0.3 nats of the exact one.
Run time: a minute on 2 CPU cores.

    python examples/periods.py [--smoke] [--out periods.png]
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import statsmodels.api as sm

from lapilli import inference, ppl

NOISE = dist.LogNormal(1.0, 0.3)
SHORT, LONG = 6.0, 16.0


def load() -> np.ndarray:
    """Square roots of the yearly numbers, less their mean."""
    y = np.sqrt(sm.datasets.sunspots.load_pandas().data.SUNACTIVITY.to_numpy())
    return y - y.mean()


@ppl.model
def cycle(y):
    period = ppl.sample("period", dist.Uniform(SHORT, LONG))
    noise = ppl.sample("noise", NOISE)
    waves = ppl.sample("waves", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    turn = 2 * jnp.pi * jnp.arange(y.shape[0]) / period
    with ppl.plate("years", y.shape[0]):
        ppl.sample(
            "y", dist.Normal(waves[0] * jnp.sin(turn) + waves[1] * jnp.cos(turn), noise), obs=y
        )


def solve(y: np.ndarray, num_particles: int):
    """Weighted particles of period, noise and waves."""
    return inference.tempered_smc(
        cycle, jax.random.key(0), jnp.asarray(y), num_particles=num_particles
    )


def exact(y: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray, float]:
    """A grid of periods, their posterior density, and the log evidence, with the waves integrated out."""
    summed = ppl.eliminate(cycle, "waves")
    periods, noises = jnp.linspace(SHORT, LONG, num), jnp.linspace(1.5, 4.5, 60)
    at = lambda p, s: summed.log_density({"period": p, "noise": s}, jnp.asarray(y))
    row = lambda p: jax.vmap(lambda s: at(p, s))(noises)
    logs = np.asarray(jax.jit(lambda periods: jax.lax.map(row, periods))(periods), float)
    width, height = float(periods[1] - periods[0]), float(noises[1] - noises[0])
    log_z = np.logaddexp.reduce(logs.ravel()) + np.log(width * height)
    return np.asarray(periods), np.exp(logs - log_z).sum(1) * height, log_z


def draw(periods, density, drawn, out: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    axes[0].semilogy(periods, np.maximum(density, 1e-30), lw=0.8)
    axes[0].set(xlabel="period, years", ylabel="density", title="A hundred modes ...")
    near = (periods > 10.5) & (periods < 11.5)
    axes[1].plot(periods[near], density[near], "k", lw=1, label="exact")
    axes[1].hist(drawn, np.linspace(10.5, 11.5, 81), density=True, alpha=0.5, label="particles")
    axes[1].set(xlabel="period, years", title="... and the one that has the mass")
    axes[1].legend(frameon=False)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(smoke: bool = False, out: Path = Path("periods.png")) -> dict[str, float]:
    y = load()[-100:] if smoke else load()
    run = solve(y, 300 if smoke else 2000)
    drawn = np.asarray(run.sample(jax.random.key(1), 2000)["period"])
    periods, density, log_z = exact(y, 400 if smoke else 2000)
    print(f"period {drawn.mean():.2f} +- {drawn.std():.2f} years")
    print(f"log evidence {run.log_evidence:.2f}, exact {log_z:.2f} nats")
    draw(periods, density, drawn, out)
    return {"period": float(drawn.mean()), "off": float(run.log_evidence - log_z)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="The cycle of the sunspots, by tempered particles."
    )
    parser.add_argument("--smoke", action="store_true", help="few years and particles")
    parser.add_argument("--out", type=Path, default=Path("periods.png"), help="the picture")
    main(**vars(parser.parse_args()))
