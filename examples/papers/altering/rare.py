"""Rare events and far minima: cross-entropy as a tilt whose level rises, and when its weights can be believed.

What it shows: P(Z > 4.5) = 3.39767e-6 by proposals that the cross-entropy method adapts level by level, from 2,000 draws for
the level and as many for the moments, and 10,000 for the estimate. With the mean alone it is right. With the width, each level is
seen by a proposal too narrow for it: the width shrinks, perhaps before 4.5 is reached. At the optimum of the cross-entropy itself
(4.704, 0.197) the weights have no variance; k-hat of 10,000 draws does not see that, the rays that the report follows outwards
do. Then minima of Rastrigin's function as the tilt of a wide Normal by -f / temperature: particles and the best of as many draws.

Source: Rubinstein 1999 (cross-entropy); Naesseth et al. 2020, arXiv:2003.10374 (the same as a forward divergence).
Expected: within 5 % for the mean alone; minima within 0.3 of the origin in 95 % of the runs of particles in the plane. Figures:
docs/_data/figures, altering/rare. Run time: one minute on 2 CPU cores.

    python examples/papers/altering/rare.py [--smoke] [--out rare_output] [--record]
"""

from pathlib import Path
from typing import Any, NamedTuple

import _altered as altered
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from _altered import Means, Rows
from scipy.stats import norm

from lapilli import inference, ppl
from lapilli.inference.particles import moves

LEVEL = 4.5
EXACT = float(norm.sf(LEVEL))


class Config(NamedTuple):
    num_draws: int = 2000  # at each level
    most_levels: int = 20
    num_final: int = 10_000
    num_runs: int = 40  # of each search
    num_particles: int = 400


def guide(mean: Any, width: Any) -> ppl.Program:
    return ppl.model(lambda: ppl.sample("x", dist.Normal(mean, width)))


normal = guide(0.0, 1.0)


@jax.jit  # once for all levels
def log_weights(level: Any, mean: Any, width: Any, keys: Any) -> Any:
    """Draws of the guide and their log-weights towards the tilt by x > level."""
    tilt, q = inference.tilt(normal, lambda x: x > level, num_tried=0), guide(mean, width)
    x = jax.vmap(lambda key: q.simulate(key).choices["x"])(keys)
    return x, jax.vmap(lambda x: tilt.log_density({"x": x}) - q.log_density({"x": x}))(x)


def adapted(config: Config, key: jax.Array, *, with_width: bool) -> tuple[float, float]:
    """Mean and width of the best Normal for the tilt at each level: weighted moments are where `forward_kl` is least."""
    mean, width = 0.0, 1.0
    for step in jax.random.split(key, config.most_levels):
        x = jax.random.normal(step, (config.num_draws,))
        level = min(LEVEL, mean + width * float(np.quantile(x, 0.9)))
        keys = jax.random.split(step, config.num_draws)
        x, log_w = (np.asarray(a, float) for a in log_weights(level, mean, width, keys))
        w = np.exp(log_w - log_w.max())
        mean = float((w * x).sum() / w.sum())
        if with_width:
            width = float(np.sqrt((w * (x - mean) ** 2).sum() / w.sum()))
        if level == LEVEL:
            break
    return mean, width


def estimate(config: Config, mean: float, width: float, key: jax.Array) -> dict[str, float]:
    w = np.exp(np.asarray(log_weights(LEVEL, mean, width, jax.random.split(key, config.num_final))[1], float))  # fmt: skip
    found = {
        "mean": mean, "width": width, "relative error": float(w.mean() / EXACT - 1),
        "its standard error": float(w.std() / len(w) ** 0.5 / EXACT), "k-hat": np.nan, "narrow rays": np.nan,
    }  # fmt: skip
    if w.any():  # else no draw has reached the level
        rare = inference.tilt(normal, lambda x: x > LEVEL, num_tried=0)
        made = inference.tilts.report(rare, guide(mean, width), key, num_draws=config.num_final)
        assert made.k_hat is not None and made.narrow_tails is not None
        found |= {"k-hat": made.k_hat, "narrow rays": made.narrow_tails}
    return found


def minima(config: Config, dim: int, key: jax.Array) -> dict[str, float]:
    """Shares of runs whose best particle lies within 0.3 of the minimum in each coordinate, and evaluations of one run."""
    wide = ppl.model(lambda: ppl.sample("x", dist.Normal(0.0, 3.0).expand([dim]).to_event(1)))
    reward = lambda x: -(x**2 - 10 * jnp.cos(2 * jnp.pi * x) + 10).sum()  # Rastrigin's function
    tilt = inference.tilt(wide, reward, 0.5)

    def tempered(key: jax.Array) -> tuple[Any, Any]:
        moved = {"num_moves": 10, "kernel": moves.RandomWalk()}
        run = inference.tempered_smc(tilt, key, num_particles=config.num_particles, **moved)
        x = run.particles["x"]
        return x[jnp.argmax(jax.vmap(reward)(x))], run.num_moves.sum() * config.num_particles

    keys = jax.random.split(key, config.num_runs)
    found, spent = jax.jit(jax.vmap(tempered))(keys)
    best = inference.best_of(wide, reward, int(np.mean(spent)))
    one = lambda key: best.simulate(jax.random.fold_in(key, 1)).choices["x"]
    other = jax.jit(lambda keys: jax.lax.map(one, keys))(keys)
    share = lambda x: float((np.abs(np.asarray(x)).max(1) < 0.3).mean())
    return {"tempered": share(found), "best of as many": share(other), "evaluations": float(np.mean(spent))}  # fmt: skip


def run(config: Config, seed: int) -> Rows:
    rows, keys = Rows(), jax.random.split(jax.random.key(seed), 6)
    for i, (name, with_width) in enumerate({"mean and width": True, "mean": False}.items()):
        mean, width = adapted(config, keys[i], with_width=with_width)
        rows[f"P(Z > 4.5), {name}"] = estimate(config, mean, width, keys[i + 2])
    mean = float(norm.pdf(LEVEL)) / EXACT
    width = (1 + LEVEL * mean - mean**2) ** 0.5
    rows["P(Z > 4.5), the optimum"] = estimate(config, mean, width, keys[2])
    rows["Rastrigin, 2 dimensions"] = minima(config, 2, keys[4])
    return rows | {"Rastrigin, 5 dimensions": minima(config, 5, keys[5])}


def draw(rows: Means, path: Path) -> None:
    """The weights along x of both proposals that reach the level: 1 is where all are equal."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    x = np.linspace(LEVEL, 7, 200)
    for name in ("mean", "the optimum"):
        mean, width = (rows[f"P(Z > 4.5), {name}"][c][0] for c in ("mean", "width"))
        log_w = norm.logpdf(x) - norm.logpdf(x, mean, width) - np.log(EXACT)
        (line,) = axis.semilogy(x, np.exp(log_w), label=f"{name}: width {width:.2f}")
        axis.semilogy(x, norm.pdf(x, mean, width), ":", color=line.get_color())
    axis.set(xlabel="x", ylabel="weight over its mean; density (dotted)", ylim=(1e-6, 1e6))
    axis.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    options = altered.options("rare", "Rare events and far minima as tilts.", arguments)
    config = Config(1000, 20, 2000, 4, 50) if options.smoke else Config()
    altered.told(
        options, "rare", lambda seed: run(config, seed), draw=draw,
        what=f"P(Z > 4.5) = {EXACT:.4g} from {config.num_final:,} draws after cross-entropy: relative error",
        column="relative error", measures=["inference/tilts"],
        notes=["its standard error", "width", "k-hat", "narrow rays", "tempered", "best of as many"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
