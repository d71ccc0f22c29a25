"""Paths from noise to data of least kinetic energy, fitted to the data before any training.

What it shows: a flow moves x_t = alpha x_0 + beta x_1 by u_t, and KE = int E |u_t|^2 dt is what its solver pays for. It depends
on the data by one function, how well they are told from noise at each angle (`paths.separation`), and its best path is a straight
chord in the right angle (its `chord`), in place of a differential equation of the paper. Then networks are trained along that
path and two others: held-out nats per pixel, and distances from the data after few Euler steps.

Data: scikit-learn's digits, with noise of a grey level, three quarters to train; ten of them; twenty points in 3,072 dimensions;
a ring of eight Gaussians. Source: Shaul et al. 2023, arXiv:2306.06626, section 4, whose claims are: the optimum lies below both
standard paths, tends to conditional optimal transport as n / sqrt(d) goes to zero, and needs fewer steps.

Expected: the first two claims hold, and in few dimensions conditional optimal transport can be the worst; digits of 4 steps are
nearer to the data than by conditional optimal transport, and not nearer than by the cosine path, with fewer nats than by either.
Figures: docs/_data/figures, diffusion/kinetic_paths. Run time: four minutes on 2 CPU cores.

    python examples/papers/diffusion/kinetic_paths.py [--smoke] [--seed 0] [--seeds 3] [--out kinetic_paths_output] [--record]
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from _over_seeds import Row, over_seeds
from sklearn.datasets import load_digits

from lapilli import inference
from lapilli.inference import evaluation
from lapilli.models import diffusion, paths


class Config(NamedTuple):
    num_draws: int = 2_000  # of noise for the separation
    num_angles: int = 120
    num_training_steps: int = 3_000
    width: int = 192
    num_steps: tuple[int, ...] = (4, 8, 16)
    num_rows: int = 200  # whose densities are taken


STANDARD = {"conditional OT": paths.linear(), "cosine": paths.trigonometric()}


def scaled(x: np.ndarray) -> np.ndarray:
    x = x - x.mean(0)
    return (x / np.sqrt((x**2).mean())).astype(np.float32)


def data_sets(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    digits = rng.permutation(load_digits().data)
    angles = 2 * np.pi * rng.integers(8, size=1797) / 8
    ring = np.stack([np.cos(angles), np.sin(angles)], 1) * 4 + 0.25 * rng.normal(size=(1797, 2))
    return {
        "digits": scaled(digits + rng.uniform(size=digits.shape)),
        "10 digits": scaled(digits[:10]),
        "20 points of 3,072": scaled(rng.normal(size=(20, 3072))),
        "ring": scaled(ring),
    }


def learned(config: Config, path: paths.Interpolant, x: np.ndarray, key: jax.Array) -> paths.Field:
    network, steps = (
        diffusion.MLP(x.shape[1:], width=config.width, key=key),
        config.num_training_steps,
    )
    start = dist.Normal(jnp.zeros(x.shape[1:]), 1.0).to_event(1)
    fit = inference.fit(
        paths.flow_matching(network, path, start), optax.adam(optax.cosine_decay_schedule(2e-3, steps)), (jnp.asarray(x),),
        subsample={"rows": 128}, num_steps=steps, key=key, average=0.999, progress=False,
    )  # fmt: skip
    return paths.from_network(network, path, params=fit.params)


def trained_rows(config: Config, name: str, data: np.ndarray, ways: dict[str, Any], key: jax.Array) -> Row:  # fmt: skip
    """Of networks along each path: nats for each coordinate of held-out rows, distances to them."""
    rows, size = {}, data.shape[1]
    train, held = np.split(data, [3 * len(data) // 4])
    start = dist.Normal(jnp.zeros(size), 1.0).to_event(1)
    noise = jax.random.normal(key, held.shape)

    def distance(x: np.ndarray) -> float:
        return evaluation.sliced_wasserstein(held, x, jax.random.key(0), num_directions=200).value

    rows[f"{name}: distance, other data"] = distance(train[: len(held)])
    for way, path in ways.items():
        field = learned(config, path, train, key)
        law = paths.FlowLaw(field.velocity, start, rtol=1e-3, atol=1e-3)
        density = lambda x, law=law: law.estimate_log_prob(x, key, num_probes=4)
        nats = jax.jit(density)(jnp.asarray(held[: config.num_rows]))
        rows[f"{name}: nats of a coordinate, {way}"] = float(jnp.mean(nats)) / size
        for steps in config.num_steps:
            draw = lambda x, f=field, n=steps: paths.diffuse(f, key, x, noise=0.0, num_steps=n)
            rows[f"{name}: distance, {way}, {steps} steps"] = distance(np.asarray(jax.jit(draw)(noise)))  # fmt: skip
    return rows


def run(config: Config, seed: int) -> tuple[Row, Any]:
    rows, shown = {}, {}
    for i, (name, data) in enumerate(data_sets(seed).items()):
        key = jax.random.fold_in(jax.random.key(seed), i)
        sizes = {"num_angles": config.num_angles, "num_draws": config.num_draws}
        found = paths.separation(data, key, **sizes)
        ways = {"optimal": found.chord()} | STANDARD
        for way, path in ways.items():
            rows[f"{name}: energy, {way}"] = found.energy(path)
        rows[f"{name}: energy by its formula"] = 4 * np.sin(found.lengths[-1] / 2) ** 2
        if name in ("digits", "ring"):
            rows |= trained_rows(config, name, data, ways, key)
        shown[name] = ways["optimal"]
    return rows, shown


def draw(shown: dict[str, paths.Interpolant], out: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5.4, 4.2), layout="constrained")
    times = jnp.linspace(0, 1, 501)
    for name, path in (shown | STANDARD).items():
        style = ":" if name in STANDARD else "-"
        axis.plot(jax.vmap(path.beta)(times), jax.vmap(path.alpha)(times), style, label=name)
    axis.set(
        xlabel="factor of the data", ylabel="factor of the noise", title="least kinetic energy"
    )
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(out / "kinetic_paths.png", dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    over_seeds(
        "kinetic_paths", run, Config(), Config(300, 40, 60, 32, (4,), 20), draw=draw, arguments=arguments, digits=4,
        what="Kinetic energies of paths for each coordinate; networks along them: held-out nats, squared sliced distance",
        measures=["models/paths"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
