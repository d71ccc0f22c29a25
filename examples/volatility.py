"""Stochastic volatility: a state that is neither seen nor normal, by particles.

What it shows: the log of the volatility is a slow autoregression, and growth is drawn with it. There is no exact filter; the
same program runs as a particle filter, whose unbiased evidence drives a Markov chain on the three parameters (PMMH).

Data: statsmodels' macrodata, growth of the United States' economy, 202 quarters of 1959 to 2009.
Expected: swings of 1985 to 2007 half of those before.
Run time: half a minute on 2 CPU cores.

    python examples/volatility.py [--smoke] [--out volatility.png]
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


def load() -> tuple[np.ndarray, np.ndarray]:
    """Years as numbers, and growth, per cent a year."""
    gdp = sm.datasets.macrodata.load_pandas().data.realgdp.to_numpy()
    growth = 400 * np.diff(np.log(gdp))
    return 1959.25 + np.arange(len(growth)) / 4, growth


@ppl.model
def volatility(growth):
    mean = ppl.sample("mean", dist.Normal(3.0, 1.0))
    pace = ppl.sample("pace", dist.LogNormal(jnp.log(0.2), 0.5))
    usual = ppl.sample("usual", dist.Normal(1.0, 0.5))

    def quarter(log_sd, growth):
        log_sd = ppl.sample("log_sd", dist.Normal(usual + 0.95 * (log_sd - usual), pace))
        ppl.sample("growth", dist.Normal(mean, jnp.exp(log_sd)), obs=growth)
        return log_sd, None

    ppl.scan(quarter, usual, growth)


def solve(growth: np.ndarray, num_particles: int, num_samples: int):
    """A chain on the parameters, each with a path of the log of the volatility."""
    return inference.particles.pmmh(
        volatility, jax.random.key(0), jnp.asarray(growth), parameters=["mean", "pace", "usual"],
        num_particles=num_particles, num_samples=num_samples, num_warmup=num_samples // 4,
    )  # fmt: skip


def draw(years, growth, sd, out: Path) -> None:
    low, middle, high = np.quantile(sd, [0.05, 0.5, 0.95], axis=0)
    figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
    axis.plot(
        years,
        np.abs(growth - growth.mean()),
        ".",
        color="0.5",
        label="distance of growth from its mean",
    )
    axis.plot(years, middle, "C0", label="volatility, median and 90 %")
    axis.fill_between(years, low, high, color="C0", alpha=0.25)
    axis.set(
        title="Swings of growth halved in the eighties", ylabel="per cent a year", xlabel="year"
    )
    axis.legend(frameon=False)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(smoke: bool = False, out: Path = Path("volatility.png")) -> dict[str, float]:
    years, growth = load()
    chain = solve(growth, 50 if smoke else 300, 100 if smoke else 2000)
    sd = np.exp(np.asarray(chain.states["log_sd"]))
    calm = (years > 1985) & (years < 2007)
    ratio = np.median(sd[:, calm]) / np.median(sd[:, years < 1984])
    accepted = float(chain.is_accepted.mean())
    for name, draws in chain.parameters.items():
        print(f"{name:<6} {draws.mean():.2f} +- {draws.std():.2f}")
    print(f"volatility of 1985 to 2007 over that before: {ratio:.2f}; accepted {accepted:.2f}")
    draw(years, growth, sd, out)
    return {"ratio": float(ratio), "accepted": accepted}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Stochastic volatility by particles.")
    parser.add_argument("--smoke", action="store_true", help="few particles and samples")
    parser.add_argument("--out", type=Path, default=Path("volatility.png"), help="the picture")
    main(**vars(parser.parse_args()))
