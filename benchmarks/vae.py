"""Question: what does one ELBO gradient of a VAE cost beside the same gradient written by hand in JAX?

The model is a 784-400-20 VAE with tanh layers; hand-written JAX and lapilli compute -ELBO with a
reparameterised Normal. Both run in one process, interleaved; the answer is the median of paired ratios. First
calls (tracing, compilation, checks) are measured in fresh processes, since the first program a process
compiles pays for what later ones share.

usage: python benchmarks/vae.py [--batches 64 256 1024] [--repeats 60] [--first-calls 5]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from lapilli import inference, ppl

HIDDEN, LATENT, PIXELS = 400, 20, 784


def init(key: jax.Array) -> dict[str, Any]:
    """Weights of encoder (e1, em, es) and decoder (d1, d2)."""
    keys = jax.random.split(key, 5)

    def layer(key: jax.Array, n: int, m: int) -> tuple[jax.Array, jax.Array]:
        return jax.random.normal(key, (n, m)) / jnp.sqrt(n), jnp.zeros(m)

    return {
        "e1": layer(keys[0], PIXELS, HIDDEN),
        "em": layer(keys[1], HIDDEN, LATENT),
        "es": layer(keys[2], HIDDEN, LATENT),
        "d1": layer(keys[3], LATENT, HIDDEN),
        "d2": layer(keys[4], HIDDEN, PIXELS),
    }


def linear(p: Any, x: jax.Array) -> jax.Array:
    return x @ p[0] + p[1]


def encode(p: dict[str, Any], x: jax.Array) -> tuple[jax.Array, jax.Array]:
    h = jnp.tanh(linear(p["e1"], x))
    return linear(p["em"], h), jnp.exp(linear(p["es"], h))


def decode(p: dict[str, Any], z: jax.Array) -> jax.Array:
    return linear(p["d2"], jnp.tanh(linear(p["d1"], z)))


def by_hand(p: dict[str, Any], key: jax.Array, x: jax.Array) -> jax.Array:
    """The bound (nats), written out."""
    m, s = encode(p, x)
    eps = jax.random.normal(key, m.shape)
    z = m + s * eps
    log_q = (-0.5 * eps**2 - jnp.log(s) - 0.5 * jnp.log(2 * jnp.pi)).sum()
    log_prior = (-0.5 * z**2 - 0.5 * jnp.log(2 * jnp.pi)).sum()
    logits = decode(p, z)
    return (x * logits - jax.nn.softplus(logits)).sum() + log_prior - log_q


@ppl.model
def model(x: jax.Array) -> None:
    p = {k: ppl.param(k, lambda key, k=k: init(key)[k]) for k in ("d1", "d2")}
    with ppl.plate("rows", x.shape[0]):
        z = ppl.sample("z", dist.Normal(0.0, 1.0).expand([LATENT]).to_event(1))
        ppl.sample("x", dist.Bernoulli(logits=decode(p, z)).to_event(1), obs=x)


@ppl.model
def guide(x: jax.Array) -> None:
    p = {k: ppl.param(k, lambda key, k=k: init(key)[k]) for k in ("e1", "em", "es")}
    with ppl.plate("rows", x.shape[0]):
        m, s = encode(p, x)
        ppl.sample("z", dist.Normal(m, s).to_event(1))


def make(name: str) -> Any:
    """A compiled (params, key, x) -> (value, gradient)."""
    if name == "hand":
        return jax.jit(jax.value_and_grad(by_hand))
    bound = inference.elbo(model, guide, check_jumps=name != "lapilli_unchecked")
    return jax.jit(bound.value_and_grad)


def data(batch: int) -> tuple[Any, jax.Array]:
    x = (jax.random.uniform(jax.random.key(1), (batch, PIXELS)) > 0.5).astype(jnp.float32)
    return ppl.Params(init(jax.random.key(0))), x


def first_call(name: str, batch: int) -> float:
    """Seconds of the first call in this process, after JAX has started."""
    params, x = data(batch)
    params = dict(params) if name == "hand" else params
    key = jax.block_until_ready(jax.random.key(2))
    start = time.perf_counter()
    jax.block_until_ready(make(name)(params, key, x))
    return time.perf_counter() - start


def first_calls(names: list[str], batch: int, repeats: int) -> dict[str, float]:
    """Median first call of each, in fresh interleaved processes without a compilation cache."""
    times: dict[str, list[float]] = {name: [] for name in names}
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    for _ in range(repeats):
        for name in names:
            command = [sys.executable, __file__, "--first-call", name, "--batches", str(batch)]
            out = subprocess.run(
                command, env=environment, check=True, capture_output=True, text=True
            )
            times[name].append(float(out.stdout))
    return {name: statistics.median(t) for name, t in times.items()}


def steady(batch: int, repeats: int) -> tuple[float, float, float]:
    """(median ms by hand, median ms by lapilli, median paired ratio)."""
    params, x = data(batch)
    functions = [make("hand"), make("lapilli")]
    arguments = [dict(params), params]
    for f, p in zip(functions, arguments, strict=True):
        for _ in range(2):
            jax.block_until_ready(f(p, jax.random.key(2), x))
    times: list[list[float]] = [[], []]
    for i in range(repeats):
        order = (0, 1) if i % 2 else (1, 0)
        key = jax.random.key(i)
        for j in order:
            start = time.perf_counter()
            jax.block_until_ready(functions[j](arguments[j], key, x))
            times[j].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(*times, strict=True)]
    return (
        1e3 * statistics.median(times[0]),
        1e3 * statistics.median(times[1]),
        statistics.median(ratios),
    )


def check_agreement() -> None:
    """Both compute the same expected bound and gradient (different noise: compare means over draws)."""
    params, x = data(8)
    keys = jax.random.split(jax.random.key(3), 512)
    hand = jax.vmap(make("hand"), (None, 0, None))(dict(params), keys, x)
    ours = jax.vmap(make("lapilli"), (None, 0, None))(params, keys, x)
    for a, b in zip(
        jax.tree.leaves((hand[0], dict(hand[1]))),
        jax.tree.leaves((ours[0], dict(ours[1]))),
        strict=True,
    ):
        z = jnp.abs(a.mean(0) - b.mean(0)) / (jnp.sqrt((a.var(0) + b.var(0)) / len(keys)) + 1e-4)
        assert z.max() < 6, f"the two gradients disagree: {z.max()} standard errors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--first-calls", type=int, default=5)
    parser.add_argument("--first-call", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.first_call:
        print(first_call(args.first_call, args.batches[0]))
        return
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, float32")
    check_agreement()
    for batch in args.batches:
        hand, ours, ratio = steady(batch, args.repeats)
        print(
            f"batch {batch:5d}: hand {hand:8.3f} ms, lapilli {ours:8.3f} ms, median paired ratio {ratio:.3f}",
            flush=True,
        )
    if args.first_calls:
        names = ["hand", "lapilli_unchecked", "lapilli"]
        first = first_calls(names, args.batches[0], args.first_calls)
        print(
            f"first call: hand {first['hand']:.2f} s, lapilli without jump checks "
            f"{first['lapilli_unchecked']:.2f} s (x{first['lapilli_unchecked'] / first['hand']:.2f}), "
            f"with them {first['lapilli']:.2f} s"
        )


if __name__ == "__main__":
    main()
