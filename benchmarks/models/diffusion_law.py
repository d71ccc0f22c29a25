"""Question: what do a training step and a draw of a program with a diffusion prior cost beside JAX by hand?

Two pairs, each computing the same from the same networks (MLPs of digits' size, codes of 8 numbers, a chain of `--num-steps`):

    training    value and gradient of `inference.elbo` of a VAE with `reverse_chain` and `noising_chain`, 128 rows, beside the
                same sum of log-ratios written out in JAX, all steps side by side, the network not recomputed
    drawing     128 codes by `simulate` of the program beside the chain's steps written out in a scan

Runs are interleaved in one process; the answer is the median of paired ratios with a bootstrap interval, of the time that passes
and of the processors' time. The means of both bounds over 100 keys agree first.

usage: python benchmarks/models/diffusion_law.py [--repeats 30] [--num-steps 16] [--rows 128]
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from lapilli import inference, ppl
from lapilli.models import diffusion

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _common import interleaved, paired

VP = diffusion.VP(first=5e-3)
SIZE, CODES = 64, 8


def networks() -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), 3)
    mlp = lambda a, b, key: eqx.nn.MLP(a, b, 128, 2, jax.nn.silu, key=key)
    return {
        "encoder": mlp(SIZE, 2 * CODES, keys[0]),
        "decoder": mlp(CODES, SIZE, keys[1]),
        "denoiser": diffusion.MLP((CODES,), width=64, depth=2, key=keys[2]),
    }


def programs(nets: dict[str, Any], times: Any) -> tuple[ppl.Program, ppl.Program]:
    @ppl.model
    def model(x: Any) -> None:
        prior = diffusion.from_network(ppl.module("denoiser", nets["denoiser"]), VP, (CODES,))
        decode = ppl.module("decoder", nets["decoder"])
        with ppl.plate("rows", len(x)):
            z = diffusion.reverse_chain("z", prior, times)
            ppl.sample("x", dist.Normal(jax.vmap(decode)(z), 0.5).to_event(1), obs=x)

    @ppl.model
    def guide(x: Any) -> None:
        encode = ppl.module("encoder", nets["encoder"])
        with ppl.plate("rows", len(x)):
            mean, log_scale = jnp.split(jax.vmap(encode)(x), 2, axis=-1)
            z = ppl.sample("z", dist.Normal(mean, jnp.exp(log_scale - 1)).to_event(1))
            diffusion.noising_chain("z", z, VP, times)

    return model, guide


def log_normal(x: Any, mean: Any, variance: Any) -> Any:
    return -0.5 * ((x - mean) ** 2 / variance + jnp.log(2 * jnp.pi * variance))


def step_by_hand(denoiser: Any, x: Any, t: Any, s: Any) -> tuple[Any, Any]:
    """Mean and variance of the step of one code, for data of unit variance; the network predicts the velocity."""
    log_alpha = lambda t: -0.05 * t - 0.25 * 19.9 * t**2
    alpha, alpha_s = jnp.exp(log_alpha(t)), jnp.exp(log_alpha(s))
    var, var_s = -jnp.expm1(2 * log_alpha(t)), -jnp.expm1(2 * log_alpha(s))
    velocity = denoiser(x, 0.25 * jnp.log(jnp.sqrt(var) / alpha), jnp.asarray(0))
    data = alpha * x - jnp.sqrt(var) * velocity
    ratio = alpha / alpha_s
    # alpha^2 + var = 1 and the data's variance is 1, so that the variance is that of the noising step
    mean = ratio * var_s / var * x + alpha_s * (1 - ratio**2 * var_s / var) * data
    return mean, 1 - ratio**2


def bound_by_hand(nets: dict[str, Any], times: Any, x: Any, key: Any) -> Any:
    log_alpha = -0.05 * times - 0.25 * 19.9 * times**2
    alpha, var = jnp.exp(log_alpha), -jnp.expm1(2 * log_alpha)
    widths = jnp.diff(jnp.flip(var / alpha**2), prepend=0.0)  # from the data on

    def one(x: Any, key: Any) -> Any:
        code_key, path_key = jax.random.split(key)
        mean, log_scale = jnp.split(nets["encoder"](x), 2)
        scale = jnp.exp(log_scale - 1)
        z = mean + scale * jax.random.normal(code_key, mean.shape)
        eps = jax.random.normal(path_key, (len(times), CODES))
        y = z + jnp.cumsum(jnp.sqrt(widths)[:, None] * eps, 0)
        path = jnp.flip(y, 0) * alpha[:, None]
        log_q = log_normal(z, mean, scale**2).sum()
        log_q += log_normal(eps, 0.0, 1.0).sum() - CODES * jnp.sum(
            0.5 * jnp.log(widths) + jnp.flip(log_alpha)
        )
        means, variances = jax.vmap(lambda *a: step_by_hand(nets["denoiser"], *a))(
            path[:-1], times[:-1], times[1:]
        )
        log_p = (
            log_normal(path[0], 0.0, var[0]).sum()
            + log_normal(path[1:], means, variances[:, None]).sum()
        )
        log_p += log_normal(z, path[-1] / alpha[-1], var[-1] / alpha[-1] ** 2).sum()
        return log_p + log_normal(x, nets["decoder"](z), 0.25).sum() - log_q

    return jax.vmap(one)(x, jax.random.split(key, len(x))).sum()


def draw_by_hand(denoiser: Any, times: Any, rows: int, key: Any) -> Any:
    start_key, key = jax.random.split(key)
    log_alpha = lambda t: -0.05 * t - 0.25 * 19.9 * t**2

    def step(x: Any, inputs: Any) -> tuple[Any, None]:
        n, t, s = inputs
        mean, variance = jax.vmap(lambda x: step_by_hand(denoiser, x, t, s))(x)
        noise = jax.random.normal(jax.random.fold_in(key, n), x.shape)
        return mean + jnp.sqrt(variance)[:, None] * noise, None

    x = jnp.sqrt(-jnp.expm1(2 * log_alpha(times[0]))) * jax.random.normal(start_key, (rows, CODES))
    x, _ = jax.lax.scan(step, x, (jnp.arange(len(times) - 1), times[:-1], times[1:]))
    last = jnp.exp(log_alpha(times[-1]))
    noise = jax.random.normal(jax.random.fold_in(key, len(times)), x.shape)
    return (x + jnp.sqrt(1 - last**2) * noise) / last


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--num-steps", type=int, default=16)
    parser.add_argument("--rows", type=int, default=128)
    options = parser.parse_args()
    times = VP.log_snr_times(options.num_steps)
    nets = networks()
    model, guide = programs(nets, times)
    objective = inference.elbo(model, guide)
    x = jax.random.normal(jax.random.key(1), (options.rows, SIZE))
    params = objective.init(jax.random.key(0), x)
    arrays, static = eqx.partition(nets, eqx.is_inexact_array)
    ours = jax.jit(lambda key: objective.value_and_grad(params, key, x))
    loss = lambda arrays, key: bound_by_hand(eqx.combine(arrays, static), times, x, key)
    theirs = jax.jit(lambda key: jax.value_and_grad(loss)(arrays, key))
    keys = jax.random.split(jax.random.key(5), 100)
    values = [np.array([run(k)[0] for k in keys], float) for run in (ours, theirs)]
    z = (values[0].mean() - values[1].mean()) / np.hypot(*(v.std() / 10 for v in values))
    assert abs(z) < 4.5, f"the two differ: z = {z:.2f}"
    simulate = jax.jit(lambda key: model.simulate(key, x).choices["z"])
    by_hand = jax.jit(lambda key: draw_by_hand(nets["denoiser"], times, options.rows, key))
    cases = {"training": (ours, theirs), "drawing": (simulate, by_hand)}
    clocks = lambda: np.array([time.perf_counter(), time.process_time()])
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, jax {jax.__version__}, {jax.devices()[0].device_kind}"
    )
    print(
        f"{options.num_steps} steps, {options.rows} rows, {options.repeats} repeats; means agree, z = {z:.1f}"
    )
    for name, runs in cases.items():
        calls = {
            who: lambda i, run=run: run(jax.random.fold_in(jax.random.key(2), i))
            for who, run in zip(("lapilli", "by hand"), runs, strict=True)
        }
        found = interleaved(calls, options.repeats, clock=clocks).steady
        wall, cpu = (paired(found["lapilli"][:, i], found["by hand"][:, i]) for i in (0, 1))
        each = ", ".join(f"{who} {np.median(t[:, 0]) * 1e3:.1f} ms" for who, t in found.items())
        print(f"{name:<10} {each}; ratio {wall:.2f} of time, {cpu:.2f} of processors' time")


if __name__ == "__main__":
    main()
