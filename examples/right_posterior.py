"""Is a posterior right? Checks that see a correlation which a mean-field guide leaves out.

What it shows: two blood values that say much the same. `check_posterior` draws parameters and data from the program, asks for a
posterior each time, and says in words what is wrong: of the exact one nothing, of one with right means and widths of each
coordinate alone that directions across them are wrong.

Data: scikit-learn's diabetes, columns s1 and s2 (correlation 0.9) of 442 patients, and the progress of the illness.
Expected: no objection to the exact posterior; "joint" and "directions" object to the other.
Run time: half a minute on 2 CPU cores.

    python examples/right_posterior.py [--smoke] [--out right_posterior.png]
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from sklearn.datasets import load_diabetes

from lapilli import inference, ppl


def load(num_rows: int) -> tuple[jax.Array, jax.Array]:
    """Products of two blood values with each other, [2, 2], and with the outcome, [2]: all that the data say of the slopes."""
    data = load_diabetes()
    x = data.data[:num_rows, [4, 5]]
    x = (x - x.mean(0)) / x.std(0)
    y = (data.target - data.target.mean())[:num_rows] / data.target.std()
    return jnp.asarray(x.T @ x), jnp.asarray(x.T @ y)


@ppl.model
def regression(gram, told):
    """Slopes, and x.T @ y of a regression whose noise is 1."""
    slopes = ppl.sample("slopes", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    ppl.sample("told", dist.MultivariateNormal(gram @ slopes, gram), obs=told)


def posteriors(gram: jax.Array) -> dict:
    """Two ways from a key and observed sites to draws: exact, and with the correlation left out."""
    covariance = jnp.linalg.inv(jnp.eye(2) + gram)
    roots = {
        "exact": jnp.linalg.cholesky(covariance),
        "no correlation": jnp.diag(jnp.sqrt(jnp.diag(covariance))),
    }

    def made(root):
        def draws(key, observed):
            mean = covariance @ observed["told"]
            return {"slopes": mean + jax.random.normal(key, (99, 2)) @ root.T}

        return draws

    return {name: made(root) for name, root in roots.items()}


def solve(gram: jax.Array, told: jax.Array, num_simulations: int) -> dict:
    """A report for each posterior."""
    check = inference.posterior_checks.check_posterior
    options = {"observed": {"told": told}, "num_simulations": num_simulations}
    return {
        name: check(regression, way, jax.random.key(0), gram, told, **options)
        for name, way in posteriors(gram).items()
    }


def draw(gram, told, out: Path) -> None:
    figure, axis = plt.subplots(figsize=(5, 3.4), layout="constrained")
    for i, (name, way) in enumerate(posteriors(gram).items()):
        keys = jax.random.split(jax.random.key(1), 20)
        slopes = np.concatenate([way(key, {"told": told})["slopes"] for key in keys])
        axis.plot(*slopes.T, ".", ms=3, alpha=0.5, color=f"C{i}", label=name)
    axis.set(
        xlabel="slope of s1",
        ylabel="slope of s2",
        title="Each coordinate is right, their law is not",
    )
    axis.legend(frameon=False, markerscale=3)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(smoke: bool = False, out: Path = Path("right_posterior.png")) -> dict[str, float]:
    data = load(50 if smoke else 442)
    reports = solve(*data, 200 if smoke else 400)
    for name, report in reports.items():
        print(f"{name}: objections {report.objections or 'none'}")
        print(*(f"  {sentence}" for sentence in report.sentences), sep="\n")
    draw(*data, out)
    return {name: float("directions" in report.objections) for name, report in reports.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Is a posterior right?")
    parser.add_argument("--smoke", action="store_true", help="few rows and simulations")
    parser.add_argument("--out", type=Path, default=Path("right_posterior.png"), help="the picture")
    main(**vars(parser.parse_args()))
