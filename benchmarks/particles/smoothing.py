"""Question: which smoother, and which path in particle Gibbs, gives the most for its time, and what does a program cost?

The linear-Gaussian model of smc.py with 200 observations; K particles, K paths. Part 1: mean square error of the
smoothing means (averaged over time, and at time 0) against Kalman's smoother, beside the time of a run; FFBS also written by
hand. Part 2: chains of conditional SMC with few particles: share of moves that change x_0, the integrated autocorrelation time
of x_0, and the time of a move. The answer is error^2 x time, and time per independent draw of x_0.

usage: python benchmarks/particles/smoothing.py [--particles 100 1000] [--few 10 50] [--repeats 20]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from smc import data, feynman_kac, model

from lapilli import inference
from lapilli.inference import particles

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _common import interleaved

NUM_MOVES = 2000
BOUND = -0.5 * float(np.log(2 * np.pi))


def kalman_smoother(ys: np.ndarray) -> np.ndarray:
    """Exact means of x_0, ..., x_T, from the dense joint Gaussian."""
    n = len(ys)
    a = np.eye(n) - 0.9 * np.eye(n, k=-1)
    precision = a.T @ a + np.eye(n)
    return np.linalg.solve(precision, ys.astype(float))


def by_hand(key: jax.Array, ys: jax.Array, num: int) -> jax.Array:
    """FFBS written out: paths [time, paths]."""

    def forward(carry: Any, inputs: Any) -> Any:
        x, log_w = carry
        key, y = inputs
        resample_key, move_key = jax.random.split(key)
        grid = (jax.random.uniform(resample_key) + jnp.arange(num)) / num
        total = jnp.cumsum(jnp.exp(log_w - log_w.max()))
        index = jnp.clip(jnp.searchsorted(total / total[-1], grid), 0, num - 1)
        new = 0.9 * x[index] + jax.random.normal(move_key, (num,))
        return (new, -0.5 * (y - new) ** 2), (x, log_w)

    def backward(x: jax.Array, inputs: Any) -> Any:
        key, old, log_w = inputs
        logits = log_w - 0.5 * (x[:, None] - 0.9 * old) ** 2
        total = jnp.cumsum(jnp.exp(logits - logits.max(1, keepdims=True)), 1)
        points = jax.random.uniform(key, (num, 1)) * total[:, -1:]
        index = jnp.minimum((total < points).sum(1), num - 1)
        return old[index], old[index]

    init_key, end_key, key = jax.random.split(key, 3)
    keys = jax.random.split(key, (2, len(ys) - 1))
    x = jax.random.normal(init_key, (num,))
    start = (x, -0.5 * (ys[0] - x) ** 2)
    (x, log_w), (xs, log_ws) = jax.lax.scan(forward, start, (keys[0], ys[1:]))
    end = x[jax.random.categorical(end_key, log_w, shape=(num,))]
    _, paths = jax.lax.scan(backward, end, (keys[1], xs, log_ws), reverse=True)
    return jnp.concatenate([paths, end[None]])


def smoothers(ys: jax.Array, num: int) -> dict[str, Any]:
    """Name -> compiled function of a key that returns the smoothing means."""
    chain = feynman_kac(ys)
    chain = inference.FeynmanKac(
        chain.init, chain.kernel, chain.log_potential, chain.num_steps,
        lambda old, x, t: BOUND - 0.5 * (x - 0.9 * old) ** 2,
    )  # fmt: skip

    def of_chain(**options: Any) -> Any:
        run = lambda key: inference.smooth(chain, key, num_particles=num, **options).paths.mean(0)
        return jax.jit(run)

    def of_program(key: jax.Array) -> jax.Array:
        result = inference.smooth(model, key, ys, num_particles=num)
        return result.mean(lambda c: jnp.concatenate([c["x0"][None], c["x"]]))

    return {
        "hand, ffbs": jax.jit(lambda key: by_hand(key, ys, num).mean(1)),
        "ffbs": of_chain(),
        "ffbs, program": jax.jit(of_program),
        "mcmc, 1 move": of_chain(method=particles.BackwardMetropolis(1)),
        "mcmc, 4 moves": of_chain(method="mcmc"),
        "rejection": of_chain(method=particles.BackwardRejection(BOUND, 30)),
        "genealogy": of_chain(method="genealogy"),
        "fixed lag 10": of_chain(method=particles.FixedLag(10)),
    }


def autocorrelation_time(x: np.ndarray) -> float:
    """1 + 2 sum of autocorrelations, up to the first negative pair (Geyer)."""
    x = x - x.mean()
    n = len(x)
    spectrum = np.abs(np.fft.rfft(x, 2 * n)) ** 2
    rho = np.fft.irfft(spectrum)[:n]
    rho = rho / max(rho[0], 1e-30)
    pairs = rho[: n // 2 * 2].reshape(-1, 2).sum(1)
    stop = int(np.argmax(pairs < 0)) if (pairs < 0).any() else len(pairs)
    return float(2 * pairs[:stop].sum() - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--particles", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--few", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, float32")
    ys = data()
    exact = kalman_smoother(ys)
    for num in args.particles:
        functions = smoothers(jnp.asarray(ys), num)
        errors: dict[str, list[np.ndarray]] = {name: [] for name in functions}
        see = lambda name, means, errors=errors: errors[name].append(
            (np.asarray(means, float) - exact) ** 2
        )
        calls = {name: lambda i, run=run: run(jax.random.key(i)) for name, run in functions.items()}
        times = interleaved(calls, args.repeats, see=see)
        for name, seconds in times.steady.items():
            median, error = np.median(seconds), np.mean(errors[name], 0)
            print(
                f"K = {num:5d}  {name:14s} {1e3 * median:8.1f} ms  mean square error {error.mean():.2e}, at time 0 "
                f"{error[0]:.2e}  error x time {1e6 * error.mean() * median:8.1f}e-6 s  first call {times.first[name]:.2f} s",
                flush=True,
            )
    for num in args.few:
        for path in ("genealogy", "ancestor", "backward"):
            chain = jax.jit(
                lambda key, path=path, num=num: inference.particles.particle_gibbs(
                    model, key, jnp.asarray(ys), num_samples=NUM_MOVES, num_particles=num, path=path
                ).choices["x0"]
            )
            jax.block_until_ready(chain(jax.random.key(0)))
            start = time.perf_counter()
            x = np.asarray(jax.block_until_ready(chain(jax.random.key(1))))
            move = (time.perf_counter() - start) / NUM_MOVES
            changed = (x[1:] != x[:-1]).mean()
            tau = autocorrelation_time(x) if changed else float("inf")
            print(
                f"K = {num:5d}  Gibbs, {path:9s} {1e3 * move:7.2f} ms a move  x_0 changes in {changed:6.1%} of moves  "
                f"autocorrelation time {tau:7.1f} moves = {1e3 * tau * move:8.1f} ms",
                flush=True,
            )


if __name__ == "__main__":
    main()
