"""Question: how fast is resampling, beside a binary search in cumulative weights, and what does that save a particle filter?

First table: one resampling of K particles, as a step of a compiled loop of 50, with weights of a Gaussian likelihood (ESS
about 0.77 K); the reference is systematic resampling by `jnp.searchsorted(jnp.cumsum(w), u)`. Second table: a bootstrap
filter of 200 steps on a linear Gaussian model, written by hand, that resamples at every step by that search or by lapilli's
`systematic`. All variants of a table run in one process, interleaved; ratios are medians of paired ratios, with a 95%
bootstrap interval; the first call less a steady one is given as the time to compile.

usage: python benchmarks/particles/resampling.py [--sizes 1000 10000 100000 1000000] [--repeats 20]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lapilli  # noqa: F401  (first: it sets a flag that JAX reads when it starts)

import jax  # isort: skip
import jax.numpy as jnp
import numpy as np

from lapilli.inference.particles.resampling import RESAMPLERS

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _common import interleaved, paired

LOOP, STEPS = 50, 200


def by_search(
    key: jax.Array, log_weights: jax.Array, num: int | None = None, method: str = "scan"
) -> jax.Array:
    """Systematic resampling as it is usually written."""
    size = len(log_weights)
    until = jnp.cumsum(jnp.exp(log_weights - log_weights.max()))
    points = (jax.random.uniform(key) + jnp.arange(size)) / size
    return jnp.clip(jnp.searchsorted(until / until[-1], points, method=method), 0, size - 1).astype(
        jnp.int32
    )


def loop(resample: Callable, log_weights: jax.Array, key: jax.Array) -> jax.Array:
    """LOOP resamplings; ancestors are carried whole, so that none is left out as unused."""

    def step(carry: Any, i: jax.Array) -> tuple[Any, None]:
        log_weights, ancestors = carry
        ancestors = resample(jax.random.fold_in(key, i), log_weights + 1e-9 * ancestors[0])
        return (log_weights, ancestors), None

    start = (log_weights, jnp.zeros(len(log_weights), jnp.int32))
    return jax.lax.scan(step, start, jnp.arange(LOOP))[0][1]


def bootstrap_filter(
    resample: Callable, observations: jax.Array, size: int, key: jax.Array
) -> jax.Array:
    """Log evidence (nats) of x_0 ~ N(0, 1), x_t = 0.9 x_(t-1) + N(0, 1), y_t = x_t + N(0, 1)."""

    def step(carry: Any, y: jax.Array) -> tuple[Any, None]:
        key, x, log_z = carry
        key, key_ancestors, key_noise = jax.random.split(key, 3)
        log_weights = -0.5 * (jnp.log(2 * jnp.pi) + (y - x) ** 2)
        log_z += jax.nn.logsumexp(log_weights) - jnp.log(size)
        ancestors = resample(key_ancestors, log_weights)
        return (key, 0.9 * x[ancestors] + jax.random.normal(key_noise, (size,)), log_z), None

    key_start, key = jax.random.split(key)
    start = (key, jax.random.normal(key_start, (size,)), jnp.zeros(()))
    return jax.lax.scan(step, start, observations)[0][2]


def data() -> tuple[np.ndarray, float]:
    """Observations and their log evidence by the Kalman filter."""
    rng = np.random.default_rng(0)
    x, observations, mean, variance, log_z = rng.normal(), [], 0.0, 1.0, 0.0
    for _ in range(STEPS):
        y = x + rng.normal()
        observations.append(y)
        x = 0.9 * x + rng.normal()
        total = variance + 1
        log_z -= 0.5 * (np.log(2 * np.pi * total) + (y - mean) ** 2 / total)
        gain = variance / total
        mean, variance = (
            0.9 * (mean + gain * (y - mean)),
            0.81 * variance * (1 - gain) + 1,
        )
    return np.array(observations, np.float32), log_z


def table(title: str, functions: dict[str, Callable], repeats: int, size: int, steps: int) -> None:
    """Print one row per function; the first one is the reference."""
    print(f"{title}, K = {size}")
    calls = {name: lambda i, run=run: run(jax.random.key(i)) for name, run in functions.items()}
    times = interleaved(calls, repeats)
    reference = times.steady[next(iter(functions))]
    for name, seconds in times.steady.items():
        per_step = np.median(seconds) / steps
        print(
            f"  {name:24s} {1e6 * per_step:9.1f} us a step, {1e9 * per_step / size:6.2f} ns a particle, "
            f"speed x{paired(reference, seconds):.2f}, compile {times.first[name] - np.median(seconds):.2f} s",
            flush=True,
        )


def check(size: int = 100_000) -> None:
    """Both give each particle its share, rounded down or up, and both filters the evidence."""
    log_weights = gaussian_weights(size)
    weights = np.exp(np.asarray(log_weights, float))
    expected = size * weights / weights.sum()
    for resample in (by_search, RESAMPLERS["systematic"].ancestors):
        ancestors = jax.jit(resample)(jax.random.key(1), log_weights)
        number = np.bincount(np.asarray(ancestors), minlength=size)
        assert abs(number - expected).max() < 1.1, f"{resample} is wrong"
        observations, exact = data()
        run = jax.jit(partial(bootstrap_filter, resample, jnp.asarray(observations), 10_000))
        assert abs(run(jax.random.key(2)) - exact) < 0.7, f"the filter by {resample} is wrong"


def gaussian_weights(size: int) -> jax.Array:
    return -0.5 * jax.random.normal(jax.random.key(0), (size,)) ** 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, float32")
    check()
    for size in args.sizes:
        resamplers: dict[str, Callable] = {"binary search": by_search}
        if size <= 100_000:
            resamplers["sort"] = partial(by_search, method="sort")
        resamplers |= {name: scheme.ancestors for name, scheme in RESAMPLERS.items()}
        loops = {
            name: jax.jit(partial(loop, resample, gaussian_weights(size)))
            for name, resample in resamplers.items()
        }
        repeats = args.repeats if size <= 100_000 else max(3, args.repeats // 4)
        table("resampling", loops, repeats, size, LOOP)
    observations = jnp.asarray(data()[0])
    for size in args.sizes:
        filters = {
            f"filter, {name}": jax.jit(partial(bootstrap_filter, resample, observations, size))
            for name, resample in (
                ("binary search", by_search),
                ("lapilli systematic", RESAMPLERS["systematic"].ancestors),
                ("lapilli stratified", RESAMPLERS["stratified"].ancestors),
            )
        }
        repeats = args.repeats if size <= 100_000 else max(3, args.repeats // 4)
        table("bootstrap filter", filters, repeats, size, STEPS)


if __name__ == "__main__":
    main()
