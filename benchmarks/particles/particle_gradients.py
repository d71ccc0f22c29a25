"""Question: which gradient through resampling is worth its time, what does each estimate, and what does the library cost?

Part 1: d log p(y) / d (rho, log sigma) of x_t = rho x_(t-1) + sigma N(0, 1), y_t = x_t + N(0, 1), 50 observations, by a
bootstrap filter of K particles resampled at every step: mean and standard deviation of each estimator over independent runs,
beside Kalman's exact score, and the time of one gradient; `stop_gradient` also written by hand; `score` alone and with the
other runs of `fivo` as baseline. The score estimators and `drop` aim at (or stand for) the gradient of the bound
E[log Z-hat], which differs from the score by O(1/K).
Part 2: model and guide of the same chain learned together by `vsmc`; the bound reached beside the largest log p(y).

usage: python benchmarks/particles/particle_gradients.py [--particles 10 100] [--runs 500] [--repeats 20] [--steps 1000]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import lapilli  # noqa: F401  (first: it sets a flag that JAX reads when it starts)

import jax  # isort: skip
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

from lapilli import inference, ppl

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _common import interleaved

AT = jnp.array([0.8, 0.1])  # rho, log sigma


def data(num_steps: int = 50) -> jax.Array:
    """Observations with rho = 0.9 and sigma = 1, by numpy's generator of seed 0."""
    rng, x, ys = np.random.default_rng(0), 0.0, []
    for _ in range(num_steps):
        x = 0.9 * x + rng.normal()
        ys.append(x + rng.normal())
    return jnp.asarray(ys, jnp.float32)


def log_normal(y: Any, mean: Any, var: Any = 1.0) -> Any:
    return -0.5 * (jnp.log(2 * jnp.pi * var) + (y - mean) ** 2 / var)


def kalman(params: jax.Array, ys: jax.Array) -> jax.Array:
    """Log p(y)."""
    rho, sigma2 = params[0], jnp.exp(2 * params[1])

    def step(carry: Any, y: Any) -> Any:
        mean, var = carry
        mean, var = rho * mean, rho**2 * var + sigma2
        gain = var / (var + 1)
        return (mean + gain * (y - mean), var - gain * var), log_normal(y, mean, var + 1)

    return jax.lax.scan(step, (0.0, 0.0), ys)[1].sum()


@ppl.model
def chain(params: jax.Array, ys: jax.Array) -> None:
    def step(x: Any, y: Any) -> Any:
        x = ppl.sample("x", dist.Normal(params[0] * x, jnp.exp(params[1])))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    ppl.scan(step, 0.0, ys)


def by_hand(params: jax.Array, key: jax.Array, ys: jax.Array, num: int) -> jax.Array:
    """Log Z-hat, systematic resampling, weights w / stop_gradient(w)."""

    def step(carry: Any, inputs: Any) -> Any:
        x, log_w = carry
        key, y = inputs
        resample_key, move_key = jax.random.split(key)
        fixed = jax.lax.stop_gradient(log_w)
        grid = (jax.random.uniform(resample_key) + jnp.arange(num)) / num
        index = jnp.clip(jnp.searchsorted(jnp.cumsum(jnp.exp(fixed)), grid), 0, num - 1)
        own = log_w[index] - fixed[index] - jnp.log(num)
        x = params[0] * x[index] + jnp.exp(params[1]) * jax.random.normal(move_key, (num,))
        log_w = own + log_normal(y, x)
        total = jax.nn.logsumexp(log_w)
        return (x, log_w - total), total

    start = (jnp.zeros(num), jnp.full(num, -jnp.log(num)))
    return jax.lax.scan(step, start, (jax.random.split(key, len(ys)), ys))[1].sum()


def estimators(ys: jax.Array, num: int) -> dict[str, Any]:
    """Name -> log Z-hat of (params, key)."""

    def of(gradient: Any, resampling: str = "systematic") -> Any:
        return lambda params, key: inference.smc(
            chain, key, params, ys, num_particles=num, resampling=resampling, gradient=gradient,
            policy=inference.particles.resampling.every(), history="none",
        ).log_evidence  # fmt: skip

    found = {
        "hand, stop_gradient": lambda params, key: by_hand(params, key, ys, num),
        "stop_gradient": of("stop_gradient"),
        "drop (biased)": of("drop"),
        "soft 0.5 (biased)": of("soft"),
        "score, multinomial": of("score", "multinomial"),
        "score, killing": of("score", "killing"),
    }
    if num <= 100:
        found["ot 0.5 (biased)"] = of("ot")
    for runs in (2, 8):
        bound = inference.fivo(learned, num_particles=num, num_replicates=runs)
        found[f"score, {runs} runs"] = lambda params, key, bound=bound: bound.value(
            {"rho": params[0], "log_sigma": params[1]}, key, ys
        )
    return found


def compare(ys: jax.Array, num: int, num_runs: int, repeats: int) -> None:
    exact = np.asarray(jax.grad(kalman)(AT, ys))
    gradients = {name: jax.grad(fn) for name, fn in estimators(ys, num).items()}
    once = {name: jax.jit(fn) for name, fn in gradients.items()}
    calls = {name: lambda i, fn=fn: fn(AT, jax.random.key(i)) for name, fn in once.items()}
    times = interleaved(calls, repeats)
    print(f"K = {num}: exact score {exact[0]:.3f}, {exact[1]:.3f}")
    keys = jax.random.split(jax.random.key(0), num_runs)
    for name, fn in gradients.items():
        runs = num_runs // 10 if name.startswith("ot") else num_runs
        batched = jax.jit(
            lambda keys, fn=fn: jax.lax.map(lambda key: fn(AT, key), keys, batch_size=25)
        )
        found = np.asarray(batched(keys[:runs]), float)
        mean, sd = found.mean(0), found.std(0)
        columns = "   ".join(
            f"{m:8.2f} +- {s / runs**0.5:5.2f} (sd {s:7.2f})" for m, s in zip(mean, sd, strict=True)
        )
        print(
            f"  {name:20s} {columns}   {1e3 * np.median(times.steady[name]):7.2f} ms   first call {times.first[name]:.1f} s",
            flush=True,
        )


@ppl.model
def learned(ys: jax.Array) -> None:
    chain(jnp.stack([ppl.param("rho", 0.3), ppl.param("log_sigma", 0.5)]), ys)


@ppl.model
def guide(ys: jax.Array) -> None:
    a, b = ppl.param("a", 0.3), ppl.param("b", 0.1)
    scale = ppl.param("scale", 1.0, constraint=dist.constraints.positive)
    step = lambda x, y: (ppl.sample("x", dist.Normal(a * x + b * y, scale)), None)
    ppl.scan(step, 0.0, ys)


def train(ys: jax.Array, num_steps: int) -> None:
    grid = np.stack(np.meshgrid(np.linspace(0.5, 1.0, 51), np.linspace(-1, 1, 81)), -1)
    best = float(jax.vmap(lambda p: kalman(p, ys))(jnp.asarray(grid.reshape(-1, 2))).max())
    print(f"training, 10 particles, {num_steps} steps of Adam at 0.01: largest log p(y) {best:.3f}")
    for name, options in {
        "elbo": None,
        "drop (biased)": {"gradient": "drop", "resampling": "systematic"},
        "score, 1 run": {"num_replicates": 1},
        "score, 2 runs": {},
        "score, 8 runs": {"num_replicates": 8},
        "score, 8 runs, killing": {"num_replicates": 8, "resampling": "killing"},
    }.items():  # fmt: skip
        bound = (
            inference.elbo(learned, guide)
            if options is None
            else inference.vsmc(learned, guide, num_particles=10, **options)
        )
        ends, start = [], time.perf_counter()
        for seed in range(3):
            fit = inference.fit(
                bound, optax.adam(0.01), (ys,), num_steps=num_steps, key=jax.random.key(seed), average=0.99,
                progress=False,
            )  # fmt: skip
            value = jax.jit(jax.vmap(lambda key, p=fit.params, b=bound: b.value(p, key, ys)))
            ends.append(float(value(jax.random.split(jax.random.key(9), 500)).mean()))
        seconds = (time.perf_counter() - start) / 3
        print(
            f"  {name:24s} bound at the end {np.round(ends, 2)}   {seconds:6.1f} s a run",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--particles", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, float32")
    ys = data()
    for num in args.particles:
        compare(ys, num, args.runs, args.repeats)
    train(ys, args.steps)


if __name__ == "__main__":
    main()
