"""When did it change? A discrete unknown, summed out exactly.

What it shows: the Nile's flow fell around 1898. The year of the change is a discrete site, and every fifth year is hidden.
`ppl.eliminate` sums the year out, so that what is left is smooth, and gives its exact probabilities for each draw of the rest.

Data: statsmodels' nile, the flow at Aswan of 1871 to 1970.
Expected: certified; the change lies between 1897 and 1900, most probably in 1898 or 1899 (the first dam was begun then).
Run time: half a minute on 2 CPU cores.

    python examples/change_point.py [--smoke] [--out change_point.png]
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


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Years, flow in km^3, and which years are seen."""
    table = sm.datasets.nile.load_pandas().data
    return table.year.to_numpy(int), table.volume.to_numpy() / 10, np.arange(100) % 5 != 2


@ppl.model
def change_point(flow, seen):
    change = ppl.sample("change", dist.DiscreteUniform(1, 99))
    level = ppl.sample("level", dist.Normal(100.0, 50.0).expand([2]).to_event(1))
    noise = ppl.sample("noise", dist.HalfNormal(30.0))
    with ppl.plate("years", flow.shape[0]):
        law = dist.Normal(level[(jnp.arange(flow.shape[0]) >= change).astype(int)], noise)
        ppl.sample("flow", law.mask(seen), obs=flow)


def solve(flow: np.ndarray, seen: np.ndarray, num_samples: int) -> tuple[dict, np.ndarray]:
    """Draws of levels and noise, and the probability of each year: the mean of exact ones over the draws."""
    summed = ppl.eliminate(change_point, "change")
    posterior = inference.infer(summed, args=(flow, seen), num_samples=num_samples, progress=False)
    print(posterior)
    draws = {name: jnp.asarray(posterior.choices[name]) for name in ("level", "noise")}
    probs = jax.vmap(lambda one: summed.posterior_probs(one, flow, seen)["change"])(draws)
    return draws, np.asarray(probs.mean(0))


def draw(years, flow, seen, draws, probs, out: Path) -> None:
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 4), sharex=True, layout="constrained")
    top.plot(years[seen], flow[seen], "k.", label="seen")
    top.plot(years[~seen], flow[~seen], "o", color="0.6", mfc="none", label="hidden")
    late = np.concatenate([[0.0], np.cumsum(probs)])  # P(changed by that year)
    low, high = np.asarray(draws["level"]).mean(0)
    top.plot(years, low + (high - low) * late[:100], "C0", label="mean level")
    top.set(ylabel="flow, km$^3$ a year", title="The Nile fell in 1898 or a year later")
    top.legend(frameon=False, ncols=3)
    bottom.bar(years[1 : 1 + len(probs)], probs)
    bottom.set(ylabel="probability", xlabel="first year of the lower level")
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(smoke: bool = False, out: Path = Path("change_point.png")) -> dict[str, float]:
    years, flow, seen = load()
    draws, probs = solve(flow, seen, 400 if smoke else 4000)
    for at in np.argsort(-probs)[:4]:
        print(f"{years[1 + at]}: {probs[at]:.2f}")
    draw(years, flow, seen, draws, probs, out)
    return {"total": float(probs.sum()), "year": float(years[1 + probs.argmax()])}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The year in which a level changed.")
    parser.add_argument("--smoke", action="store_true", help="few draws")
    parser.add_argument("--out", type=Path, default=Path("change_point.png"), help="the picture")
    main(**vars(parser.parse_args()))
