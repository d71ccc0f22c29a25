"""Question: what does a bootstrap filter cost beside the same filter written by hand in JAX?

The linear-Gaussian state-space model x_t = 0.9 x_{t-1} + noise, y_t = x_t + noise with 200 observations, systematic
resampling before every step. By hand: one lax.scan with a cumulative sum and a binary search for the ancestors. lapilli: the
program of the model under `inference.smc`, and the same model as a `FeynmanKac`. All run in one process, interleaved; the
answer is the median of paired ratios and the mean of exp(log-evidence - exact), which must be 1 within its error.

usage: python benchmarks/smc.py [--particles 100 1000 10000 100000 1000000] [--repeats 9]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from lapilli import inference, ppl

NUM_STEPS = 200


def data(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x, ys = rng.normal(), []
    for _ in range(NUM_STEPS):
        ys.append(x + rng.normal())
        x = 0.9 * x + rng.normal()
    return np.array(ys, np.float32)


def kalman(ys: np.ndarray) -> float:
    """The exact log-evidence, nats."""
    mean, var, total = 0.0, 1.0, 0.0
    for y in ys.astype(float):
        s = var + 1
        total -= 0.5 * (np.log(2 * np.pi * s) + (y - mean) ** 2 / s)
        mean, var = mean + var / s * (y - mean), var / s
        mean, var = 0.9 * mean, 0.81 * var + 1
    return total


def by_hand(key: jax.Array, ys: jax.Array, num_particles: int) -> jax.Array:
    """The log-evidence, written out."""

    def step(carry: Any, y: jax.Array) -> Any:
        key, x, log_z = carry
        key, resample_key, move_key = jax.random.split(key, 3)
        log_w = -0.5 * (jnp.log(2 * jnp.pi) + (y - x) ** 2)
        w = jnp.exp(log_w - log_w.max())
        total = jnp.cumsum(w)
        log_z = log_z + log_w.max() + jnp.log(total[-1] / num_particles)
        grid = (jax.random.uniform(resample_key) + jnp.arange(num_particles)) / num_particles
        index = jnp.clip(jnp.searchsorted(total / total[-1], grid), 0, num_particles - 1)
        x = 0.9 * x[index] + jax.random.normal(move_key, (num_particles,))
        return (key, x, log_z), None

    init_key, key = jax.random.split(key)
    x = jax.random.normal(init_key, (num_particles,))
    return jax.lax.scan(step, (key, x, jnp.float32(0.0)), ys)[0][2]


@ppl.model
def model(ys: jax.Array) -> None:
    x = ppl.sample("x0", dist.Normal(0.0, 1.0))
    ppl.sample("y0", dist.Normal(x, 1.0), obs=ys[0])

    def step(x: jax.Array, y: jax.Array) -> Any:
        x = ppl.sample("x", dist.Normal(0.9 * x, 1.0))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    ppl.scan(step, x, ys[1:])


def feynman_kac(ys: jax.Array) -> inference.FeynmanKac:
    return inference.FeynmanKac(
        init=jax.random.normal,
        kernel=lambda key, x, t: 0.9 * x + jax.random.normal(key),
        log_potential=lambda _, x, t: -0.5 * (jnp.log(2 * jnp.pi) + (ys[t] - x) ** 2),
        num_steps=len(ys) - 1,
    )


def make(ys: jax.Array, num_particles: int) -> dict[str, Any]:
    """Name -> compiled function of a key that returns the log-evidence."""
    options: dict[str, Any] = {
        "num_particles": num_particles,
        "policy": inference.every(),
        "history": "none",
    }
    fk = feynman_kac(ys)
    return {
        "hand": jax.jit(lambda key: by_hand(key, ys, num_particles)),
        "program": jax.jit(lambda key: inference.smc(model, key, ys, **options).log_evidence),
        "FeynmanKac": jax.jit(lambda key: inference.smc(fk, key, **options).log_evidence),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--particles", type=int, nargs="+", default=[100, 1000, 10_000, 100_000, 1_000_000]
    )
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, float32")
    print(
        "median ms per run, million particle-steps a second, (median of paired speeds, by hand = 1)"
    )
    ys = data()
    exact = kalman(ys)
    for count in args.particles:
        functions = make(jnp.asarray(ys), count)
        times: dict[str, list[float]] = {name: [] for name in functions}
        found: dict[str, list[float]] = {name: [] for name in functions}
        for i in range(args.repeats + 2):
            for name in list(functions)[:: 1 if i % 2 else -1]:
                start = time.perf_counter()
                log_z = jax.block_until_ready(functions[name](jax.random.key(i)))
                times[name].append(time.perf_counter() - start)
                found[name].append(float(log_z))
        first = {name: t[0] for name, t in times.items()}
        for name, t in times.items():
            t, hand = t[2:], times["hand"][2:]
            median = statistics.median(t)
            ratio = statistics.median(a / b for a, b in zip(hand, t, strict=True))
            z = np.exp(np.array(found[name]) - exact)
            print(
                f"K = {count:7d}  {name:10s} {1e3 * median:8.1f} ms  {count * NUM_STEPS / median / 1e6:6.1f} M/s  "
                f"(x{ratio:.2f})  first call {first[name]:.2f} s  Z / exact {z.mean():.3f} +- {z.std() / len(z) ** 0.5:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
