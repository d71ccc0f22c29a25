"""Question: what does a bootstrap filter cost beside the same filter written by hand in JAX, and in other libraries?

The linear-Gaussian state-space model x_t = 0.9 x_{t-1} + noise, y_t = x_t + noise with 200 observations, systematic
resampling before every step. By hand: one lax.scan with a cumulative sum and a binary search for the ancestors. lapilli: the
program of the model under `inference.smc`, and the same model as a `FeynmanKac`. All run in one process, interleaved; the
answer is the median of paired ratios with a 95% bootstrap interval, and the mean of exp(log-evidence - exact), which must be 1
within its error. Speeds at several K, and --steps,
tell whether the cost is linear.

With --peers also cuthbert, if it can be imported, and with --particles-python the `particles` package in a process of its own
(it needs numpy < 2), timed inside that process in turn with the others.

usage: python benchmarks/particles/smc.py [--particles 100 1000 10000 100000 1000000] [--repeats 9] [--steps 200] [--peers]
    [--particles-python PYTHON] [--record]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lapilli  # noqa: F401  (first: it sets a flag that JAX reads when it starts)

import jax  # isort: skip
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from lapilli import inference, ppl

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _common import Ratio, paired, parsed, record_figure, with_intervals

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


Run = Callable[[int], tuple[float, float]]  # number of the run -> seconds, log-evidence


def timed(function: Callable[[jax.Array], jax.Array]) -> Run:
    """A function of a key, compiled."""
    compiled = jax.jit(function)

    def run(i: int) -> tuple[float, float]:
        key = jax.random.key(i)
        start = time.perf_counter()
        log_z = jax.block_until_ready(compiled(key))
        return time.perf_counter() - start, float(log_z)

    return run


def ours(ys: jax.Array, num_particles: int) -> dict[str, Run]:
    options: dict[str, Any] = {
        "num_particles": num_particles,
        "policy": inference.particles.resampling.every(),
        "history": "none",
    }
    fk = feynman_kac(ys)
    return {
        "hand": timed(lambda key: by_hand(key, ys, num_particles)),
        "program": timed(lambda key: inference.smc(model, key, ys, **options).log_evidence),
        "FeynmanKac": timed(lambda key: inference.smc(fk, key, **options).log_evidence),
    }


def cuthbert(ys: jax.Array, num_particles: int) -> dict[str, Run]:
    """Its filter in one scan that keeps the last state only; empty where it is not installed."""
    try:
        from cuthbert.smc import particle_filter
        from cuthbertlib.resampling import systematic
    except ImportError as err:
        print(f"cuthbert left out: {err}")
        return {}
    filter_ = particle_filter.build_filter(
        init_sample=jax.random.normal,
        propagate_sample=lambda key, x, inputs: inputs[1] * x + jax.random.normal(key),
        log_potential=lambda old, x, inputs: -0.5 * (jnp.log(2 * jnp.pi) + (inputs[0] - x) ** 2),
        n_filter_particles=num_particles,
        resampling_fn=systematic.resampling,
    )
    inputs = (ys, jnp.full(len(ys), 0.9).at[0].set(0.0))  # x_0 forgets the state it is made of

    def log_evidence(key: jax.Array) -> jax.Array:
        first, *keys = jax.random.split(key, 2)
        start = filter_.init_prepare(key=first)
        start = start._replace(model_inputs=jax.tree.map(lambda x: x[0], inputs))

        def step(state: Any, both: Any) -> Any:
            inputs, key = both
            return filter_.filter_combine(state, filter_.filter_prepare(inputs, key=key)), None

        last, _ = jax.lax.scan(step, start, (inputs, jax.random.split(keys[0], len(ys))))
        return last.log_normalizing_constant

    return {"cuthbert": timed(log_evidence)}


WORKER = """
import json, sys, time, numpy as np, particles
from particles import distributions, state_space_models as ssm
class Model(ssm.StateSpaceModel):
    def PX0(self): return distributions.Normal()
    def PX(self, t, xp): return distributions.Normal(loc=0.9 * xp)
    def PY(self, t, xp, x): return distributions.Normal(loc=x)
for line in sys.stdin:
    seed, size, ys = json.loads(line)
    np.random.seed(seed)
    run = particles.SMC(fk=ssm.Bootstrap(ssm=Model(), data=np.array(ys)), N=size, resampling="systematic", ESSrmin=1.0)
    start = time.perf_counter()
    run.run()
    print(json.dumps([time.perf_counter() - start, float(run.logLt)]), flush=True)
"""


class Particles:
    """The `particles` package, in a process that answers one line for each run."""

    def __init__(self, python: str) -> None:
        self.process = subprocess.Popen(
            [python, "-W", "ignore", "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )  # fmt: skip

    def runs(self, ys: jax.Array, num_particles: int) -> dict[str, Run]:
        assert self.process.stdin is not None and self.process.stdout is not None
        sent, answers = self.process.stdin, self.process.stdout
        values = np.asarray(ys, float).tolist()

        def run(i: int) -> tuple[float, float]:
            sent.write(json.dumps([i, num_particles, values]) + "\n")
            sent.flush()
            seconds, log_z = json.loads(answers.readline())
            return seconds, log_z

        return {"particles": run}


def compare(
    runs: dict[str, Run], repeats: int, steps: int, size: int, exact: float
) -> dict[str, Ratio]:
    """One line for each; the first is the reference. Speeds relative to it."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for i in range(repeats + 2):
        for name in list(runs)[:: 1 if i % 2 else -1]:
            found[name].append(runs[name](i))
    reference = np.array([seconds for seconds, _ in found[next(iter(runs))]])[2:]
    speeds = {}
    for name, pairs in found.items():
        seconds, log_z = np.array(pairs).T
        median = statistics.median(seconds[2:])
        z = np.exp(log_z - exact)
        speeds[name] = paired(reference, seconds[2:])
        print(
            f"T = {steps:3d}  K = {size:7d}  {name:10s} {1e3 * median:8.1f} ms  {size * steps / median / 1e6:6.1f} M/s  "
            f"x{speeds[name]:.2f}  first call {seconds[0]:.2f} s  "
            f"Z / exact {z.mean():.3f} +- {z.std() / len(z) ** 0.5:.3f}",
            flush=True,
        )
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--particles", type=int, nargs="+", default=[100, 1000, 10_000, 100_000, 1_000_000]
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, nargs="+", default=[NUM_STEPS])
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--particles-python")
    args = parsed(parser)
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, float32")
    print(
        "median ms per run, million particle-steps a second, median of paired speeds (by hand = 1)"
    )
    package = Particles(args.particles_python) if args.particles_python else None
    found = {}
    for steps in args.steps:
        ys = data()[:steps]
        for count in args.particles:
            runs = ours(jnp.asarray(ys), count)
            if args.peers:
                runs |= cuthbert(jnp.asarray(ys), count)
            if package is not None:
                runs |= package.runs(jnp.asarray(ys), count)
            repeats = args.repeats if count <= 100_000 else max(3, args.repeats // 3)
            speeds = compare(runs, repeats, steps, count, kalman(ys))
            found |= {
                f"{name}, {count:,} particles, {steps} steps": r
                for name, r in speeds.items()
                if name != "hand"
            }
    if args.record:
        record_figure(
            "particles/bootstrap_filter",
            what="bootstrap filter, resampling at every step, speed relative to JAX by hand; spread: half of the 95% interval of "
            "the median",
            digits=2,
            measures=["inference/particles"],
            **with_intervals(found),
        )


if __name__ == "__main__":
    main()
