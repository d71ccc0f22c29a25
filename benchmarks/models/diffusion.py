"""Question: what does sampling from a diffusion model cost beside a loop by hand, and what does a corrector cost?

Three pairs, each computing the same from the same network (an MLP of digits' size), one compiled loop of all steps:

    ancestral          `diffusion.ancestral` beside DDPM's update written out in a scan
    one model          `inference.smc(fkc(model))` without resampling beside an Euler loop by hand: what states and weights cost
    guidance           `inference.smc(fkc([everything, one class]))` with resampling beside the guided loop by hand, which
                       evaluates the same two networks and nothing else

Runs are interleaved in one process; the answer is the median of paired ratios with a bootstrap interval, of the time that passes
and of the processors' time, which other work on the machine hardly touches. A corrector's own cost is its ratio less 1.

usage: python benchmarks/models/diffusion.py [--repeats 30] [--width 256] [--num-particles 256] [--num-steps 50]
    [--record]
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lapilli import inference
from lapilli.models import diffusion

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _common import interleaved, paired, parsed, record_figure, with_intervals

VP = diffusion.VP()
SIZE, CLASSES, SCALE = 64, 10, 2.0


def models(width: int) -> tuple[Any, Any, Any]:
    """A network of random weights, and its models of everything and of one class."""
    network = diffusion.MLP((SIZE,), num_classes=CLASSES, width=width, key=jax.random.key(0))
    make = functools.partial(diffusion.from_network, network, VP, (SIZE,), predicts="noise")
    return network, make(), make(context=3)


def noise_by_hand(network: Any, label: int, x: Any, t: Any) -> Any:
    """The predicted noise of all points, as somebody would write it."""
    alpha = jnp.exp(-0.05 * t - 0.25 * 19.9 * t**2)
    std = jnp.sqrt(1 - alpha**2)
    predict = lambda x: network(x, 0.25 * jnp.log(std / alpha), jnp.asarray(label))
    return jax.vmap(predict)(x), alpha, std


def ddpm_by_hand(network: Any, times: Any, num: int, key: Any) -> Any:
    start_key, key = jax.random.split(key)

    def step(x: Any, inputs: Any) -> tuple[Any, None]:
        n, t, s = inputs
        noise, alpha_t, std_t = noise_by_hand(network, CLASSES, x, t)
        alpha_s = jnp.exp(-0.05 * s - 0.25 * 19.9 * s**2)
        ratio, var_s = alpha_t / alpha_s, 1 - alpha_s**2
        beta = 1 - ratio**2
        mean = (x - beta / std_t * noise) / ratio
        scale = jnp.sqrt(beta * var_s) / std_t
        return mean + scale * jax.random.normal(jax.random.fold_in(key, n), x.shape), None

    x = jax.random.normal(start_key, (num, SIZE))
    return jax.lax.scan(step, x, (jnp.arange(len(times) - 1), times[:-1], times[1:]))[0]


def euler_by_hand(network: Any, labels: Any, weights: Any, times: Any, num: int, key: Any) -> Any:
    """Euler steps of the reverse process along the weighted sum of scores."""
    start_key, key = jax.random.split(key)

    def step(x: Any, inputs: Any) -> tuple[Any, None]:
        n, t, s = inputs
        score = 0.0
        for label, w in zip(labels, weights, strict=True):
            noise, _, std = noise_by_hand(network, label, x, t)
            score = score - w * noise / std
        variance = (t - s) * (0.1 + 19.9 * 0.5 * (t + s))
        mean = x + 0.5 * variance * x + variance * score
        noise = jax.random.normal(jax.random.fold_in(key, n), x.shape)
        return mean + jnp.sqrt(variance) * noise, None

    x = jax.random.normal(start_key, (num, SIZE))
    return jax.lax.scan(step, x, (jnp.arange(len(times) - 1), times[:-1], times[1:]))[0]


def pairs(width: int, num: int, num_steps: int) -> dict[str, tuple[Any, Any]]:
    """Name -> (lapilli, by hand), functions of a key that return points."""
    network, everything, one = models(width)
    times = VP.times(num_steps)
    smc = functools.partial(inference.smc, num_particles=num, history="none")
    corrected = inference.diffusion.fkc(one, times, zeta=1.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fkc: .* infinite variance")  # time is asked for
        guided = inference.diffusion.fkc(
            [everything, one], times, exponents=[1 - SCALE, SCALE], zeta=1.0
        )
    both = ((CLASSES, 3), (1 - SCALE, SCALE))
    return {
        "ancestral": (
            lambda key: diffusion.ancestral(everything, key, times, num_samples=num),
            lambda key: ddpm_by_hand(network, times, num, key),
        ),
        "one model, no resampling": (
            lambda key: (
                smc(corrected, key, policy=inference.particles.resampling.never()).particles.x
            ),
            lambda key: euler_by_hand(network, (3,), (1.0,), times, num, key),
        ),
        "guidance, resampled": (
            lambda key: smc(guided, key).particles.x,
            lambda key: euler_by_hand(network, *both, times, num, key),
        ),
    }


def check(runs: tuple[Any, Any], num: int) -> None:
    """Both draw from one law: mean square of a point over runs, within 4.5 standard errors (without resampling only)."""
    found = []
    for i, run in enumerate(runs):
        keys = jax.random.split(jax.random.key(10 + i), 20)
        found.append(np.asarray(jax.lax.map(lambda k, run=run: jnp.mean(run(k) ** 2), keys), float))
    error = np.hypot(*(f.std() / np.sqrt(f.size) for f in found))
    z = (found[0].mean() - found[1].mean()) / error
    assert abs(z) < 4.5, f"the two differ: z = {z:.2f}"


def measure(runs: tuple[Any, Any], repeats: int) -> np.ndarray:
    """Seconds of the wall clock and of the processors, [2, 2, repeats]."""
    clocks = lambda: np.array([time.perf_counter(), time.process_time()])
    named, key = dict(zip(("lapilli", "by hand"), runs, strict=True)), jax.random.key(2)
    calls = {
        name: lambda i, run=run: run(jax.random.fold_in(key, i)) for name, run in named.items()
    }
    times = interleaved(calls, repeats, clock=clocks).steady
    return np.moveaxis(np.stack([*times.values()]), -1, 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--num-particles", type=int, default=256)
    parser.add_argument("--num-steps", type=int, default=50)
    options = parsed(parser)
    print(platform.machine(), os.cpu_count(), "cores, jax", jax.__version__, jax.devices()[0])
    print(
        f"width {options.width}, {options.num_particles} points, {options.num_steps} steps; seconds for all steps, median"
    )
    found = {}
    for name, functions in pairs(options.width, options.num_particles, options.num_steps).items():
        runs = tuple(map(jax.jit, functions))
        if "resampled" not in name:
            check(runs, options.num_particles)
        seconds = measure(runs, options.repeats)
        found[name] = paired(*seconds[1])
        for clock, pair in zip(("passed", "of processors"), seconds, strict=True):
            ours, theirs = np.median(pair, axis=1)
            print(
                f"{name:<26} {clock:<14} lapilli {ours:.3f}  by hand {theirs:.3f}  "
                f"ratio {paired(*pair):.3f}"
            )
    if options.record:
        record_figure(
            "diffusion/diffusion_speed",
            what="diffusion sampling beside JAX by hand, processor time, median of paired ratios (guidance with weights and "
            "resampling beside guidance alone); spread: half of its 95% interval",
            measures=["inference/diffusion", "models/diffusion"],
            **with_intervals(found),
        )


if __name__ == "__main__":
    main()
