"""Question: what does one training step of a PV-RNN cost beside the same step written by hand in JAX?

Both compute value and gradient of the weighted bound (closed-form divergences, one draw) for the same network, and one Adam
update: lapilli from the model's program and its inline guide, the other as one `lax.scan` over the same cell. By hand the noise
is drawn either at each step of the scan or for all steps at once before it, where lapilli moves it. All run in one process,
interleaved; the answer is the median of paired ratios, with a bootstrap interval. First calls (tracing, checks, compilation) are
measured in a fresh process each, in seconds of wall clock and of CPU.

usage: python benchmarks/models/pv_rnn.py [--repeats 40] [--sizes small medium] [--record]
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lapilli import inference, ppl
from lapilli.models import pv_rnn
from lapilli.models.pv_rnn import Gaussian, Layer, Network

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _common import interleaved, output_of, paired, parsed, record_figure, with_intervals

NAMES = ("by hand, noise in the scan", "by hand, noise before it", "lapilli")


class Size(NamedTuple):
    """Sequences, steps, data dimensions and layers."""

    num_sequences: int
    num_steps: int
    num_dims: int
    layers: tuple[Layer, ...]


SIZES = {
    "small": Size(10, 24, 1, (Layer(10, 1, 2.0),)),
    "medium": Size(40, 50, 6, (Layer(40, 4, 2.0), Layer(20, 2, 8.0))),
    "large": Size(100, 100, 6, (Layer(100, 6, 2.0), Layer(50, 3, 8.0))),
}
OPTIMIZER = optax.adam(1e-3)
W = 0.01


def by_hand(size: Size, network: Network, params: Any, key: Any, x: Any, *, early: bool) -> Any:
    """The weighted bound, written out."""
    net, table = pv_rnn.frozen(params, network), params["adaptive"]
    rows, num_layers = size.num_sequences, len(size.layers)
    latents = [layer.num_latents for layer in size.layers]
    noise: Any = None
    if early:
        keys = jax.random.split(key, num_layers)
        noise = [
            jax.random.normal(k, (size.num_steps, rows, z))
            for k, z in zip(keys, latents, strict=True)
        ]

    def step(h: Any, inputs: Any) -> Any:
        x, a, noise, t = inputs
        if noise is None:
            keys = jax.random.split(jax.random.fold_in(key, t), num_layers)
            noise = [jax.random.normal(k, (rows, z)) for k, z in zip(keys, latents, strict=True)]
        z, total = [], 0.0
        for l in range(num_layers):
            mp, sp = jnp.split(net.prior(l, h, t == 0), 2, axis=-1)
            mq, sq = jnp.split(net.from_state(l, h) + a[l], 2, axis=-1)
            mp, mq, ratio = jnp.tanh(mp), jnp.tanh(mq), jnp.exp(2 * (sq - sp))
            kl = sp - sq + 0.5 * (ratio + (mq - mp) ** 2 * jnp.exp(-2 * sp) - 1)
            total -= W / latents[l] * kl.sum()
            z.append(mq + jnp.exp(sq) * noise[l])
        h = net.advance(h, z)
        scale = net.output.scale
        log_p = -0.5 * ((x - net.emit(h)) / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi)
        return h, total + log_p.sum() / size.num_dims

    by_time = lambda a: jnp.swapaxes(a, 0, 1)
    xs = (by_time(x), tuple(map(by_time, table)), noise, jnp.arange(size.num_steps))
    return jax.lax.scan(step, net.initial_state(rows), xs)[1].sum()


def make(name: str, size: Size) -> tuple[Any, Any, Any]:
    """A compiled (params, opt_state, key, x) -> (params, opt_state, value), initial parameters, data."""
    network = Network(size.layers, Gaussian(size.num_dims, 0.3), key=jax.random.key(0))
    model, guide = pv_rnn.programs(
        network, num_sequences=size.num_sequences, num_steps=size.num_steps
    )
    weights = pv_rnn.site_weights(network, W, num_steps=size.num_steps)
    bound = inference.elbo(model, guide, kl="analytic", site_weights=weights)
    x = jax.random.normal(jax.random.key(1), (size.num_sequences, size.num_steps, size.num_dims))
    index = jnp.arange(size.num_sequences)
    params = ppl.Params(
        {
            "adaptive": pv_rnn.adaptive_vectors(network, size.num_sequences, size.num_steps),
            "network": jax.tree.map(jnp.asarray, network),
        }
    )
    if name == "lapilli":
        value_and_grad = lambda params, key, x: bound.value_and_grad(params, key, x, index)
    else:
        early = name == NAMES[1]
        value_and_grad = jax.value_and_grad(
            lambda params, key, x: by_hand(size, network, params, key, x, early=early)
        )

    @jax.jit
    def step(params: Any, opt_state: Any, key: Any, x: Any) -> Any:
        value, grads = value_and_grad(params, key, x)
        updates, opt_state = OPTIMIZER.update(jax.tree.map(jnp.negative, grads), opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    return step, params, x


def first_call(name: str, size: Size) -> str:
    """Seconds of the first step in this process, wall clock and CPU."""
    key = jax.block_until_ready(jax.random.key(2))
    start, cpu = time.perf_counter(), time.process_time()
    step, params, x = make(name, size)
    jax.block_until_ready(step(params, OPTIMIZER.init(params), key, x))
    return f"{time.perf_counter() - start:.1f} s, {time.process_time() - cpu:.1f} s of CPU"


def check(size: Size) -> None:
    """All compute the same number: means over 2,000 draws within 4.5 standard errors."""
    values = []
    for i, name in enumerate(NAMES):
        step, params, x = make(name, size)
        state, keys = OPTIMIZER.init(params), jax.random.split(jax.random.key(10 + i), 2000)
        run = jax.jit(
            lambda ks, s=step, p=params, o=state, x=x: jax.lax.map(lambda k: s(p, o, k, x)[2], ks)
        )
        values.append(np.asarray(run(keys), float))
    for other in values[1:]:
        error = np.hypot(*(v.std() / np.sqrt(v.size) for v in (values[0], other)))
        z = (values[0].mean() - other.mean()) / error
        assert abs(z) < 4.5, f"the implementations disagree: z = {z:.2f}"


def measure(size: Size, repeats: int) -> dict[str, np.ndarray]:
    """Seconds of `repeats` interleaved steps of each, an inner loop of calls long enough to be timed."""
    runs, calls = {}, 0
    for name in NAMES:
        step, params, x = make(name, size)
        state = OPTIMIZER.init(params)
        for k in range(2):
            jax.block_until_ready(step(params, state, jax.random.key(k), x))
        if not calls:
            start = time.perf_counter()
            jax.block_until_ready(step(params, state, jax.random.key(3), x))
            calls = max(1, int(0.05 / (time.perf_counter() - start)))
        keys = [jax.random.key(k) for k in range(calls)]
        runs[name] = lambda i, step=step, start=(params, state), x=x, keys=keys: steps(
            step, *start, x, keys
        )
    return {name: seconds / calls for name, seconds in interleaved(runs, repeats).steady.items()}


def steps(step: Any, params: Any, state: Any, x: Any, keys: list[Any]) -> Any:
    """The value after a step for each key."""
    for key in keys:
        params, state, value = step(params, state, key, x)
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--sizes", nargs="+", default=["small", "medium"], choices=list(SIZES))
    parser.add_argument("--first-call", choices=NAMES)
    config = parsed(parser)
    if config.first_call:
        print(first_call(config.first_call, SIZES[config.sizes[0]]))
        return
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}"
    )
    found = {}
    for name in config.sizes:
        size = SIZES[name]
        check(size)
        times = measure(size, config.repeats)
        print(f"\n{name}: {size}")
        for other, seconds in times.items():
            low = np.median(seconds) * 1e3
            ratio = paired(times["lapilli"], seconds)
            print(f"  {other:28s} {low:8.3f} ms/step   lapilli / this: {ratio:.3f}")
            if other != "lapilli":
                found[f"{name}, {other}"] = ratio
        for other in NAMES[1:]:
            first = output_of(__file__, "--first-call", other, "--sizes", name)
            print(f"  first step, {other}: {first}")
    if config.record:
        words = (
            f"{n}: {SIZES[n].num_sequences} x {SIZES[n].num_steps} steps" for n in config.sizes
        )
        record_figure(
            "pv_rnn/pv_rnn_step",
            what=f"PV-RNN training step beside hand-written JAX ({'; '.join(words)}), median of paired ratios; spread: half of "
            "its 95% interval",
            digits=2,
            measures=["models/pv_rnn", "ppl"],
            **with_intervals(found),
        )


if __name__ == "__main__":
    main()
