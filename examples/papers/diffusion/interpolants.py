"""Stochastic interpolants: from one law to another, by a flow or by diffusions of any noise.

What it shows: between x_0 and x_1 from two laws lies x_t = (1 - t) x_0 + t x_1 + gamma(t) z, gamma^2 = t (1 - t). With the
velocity b = E[dx_t/dt | x_t] and the score s, the flow dx = b dt and every diffusion dx = (b + eps s) dt + sqrt(2 eps) dW carry
the first law to the second. With exact b and s, here those of Gaussian mixtures, they do not differ, and neither do the
densities that they give, each by its unbiased estimate. With learned ones they do: noise mends the errors of a velocity.

Data: two Gaussians to a ring of eight. Source: Albergo, Boffi and Vanden-Eijnden 2023, arXiv:2303.08797, theorems 2.6 and 2.23
(marginals, and the bound by which diffusions are more robust), section 7.

Expected: noise helps after 300 steps of training, and no longer after 3,000. Figures: docs/_data/figures,
diffusion/interpolants. Run time: a minute on 2 CPU cores.

    python examples/papers/diffusion/interpolants.py [--smoke] [--seed 0] [--seeds 3] [--out interpolants_output] [--record]
"""

from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _over_seeds import Row, over_seeds

from lapilli import inference
from lapilli.inference import evaluation
from lapilli.models import paths

ANGLES = 2 * np.pi * np.arange(8) / 8
START = paths.Mixture(np.array([[-1.0, 0.0], [1.0, 0.0]]), 0.3**2)
END = paths.Mixture(2.5 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1), 0.25**2)
PATH = paths.linear(noise=1.0)
EXACT = paths.mixture_field(PATH, START, END)
NOISES = (0.0, 0.5, 2.0)


class Config(NamedTuple):
    num_samples: int = 2_000
    num_steps: int = 500
    num_training_steps: tuple[int, ...] = (300, 3_000)
    width: int = 96
    num_points: int = 20  # at which densities are compared
    num_paths: int = 400  # of each


class Fields(eqx.Module):
    """E[dx_t/dt | x_t] and E[z | x_t]."""

    net: eqx.nn.MLP

    def __init__(self, width: int, *, key: jax.Array) -> None:
        self.net = eqx.nn.MLP(7, 4, width, 3, jax.nn.silu, key=key)

    def __call__(self, x: jax.Array, t: jax.Array, context: None) -> tuple[jax.Array, ...]:
        waves = jnp.stack([t, jnp.sin(np.pi * t), jnp.cos(np.pi * t), t**2, jnp.sin(2 * np.pi * t)])
        return tuple(jnp.split(self.net(jnp.concatenate([x / 2, waves])), 2))


def train(config: Config, num_steps: int, key: jax.Array) -> paths.Field:
    network, keys = Fields(config.width, key=key), jax.random.split(key)
    start, end = START.sample(keys[0], 100_000), END.sample(keys[1], 100_000)
    matching = paths.flow_matching(network, PATH, start, batch_size=512)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))
    fit = inference.fit(matching, optimizer, (end,), num_steps=num_steps, key=key, progress=False)
    return paths.from_network(network, PATH, params=fit.params)


def run(config: Config, seed: int) -> tuple[Row, dict[str, np.ndarray]]:
    """Distances and errors by name, and the samples behind them."""
    keys = jax.random.split(jax.random.key(seed), 4)
    reference, other = (np.asarray(END.sample(k, config.num_samples)) for k in keys[:2])

    def distance(x: np.ndarray) -> float:
        return evaluation.sliced_wasserstein(reference, x, jax.random.key(0), num_directions=200).value  # fmt: skip

    rows, samples = {"two sets of exact draws": distance(other)}, {}
    fields = {"exact": EXACT}
    fields |= {f"{n} steps of training": train(config, n, keys[2]) for n in config.num_training_steps}  # fmt: skip
    start = START.sample(keys[3], config.num_samples)
    for name, field in fields.items():
        for noise in NOISES:
            draw = lambda x, f=field, e=noise: paths.diffuse(f, keys[3], x, noise=e, num_steps=config.num_steps)  # fmt: skip
            row = f"{name}, eps = {noise:g}"
            samples[row] = np.asarray(jax.jit(draw)(start))
            rows[row] = distance(samples[row])
    x = END.sample(keys[1], config.num_points)
    truth = jax.vmap(lambda x: EXACT.log_density(1.0, x))(x)
    for noise in NOISES:
        options = {"noise": noise, "num_steps": config.num_steps}
        options["num_paths"] = config.num_paths if noise else 1
        density = lambda x, o=options: paths.diffusion_log_density(EXACT, START.law, x, keys[2], **o)  # fmt: skip
        error = jnp.abs(jax.jit(density)(x) - truth)
        rows[f"log density, nats, eps = {noise:g}"] = float(jnp.mean(error))
    return rows, samples


def draw(samples: dict[str, np.ndarray], out: Path) -> None:
    import matplotlib.pyplot as plt

    options = {"figsize": (7.8, 8.1), "layout": "constrained", "sharex": True, "sharey": True}
    figure, axes = plt.subplots(len(samples) // len(NOISES), len(NOISES), **options)
    for axis, (name, x) in zip(axes.ravel(), samples.items(), strict=True):
        axis.plot(*x.T, ".", ms=1.5, alpha=0.4)
        axis.plot(*np.asarray(END.means).T, "k+", ms=6)
        axis.set(xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), xticks=[], yticks=[], aspect="equal")
        axis.set_title(name, fontsize=8)
    figure.savefig(out / "interpolants.png", dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    over_seeds(
        "interpolants", run, Config(), Config(4_000, 100, (100,), 32, 10, 50), draw=draw, arguments=arguments,
        what="Two Gaussians carried to a ring: squared sliced Wasserstein distance, mean error of log densities",
        measures=["models/paths", "inference/evaluation"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
