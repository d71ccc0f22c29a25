"""A forecast with a fan chart: level, slope and season integrated out by Kalman's filter.

What it shows: the program is written as it is thought, a loop over months with normal states; `ppl.eliminate` integrates the
states out exactly, the four scales get their most likely values, and `predict` goes on from there. Two years are kept back and
compared.

Data: statsmodels' co2, Mauna Loa by month, 1985 to 2001; the last 24 months are not shown to the fit.
Expected: the 90 % bands hold 23 of the 24 months; a mean error of 0.4 ppm, where the values two years before are off by 2.7.
Run time: ten seconds on 2 CPU cores.

    python examples/fan_chart.py [--smoke] [--out fan_chart.png]
"""

import argparse
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax
import statsmodels.api as sm

from lapilli import inference, ppl

AHEAD = 24
SCALES = {"drift": 0.2, "bend": 0.02, "turn": 0.02, "noise": 0.2}  # at first, ppm


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Years as numbers, waves of a year and half a year [months, 4], and CO2 less its first value, ppm."""
    series = sm.datasets.co2.load_pandas().data.co2.resample("MS").mean().interpolate()["1985":]
    month = np.arange(len(series)) / 12
    waves = np.stack([f(2 * np.pi * k * month) for k in (1, 2) for f in (np.sin, np.cos)], 1)
    return 1985 + month, waves, series.to_numpy() - series.iloc[0]


@ppl.model
def structural(waves, y):
    scale = lambda name, first: ppl.param(name, first, constraint=dist.constraints.positive)
    drift, bend, turn, noise = (scale(*s) for s in SCALES.items())
    season = ppl.sample("season", dist.Normal(0.0, 5.0).expand([4]).to_event(1))

    def month(state, now):
        level, slope, season = state
        wave, y = now
        slope = ppl.sample("slope", dist.Normal(slope, bend))
        level = ppl.sample("level", dist.Normal(level + slope, drift))
        season = ppl.sample("turning", dist.Normal(season, turn).to_event(1))
        ppl.sample("y", dist.Normal(level + wave @ season, noise), obs=y)
        return (level, slope, season), None

    ppl.scan(month, (0.0, 0.1, season), (waves, y))


def solve(waves: np.ndarray, y: np.ndarray, num_steps: int) -> np.ndarray:
    """Draws of the last months given the months before, [draws, AHEAD]."""
    exact = ppl.eliminate(structural, ["season", "slope", "level", "turning"])
    n = len(y) - AHEAD
    likelihood = inference.elbo(exact, lambda waves, y: None)  # nothing is left to guess
    fit = inference.fit(
        likelihood, optax.adam(0.05), (waves[:n], y[:n]), num_steps=num_steps, progress=False
    )
    print({name: f"{float(x):.3f}" for name, x in ppl.constrain(fit.params).items()}, "ppm")
    known = exact.bind(fit.params)
    return inference.predict(known, {}, jax.random.key(2), waves, y, num_seen=n)["y"][:, n:]


def draw(years, y, ahead, out: Path) -> None:
    figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
    shown = slice(len(y) - 72, None)
    axis.plot(years[shown], y[shown], "k.-", ms=4, lw=0.8, label="measured")
    for share, shade in ((0.95, 0.25), (0.8, 0.45), (0.5, 0.7)):
        low, high = np.quantile(ahead, [(1 - share) / 2, (1 + share) / 2], axis=0)
        axis.fill_between(
            years[-AHEAD:], low, high, color=plt.get_cmap("Blues")(shade), label=f"{share:.0%}"
        )
    axis.set(title="Two years that the fit has not seen", xlabel="year", ylabel="CO$_2$, ppm more")
    axis.legend(frameon=False, loc="upper left")
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(smoke: bool = False, out: Path = Path("fan_chart.png")) -> dict[str, float]:
    years, waves, y = load()
    if smoke:
        years, waves, y = years[-72:], waves[-72:], y[-72:] - y[-72]
    ahead = solve(waves, y, 20 if smoke else 400)
    low, high = np.quantile(ahead, [0.05, 0.95], axis=0)
    future, last = y[-AHEAD:], y[-2 * AHEAD : -AHEAD]
    held = np.mean((low <= future) & (future <= high))
    error = np.abs(np.median(ahead, 0) - future).mean()
    naive = np.abs(last - future).mean()
    print(f"90 % bands hold {held:.0%} of {AHEAD} months")
    print(f"mean absolute error {error:.2f} ppm, of the values two years before {naive:.2f}")
    draw(years, y, ahead, out)
    return {"held": float(held), "error": float(error), "naive": float(naive)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A forecast with a fan chart.")
    parser.add_argument("--smoke", action="store_true", help="few months and steps")
    parser.add_argument("--out", type=Path, default=Path("fan_chart.png"), help="the picture")
    main(**vars(parser.parse_args()))
