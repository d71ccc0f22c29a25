"""Question: what does one ELBO gradient of a VAE cost beside the same gradient written by hand in JAX?

The model is a 784-400-20 VAE with tanh layers; hand-written JAX, NumPyro's Trace_ELBO (on the same programs)
and lapilli compute the ELBO with a reparameterised Normal. All run in one process, interleaved; the answer is
the median of paired ratios. First calls (tracing, compilation, checks) are measured in fresh processes, since
the first program a process compiles pays for what later ones share.

usage: python benchmarks/language/vae.py [--batches 64 256 1024] [--repeats 60] [--first-calls 5] [--record]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.infer import Trace_ELBO

from lapilli import inference, ppl

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _common import Ratio, interleaved, output_of, paired, parsed, record_figure, with_intervals

HIDDEN, LATENT, PIXELS = 400, 20, 784
NAMES = ("hand", "numpyro", "lapilli")


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
    if name == "numpyro":
        loss = Trace_ELBO().loss
        return jax.jit(jax.value_and_grad(lambda p, key, x: -loss(key, p, model, guide, x)))
    bound = inference.elbo(model, guide, check_jumps=name != "lapilli, no jump checks")
    return jax.jit(bound.value_and_grad)


def data(batch: int) -> tuple[Any, jax.Array]:
    x = (jax.random.uniform(jax.random.key(1), (batch, PIXELS)) > 0.5).astype(jnp.float32)
    return ppl.Params(init(jax.random.key(0))), x


def first_call(name: str, batch: int) -> float:
    """Seconds of the first call in this process, after JAX has started."""
    params, x = data(batch)
    params = params if name.startswith("lapilli") else dict(params)
    key = jax.block_until_ready(jax.random.key(2))
    start = time.perf_counter()
    jax.block_until_ready(make(name)(params, key, x))
    return time.perf_counter() - start


def first_calls(names: list[str], batch: int, repeats: int) -> dict[str, float]:
    """Median first call of each, in fresh interleaved processes without a compilation cache."""
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            seconds = output_of(__file__, "--first-call", name, "--batches", str(batch))
            times[name].append(float(seconds))
    return {name: statistics.median(t) for name, t in times.items()}


def steady(batch: int, repeats: int) -> dict[str, tuple[float, Ratio]]:
    """Name -> (median ms, median ratio to the hand-written call beside it)."""
    params, x = data(batch)
    functions = {name: make(name) for name in NAMES}
    arguments = {n: params if n == "lapilli" else dict(params) for n in NAMES}
    calls = {n: lambda i, n=n: functions[n](arguments[n], jax.random.key(i), x) for n in NAMES}
    times = interleaved(calls, repeats).steady
    return {n: (1e3 * float(np.median(t)), paired(t, times["hand"])) for n, t in times.items()}


def check_agreement() -> None:
    """All compute the same expected bound and gradient (different noise: compare means over draws)."""
    params, x = data(8)
    keys = jax.random.split(jax.random.key(3), 512)
    estimates = lambda name, p: jax.tree.leaves(
        [(v, dict(g)) for v, g in [jax.vmap(make(name), (None, 0, None))(p, keys, x)]]
    )
    hand = estimates("hand", dict(params))
    for name, p in (("numpyro", dict(params)), ("lapilli", params)):
        for a, b in zip(hand, estimates(name, p), strict=True):
            error = jnp.sqrt((a.var(0) + b.var(0)) / len(keys)) + 1e-4
            z = jnp.max(jnp.abs(a.mean(0) - b.mean(0)) / error)
            assert z < 6, f"{name} disagrees with the hand-written gradient: {z} standard errors"


def record(found: dict[int, dict[str, tuple[float, Ratio]]], first: dict[str, float]) -> None:
    """Ratios and first calls, for the page of figures."""
    of = lambda name: {f"batch {batch}": row[name][1] for batch, row in found.items()}
    record_figure(
        "gradients/vae_gradient",
        what=f"one ELBO gradient of a {PIXELS}-{HIDDEN}-{LATENT} VAE beside hand-written JAX, median of paired ratios; spread: "
        "half of its 95% interval",
        claim={name: ratio.median for name, ratio in of("numpyro").items()},
        claimed_by="NumPyro",
        measures=["ppl"],
        **with_intervals(of("lapilli")),
    )
    if first:
        record_figure(
            "gradients/vae_first_call",
            what="first call of that gradient (tracing, checks, compilation), seconds",
            value=first,
            digits=2,
            measures=["ppl"],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--first-calls", type=int, default=5)
    parser.add_argument("--first-call", help=argparse.SUPPRESS)
    args = parsed(parser)
    if args.first_call:
        print(first_call(args.first_call, args.batches[0]))
        return
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, float32")
    check_agreement()
    print("median ms per call (median of paired ratios to hand-written)")
    found, first = {}, {}
    for batch in args.batches:
        found[batch] = steady(batch, args.repeats)
        cells = [f"{n} {ms:.2f} (x{ratio:.3f})" for n, (ms, ratio) in found[batch].items()]
        print(f"batch {batch:5d}: {', '.join(cells)}", flush=True)
    if args.first_calls:
        first = first_calls([*NAMES, "lapilli, no jump checks"], args.batches[0], args.first_calls)
        cells = [f"{name} {t:.2f} s (x{t / first['hand']:.2f})" for name, t in first.items()]
        print(f"first call: {', '.join(cells)}")
    if args.record:
        record(found, first)


if __name__ == "__main__":
    main()
