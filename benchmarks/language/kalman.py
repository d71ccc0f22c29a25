"""Question: what does a linear-Gaussian chain that is integrated out cost beside Kalman filters written by hand in JAX?

Log-likelihood and gradient (transition matrix, both scales) of T = 1,000 steps with d = 1, 4 and 16 states and d / 2 sensors. By
hand: the textbook filter with covariances and Cholesky factors, and the filter with square roots by QR, which is what
`ppl.eliminate` does; and with all steps in parallel (`parallel=True`). The error of each against double precision is printed. All
run in one process, interleaved; the answer is the median of paired ratios to the filter with roots. For the parallel filter,
which uses all cores, processor time is printed beside. With `--peers` the filters of dynamax and cuthbert run there, too.

usage: python benchmarks/language/kalman.py [--steps 1000] [--repeats 40] [--double] [--peers] [--record]
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from lapilli import ppl

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _common import interleaved, parsed, record_figure

Array = jax.Array
Params = tuple[
    Array, Array, Array
]  # transition matrix, scale of the states' noise, of the sensors'


def system(d: int, steps: int) -> tuple[Params, Array, Array]:
    """Parameters, sensors and data of a stable system."""
    rng = np.random.default_rng(d)
    move = rng.normal(size=(d, d))
    move *= 0.95 / np.abs(np.linalg.eigvals(move)).max()
    sensors = rng.normal(size=(max(1, d // 2), d))
    data = rng.normal(size=(steps, len(sensors)))
    params = jnp.asarray(move), jnp.asarray(0.5), jnp.asarray(0.3)
    return params, jnp.asarray(sensors), jnp.asarray(data)


def integrated(params: Params, sensors: Array, data: Array, *, parallel: bool = False) -> Array:
    """The program with its states integrated out."""
    move, inner, outer = params
    d = len(move)

    def program(data: Array) -> None:
        def step(z: Array, y: Array) -> Any:
            z = ppl.sample("z", dist.MultivariateNormal(move @ z, scale_tril=inner * jnp.eye(d)))
            ppl.sample("y", dist.Normal(sensors @ z, outer).to_event(1), obs=y)
            return z, None

        ppl.scan(step, jnp.zeros(d), data)

    return ppl.eliminate(program, "z", parallel=parallel).log_density({}, data)


def by_covariances(params: Params, sensors: Array, data: Array) -> Array:
    """The textbook filter."""
    move, inner, outer = params
    d, k = len(move), len(sensors)
    q, r = inner**2 * jnp.eye(d), outer**2 * jnp.eye(k)

    def step(state: Any, y: Array) -> Any:
        mean, covariance = state
        mean, covariance = move @ mean, move @ covariance @ move.T + q
        crossed = sensors @ covariance
        tril = jnp.linalg.cholesky(crossed @ sensors.T + r)
        solve = lambda x: jax.scipy.linalg.solve_triangular(tril, x, lower=True)
        white, gain = solve(y - sensors @ mean), solve(crossed)
        log_prob = -0.5 * white @ white - jnp.log(jnp.diagonal(tril)).sum()
        return (mean + gain.T @ white, covariance - gain.T @ gain), log_prob

    total = jax.lax.scan(step, (jnp.zeros(d), jnp.zeros((d, d))), data)[1].sum()
    return total - 0.5 * math.log(2 * math.pi) * data.size


def by_roots(params: Params, sensors: Array, data: Array) -> Array:
    """The filter with square roots, two decompositions a step."""
    move, inner, outer = params
    d, k = len(move), len(sensors)
    triangle = lambda a: jnp.linalg.qr(a.T, mode="r").T

    def step(state: Any, y: Array) -> Any:
        mean, root = state
        mean = move @ mean
        root = triangle(jnp.concatenate([move @ root, inner * jnp.eye(d)], 1))
        blocks = [[sensors @ root, outer * jnp.eye(k)], [root, jnp.zeros((d, k))]]
        joint = triangle(jnp.block(blocks))
        top, gain = joint[:k, :k], joint[k:, :k]
        white = jax.scipy.linalg.solve_triangular(top, y - sensors @ mean, lower=True)
        log_prob = -0.5 * white @ white - jnp.log(jnp.abs(jnp.diagonal(top))).sum()
        return (mean + gain @ white, joint[k:, k:]), log_prob

    # A root of 0 has no derivative in this form: start next to it.
    total = jax.lax.scan(step, (jnp.zeros(d), 1e-9 * jnp.eye(d)), data)[1].sum()
    return total - 0.5 * math.log(2 * math.pi) * data.size


FIGURES = ["kalman", "parallel", "peers"]
PEERS = ("dynamax", "cuthbert")
Ratios = dict[
    str, float
]  # of lapilli to another filter; of the parallel filter to lapilli, processor time


def measure(d: int, steps: int, repeats: int, functions: dict[str, Callable]) -> Ratios:
    """Check agreement, print first calls, medians and paired ratios."""
    params, sensors, data = system(d, steps)
    compiled = {name: jax.jit(jax.value_and_grad(f)) for name, f in functions.items()}
    exact = reference(params, sensors, data)
    first, error = {}, {}
    for name, run in compiled.items():
        start = time.perf_counter()
        value, _ = jax.block_until_ready(run(params, sensors, data))
        first[name] = time.perf_counter() - start
        error[name] = abs(float(value) / exact - 1)
        assert error[name] < 1e-3, (name, value, exact)
    calls = {name: lambda i, run=run: run(params, sensors, data) for name, run in compiled.items()}
    clock = lambda: np.array([time.perf_counter(), time.process_time()])
    times = interleaved(calls, repeats, clock=clock).steady
    print(f"d = {d}")
    for name, seconds in times.items():
        wall, processor = 1e3 * np.median(seconds, 0)
        ratio = np.median(seconds / times["roots"], 0)
        print(
            f"  {name:12s} {wall:8.2f} ms (x{ratio[0]:.2f}), processor {processor:8.2f} ms (x{ratio[1]:.2f}), "
            f"first call {first[name]:.2f} s, relative error {error[name]:.0e}",
            flush=True,
        )
    ratio = lambda a, b, clock: float(np.median((times[a] / times[b])[:, clock]))
    found = {n: ratio("lapilli", n, 0) for n in ("covariances", "roots", *PEERS) if n in times}
    if "parallel" in times:
        found["parallel"] = ratio("parallel", "lapilli", 1)
    return found


def reference(params: Params, sensors: Array, data: Array) -> float:
    """The value in double precision."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), float), (params, sensors, data))
        return float(jax.jit(by_covariances)(*wide))


def record(found: dict[int, Ratios], names: list[str], steps: int, width: str) -> None:
    """The ratios, for the page of figures."""
    what = f"log-likelihood and gradient of {steps:,} steps of a linear-Gaussian chain, {width}"
    if "kalman" in names:
        record_figure(
            "gradients/kalman",
            what=f"{what}: ratio to the filter by hand with roots / with covariances",
            value={
                f"d = {d}": f"{r['roots']:.2f} / {r['covariances']:.2f}" for d, r in found.items()
            },
            note="aim: 1.05",
            measures=["ppl/gaussian"],
        )
    if "parallel" in names:
        record_figure(
            "gradients/kalman_parallel",
            what=f"{what}: processor time of the filter in parallel, ratio to one step after the other",
            value={f"d = {d}": f"{r['parallel']:.1f}" for d, r in found.items()},
            note="on a CPU one step after the other is faster; other devices were not measured",
            measures=["ppl/gaussian"],
        )
    if "peers" in names:
        record_figure(
            "gradients/kalman_peers",
            what=f"{what}: ratio to dynamax / to cuthbert",
            value={
                f"d = {d}": " / ".join(f"{r[peer]:.2f}" for peer in PEERS) for d, r in found.items()
            },
            note="aim: 1; dynamax filters with covariances, cuthbert and lapilli with square roots",
            measures=["ppl/gaussian"],
            packages=PEERS,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--double", action="store_true", help="64-bit numbers")
    parser.add_argument("--peers", action="store_true", help="dynamax and cuthbert, too")
    parser.add_argument(
        "--figures", nargs="+", choices=FIGURES, help="which to write; those of all that ran"
    )
    args = parsed(parser)
    jax.config.update("jax_enable_x64", args.double)
    width = "float64" if args.double else "float32"
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, {width}")
    print(
        f"{args.steps} steps; median ms per value and gradient (median of paired ratios to roots)"
    )
    functions = {"covariances": by_covariances, "roots": by_roots, "lapilli": integrated}
    names = args.figures or [name for name in FIGURES if name != "peers" or args.peers]
    if "parallel" in names:
        functions["parallel"] = functools.partial(integrated, parallel=True)
    if args.peers:
        from _peers.kalman import by_cuthbert, by_dynamax

        functions |= {"dynamax": by_dynamax, "cuthbert": by_cuthbert}
    found = {d: measure(d, args.steps, args.repeats, functions) for d in (1, 4, 16)}
    if args.record:
        record(found, names, args.steps, width)


if __name__ == "__main__":
    main()
