"""Stochastic interpolants: from one law to another, by a flow or by diffusions of any noise.

What it shows: between x_0 and x_1 from two laws lies x_t = (1 - t) x_0 + t x_1 + gamma(t) z, gamma^2 = t (1 - t). With the
velocity b = E[dx_t/dt | x_t] and the score s, the flow dx = b dt and every diffusion dx = (b + eps s) dt + sqrt(2 eps) dW carry
the first law to the second. With exact b and s, here those of Gaussian mixtures, they do not differ, and neither do the
densities that they give. With learned ones they do: noise mends the errors of a velocity.

Data: two Gaussians to a ring of eight. Source: Albergo, Boffi and Vanden-Eijnden 2023, arXiv:2303.08797, theorems 2.6 and 2.23
(marginals, and the bound by which diffusions are more robust), section 7.

Expected, squared sliced Wasserstein distance to 2,000 draws of the second law at eps = 0 / 0.5 / 2 (two sets of exact draws:
0.028 +- 0.017): exact fields 0.013 / 0.018 / 0.023, +- 0.012; after 300 steps of training 0.054 / 0.029 / 0.038, +- 0.007,
where noise helps; after 3,000 steps 0.011 / 0.012 / 0.025, +- 0.008 to 0.013, where it no longer does. Log densities from exact
fields are right to 0.02 / 0.11 / 0.24 nats, the last two by 400 paths each. Run time: a minute on 2 CPU cores.

    python examples/diffusion/interpolants.py [--smoke] [--seed 0] [--out interpolants_output]
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import arviz
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lapilli import inference, ppl
from lapilli.inference import evaluation

ANGLES = 2 * np.pi * np.arange(8) / 8
START = (np.array([[-1.0, 0.0], [1.0, 0.0]]), 0.3**2)  # means, variance
END = (2.5 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1), 0.25**2)
Field = Callable[[Any, Any], Any]  # (t, x) -> vector
NOISES = (0.0, 0.5, 2.0)


class Config(NamedTuple):
    num_samples: int = 2_000
    num_steps: int = 500
    num_training_steps: tuple[int, ...] = (300, 3_000)
    width: int = 96
    num_points: int = 50  # at which densities are compared
    num_paths: int = 400  # of each


# The exact fields: given the pair of components, x_t is Gaussian, and so is (dx_t/dt, x_t).


def parts(t: Any, x: Any) -> tuple[Any, Any, Any]:
    """Log-density, velocity and score at one point."""
    (m0, v0), (m1, v1) = START, END
    means = (1 - t) * m0[:, None] + t * m1[None]
    rates = m1[None] - m0[:, None]
    variance = (1 - t) ** 2 * v0 + t**2 * v1 + t * (1 - t)
    covariance = -(1 - t) * v0 + t * v1 + 0.5 * (1 - 2 * t)  # of dx_t/dt and x_t
    away = x - means
    logs = -0.5 * jnp.sum(away**2, -1) / variance - jnp.log(2 * jnp.pi * variance)
    logs = logs - np.log(len(m0) * len(m1))
    share = jax.nn.softmax(logs.ravel()).reshape(logs.shape)[..., None]
    velocity = jnp.sum(share * (rates + covariance / variance * away), (0, 1))
    return jax.nn.logsumexp(logs), velocity, -jnp.sum(share * away, (0, 1)) / variance


def exact_velocity(t: Any, x: Any) -> Any:
    return parts(t, x)[1]


def exact_score(t: Any, x: Any) -> Any:
    return parts(t, x)[2]


def draws(law: tuple[np.ndarray, float], key: jax.Array, num: int) -> jax.Array:
    means, variance = law
    keys = jax.random.split(key)
    chosen = jnp.asarray(means)[jax.random.randint(keys[0], (num,), 0, len(means))]
    return chosen + np.sqrt(variance) * jax.random.normal(keys[1], (num, 2))


# Learned fields.


class Fields(eqx.Module):
    """b and eta = E[z | x_t]; the score is -eta / gamma."""

    net: eqx.nn.MLP

    def __init__(self, width: int, *, key: jax.Array) -> None:
        self.net = eqx.nn.MLP(7, 4, width, 3, jax.nn.silu, key=key)

    def __call__(self, t: Any, x: Any) -> Any:
        waves = jnp.stack([t, jnp.sin(np.pi * t), jnp.cos(np.pi * t), t**2, jnp.sin(2 * np.pi * t)])
        return self.net(jnp.concatenate([x / 2, waves]))


def train(config: Config, num_steps: int, key: jax.Array) -> tuple[Field, Field]:
    """Regressions of dx_t/dt and z on x_t, at z and -z together: the noise of dgamma/dt cancels in their mean."""
    network = Fields(config.width, key=key)

    @ppl.model
    def regression(rows: Any) -> None:
        net = ppl.module("fields", network)
        keys = jax.random.split(ppl.rng_key("pairs"), 4)
        num = len(rows)
        x0, x1 = draws(START, keys[0], num), draws(END, keys[1], num)
        z = jax.random.normal(keys[2], x0.shape)
        t = 1e-3 + (1 - 2e-3) * (jnp.arange(num) + jax.random.uniform(keys[3], (num,))) / num
        gamma = jnp.sqrt(t * (1 - t))[:, None]
        rate = 0.5 * (1 - 2 * t)[:, None] / gamma
        error = jnp.zeros(num)
        for sign in (1, -1):
            x = (1 - t)[:, None] * x0 + t[:, None] * x1 + sign * gamma * z
            b, eta = jnp.split(jax.vmap(net)(t, x), 2, 1)
            error += 0.5 * jnp.sum(
                (b - (x1 - x0 + sign * rate * z)) ** 2 + (eta - sign * z) ** 2, 1
            )
        with ppl.plate("rows", num):
            ppl.factor("fit", -error)

    @inference.objective
    def square(model: ppl.Program, guide: None, *args: Any) -> Any:
        return ppl.draw(model, *args).log_density

    fit = inference.fit(
        square(regression), optax.adam(optax.cosine_decay_schedule(3e-3, num_steps)),
        (jnp.zeros(512),), num_steps=num_steps, key=key,
    )  # fmt: skip
    net = eqx.combine(fit.params["fields"], eqx.filter(network, eqx.is_inexact_array, inverse=True))
    gamma = lambda t: jnp.sqrt(jnp.maximum(t * (1 - t), 1e-4))
    return lambda t, x: net(t, x)[:2], lambda t, x: -net(t, x)[2:] / gamma(t)


# Sampling and densities.


def carried(b: Field, s: Field, noise: float, config: Config, key: jax.Array) -> jax.Array:
    """Draws of the first law, carried to t = 1 by Euler steps."""
    x, dt = draws(START, key, config.num_samples), 1 / config.num_steps

    def step(x: jax.Array, n: jax.Array) -> tuple[jax.Array, None]:
        t = n * dt
        drift = jax.vmap(lambda x: b(t, x) + (noise * s(t, x) if noise else 0.0))(x)
        z = jax.random.normal(jax.random.fold_in(key, n), x.shape)
        return x + dt * drift + np.sqrt(2 * noise * dt) * z, None

    return jax.lax.scan(step, x, jnp.arange(config.num_steps))[0]


def log_densities(b: Field, s: Field, noise: float, x: Any, config: Config, key: Any) -> jax.Array:
    """Log-density at t = 1 of points x, [points].

    noise 0: log rho_0(x_0) - int div b dt along the flow back. Else over diffusions back, with b_F = b + eps s,
    E[log rho_0(X_0)] - E int (div b_F + eps |s|^2) dt.
    """
    num, dt = config.num_paths if noise else 1, 1 / config.num_steps

    def one(x: jax.Array, key: jax.Array) -> jax.Array:
        def step(carry: Any, n: jax.Array) -> Any:
            x, total = carry
            t = 1 - n * dt
            forward = lambda x: b(t, x) + (noise * s(t, x) if noise else 0.0)
            score = s(t, x)
            divergence = jnp.trace(jax.jacfwd(forward)(x))
            total = total - dt * (divergence + noise * jnp.sum(score**2))
            z = jax.random.normal(jax.random.fold_in(key, n), x.shape)
            x = x - dt * (forward(x) - 2 * noise * score) + np.sqrt(2 * noise * dt) * z
            return (x, total), None

        (x, total), _ = jax.lax.scan(step, (x, jnp.zeros(())), jnp.arange(config.num_steps))
        return parts(0.0, x)[0] + total

    keys = jax.random.split(key, (len(x), num))
    return jax.vmap(jax.vmap(one, (None, 0)))(x, keys).mean(1)


def run(config: Config, key: jax.Array) -> tuple[dict, dict]:
    keys = jax.random.split(key, 4)
    reference = np.asarray(draws(END, keys[0], config.num_samples))
    other = np.asarray(draws(END, keys[1], config.num_samples))

    def distance(x: Any) -> list[float]:
        found = evaluation.sliced_wasserstein(reference, x, jax.random.key(0), num_directions=200)
        return [found.value, found.standard_error]

    rows: dict[str, Any] = {"two sets of exact draws": distance(other)}
    fields = {"exact": (exact_velocity, exact_score)}
    for n in config.num_training_steps:
        fields[f"{n} steps of training"] = train(config, n, keys[2])
    samples = {}
    for name, (b, s) in fields.items():
        for noise in NOISES:
            x = jax.jit(lambda key, b=b, s=s, e=noise: carried(b, s, e, config, key))(keys[3])
            samples[name, noise] = np.asarray(x)
            rows[f"{name}, eps = {noise:g}"] = distance(x)
    x = draws(END, keys[1], config.num_points)
    truth = jax.vmap(lambda x: parts(1.0, x)[0])(x)
    for noise in NOISES:
        got = log_densities(exact_velocity, exact_score, noise, x, config, keys[2])
        rows[f"log density, eps = {noise:g}"] = float(jnp.mean(jnp.abs(got - truth)))
    return rows, samples


def report(rows: dict) -> str:
    lines = [
        "squared sliced Wasserstein distance to the second law; mean error of log densities in nats (exact fields)"
    ]
    show = lambda v: f"{v[0]:8.4f} +- {v[1]:.4f}" if isinstance(v, list) else f"{v:8.4f}"
    return "\n".join([*lines, *(f"  {name:<36}{show(value)}" for name, value in rows.items())])


def draw(samples: dict, path: Path) -> None:
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(name for name, _ in samples))
    figure, axes = plt.subplots(
        len(names), len(NOISES), figsize=(2.6 * len(NOISES), 2.7 * len(names)), layout="constrained", sharex=True, sharey=True
    )  # fmt: skip
    for row, name in zip(axes, names, strict=True):
        for axis, noise in zip(row, NOISES, strict=True):
            axis.plot(*samples[name, noise].T, ".", ms=1.5, alpha=0.4)
            axis.plot(*END[0].T, "k+", ms=6)
            axis.set(xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), xticks=[], yticks=[], aspect="equal")
            axis.set_title(f"{name}, eps = {noise:g}", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Two Gaussians carried to a ring.")
    parser.add_argument("--smoke", action="store_true", help="few samples, steps and points")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("interpolants_output"))
    options = parser.parse_args(arguments)
    config = Config(500, 100, (100,), 32, 10, 50) if options.smoke else Config()
    options.out.mkdir(parents=True, exist_ok=True)
    rows, samples = run(config, jax.random.key(options.seed))
    text = report(rows)
    print(text)
    (options.out / "report.txt").write_text(text + "\n")
    (options.out / "metrics.json").write_text(json.dumps(rows, indent=1))
    kept = {f"{name}_{noise:g}".replace(" ", "_"): x[None] for (name, noise), x in samples.items()}
    tree = arviz.from_dict({"posterior": kept}, sample_dims=["chain", "draw"])
    tree.to_netcdf(options.out / "samples.nc")
    draw(samples, options.out / "interpolants.png")


if __name__ == "__main__":
    main()
