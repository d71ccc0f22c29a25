"""Question: what does a gradient cost beside the same gradient written by hand in JAX?

Programs beside those of vae.py (ELBO of a VAE) and hmm.py (a chain summed out): the importance-weighted bound of a VAE with
five draws per row; the ELBO of mixtures of 1,000 rows whose labels are enumerated row by row; the ELBO of attend, infer,
repeat on 32 images (models/air.py), whose count is summed out by hand and under "enum", and drawn under "mvd". The answer is
the median of paired ratios of processor time in one process (pin it to one core); first calls (tracing, checks, compilation)
are measured in fresh processes without a compilation cache.

usage: taskset -c 0 python benchmarks/language/overhead.py [--repeats 100] [--first-calls 3] [--cases "AIR, enum" ...]
    [--record]
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import vae
from jax.nn import log_sigmoid, log_softmax, logsumexp, sigmoid, silu

from lapilli import inference, ppl
from lapilli.models import air

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _common import Ratio, interleaved, output_of, paired, parsed, record_figure, with_intervals

Run = Callable[[Any, jax.Array, jax.Array], Any]
NUM_DRAWS = 5


class Case(NamedTuple):
    """Parameters and data, and the bound twice: (params, key, x) -> nats by hand, and as an objective."""

    params: dict[str, Any]
    x: jax.Array
    by_hand: Run
    objective: inference.Objective


def weighted_vae(batch: int = 64) -> Case:
    params, x = vae.data(batch)

    def by_hand(p: dict[str, Any], key: jax.Array, x: jax.Array) -> jax.Array:
        m, s = vae.encode(p, x)
        eps = jax.random.normal(key, (NUM_DRAWS, *m.shape))
        z = m + s * eps
        logits = vae.decode(p, z)
        log_w = (x * logits - jax.nn.softplus(logits)).sum(-1)
        log_w = log_w + (0.5 * (eps**2 - z**2) + jnp.log(s)).sum(-1)
        return (logsumexp(log_w, 0) - jnp.log(NUM_DRAWS)).sum()

    objective = inference.iwelbo(vae.model, vae.guide, num_particles=NUM_DRAWS, per="plate")
    return Case(dict(params), x, by_hand, objective)


def mixture(num_clusters: int, num_rows: int = 1000) -> Case:
    keys = jax.random.split(jax.random.key(0), 3)
    x = 3 * jax.random.normal(keys[0], (num_rows, 2))
    params = {
        "means": 3 * jax.random.normal(keys[1], (num_clusters, 2)),
        "weights": jnp.zeros(num_clusters),
        "logits": jax.random.normal(keys[2], (num_rows, num_clusters)),
    }

    @ppl.model
    def model(x: jax.Array) -> None:
        means = ppl.param("means", params["means"])
        weights = ppl.param("weights", params["weights"])
        with ppl.plate("rows", len(x)):
            k = ppl.sample("k", dist.Categorical(logits=weights))
            ppl.sample("x", dist.Normal(means[k], 1.0).to_event(1), obs=x)

    @ppl.model
    def guide(x: jax.Array) -> None:
        logits = ppl.param("logits", params["logits"])
        with ppl.plate("rows", len(x)):
            ppl.sample("k", dist.Categorical(logits=logits))

    def by_hand(p: dict[str, Any], _: jax.Array, x: jax.Array) -> jax.Array:
        log_q = log_softmax(p["logits"])
        log_x = (-0.5 * (x[:, None] - p["means"]) ** 2 - 0.5 * jnp.log(2 * jnp.pi)).sum(-1)
        return (jnp.exp(log_q) * (log_softmax(p["weights"]) + log_x - log_q)).sum()

    return Case(params, x, by_hand, inference.elbo(model, guide, strategies={"k": "enum"}))


def air_step(strategy: str, batch: int = 32) -> Case:
    """One step of AIR with at most three objects, the networks of models/air.py on both sides."""
    side, steps, prior, noise, cells, num_what, hidden = 28, 3, 1e-3, 0.3, 12, 16, 96
    model, guide = air.programs((side, side), key=jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (batch, side * side))
    objective = inference.elbo(model, guide, strategies={"more_*": strategy})
    params = dict(objective.init(jax.random.key(2), x))
    frame = air.Geometry((side, side), cells, 13.0, 0.1)
    key = jax.random.key(0)
    shells = {
        "reader": air.GuideNetworks(side**2, cells, num_what, hidden, key=key),
        "decoder": eqx.nn.MLP(num_what, cells**2, hidden, 1, activation=silu, key=key),
        "counter": eqx.nn.Linear(hidden, "scalar", key=key),
    }
    fixed = {n: eqx.partition(shell, eqx.is_inexact_array)[1] for n, shell in shells.items()}

    def by_hand(p: dict[str, Any], key: jax.Array, x: jax.Array) -> jax.Array:
        reader, decoder, counter = (eqx.combine(p[n], fixed[n]) for n in shells)
        state, seen = jnp.zeros((len(x), hidden)), jnp.zeros((len(x), 3 + num_what))
        embedded = silu(jax.vmap(reader.embed)(x))
        canvas, ratio, total = jnp.zeros(x.shape), jnp.zeros(len(x)), jnp.zeros(len(x))
        log_prior, log_q = 0.0, jnp.zeros(len(x))  # of at least t objects
        for t in range(steps + 1):
            # With t objects: the last answer was "no", unless there was no question left.
            if t < steps:
                state = jax.vmap(reader.cell)(jnp.concatenate([embedded, seen], -1), state)
                more = jax.vmap(counter)(state)
                log_p, log_t = log_prior + jnp.log(1 - prior), log_q + log_sigmoid(-more)
            else:
                log_p, log_t, more = log_prior, log_q, None
            log_x = (-0.5 * ((x - canvas) / noise) ** 2).sum(-1)
            log_x = log_x - x.shape[-1] * (jnp.log(noise) + 0.5 * jnp.log(2 * jnp.pi))
            total = total + jnp.exp(log_t) * (log_x + ratio + log_p - log_t)
            if more is None:
                break
            log_prior, log_q = log_prior + jnp.log(prior), log_q + log_sigmoid(more)
            keys = jax.random.split(jax.random.fold_in(key, t))
            where, change = drawn(keys[0], *jax.vmap(reader.attend)(state))
            what, other = drawn(keys[1], *jax.vmap(reader.encode)(frame.read(x, where)))
            ratio, seen = ratio + change + other, jnp.concatenate([where, what], -1)
            canvas = canvas + frame.write(sigmoid(jax.vmap(decoder)(what)), where)
        return total.sum()

    def drawn(key: jax.Array, loc: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A draw z of Normal(loc, scale), and log N(z; 0, 1) - log q(z)."""
        eps = jax.random.normal(key, loc.shape)
        z = loc + scale * eps
        return z, (0.5 * (eps**2 - z**2) + jnp.log(scale)).sum(-1)

    return Case(params, x, by_hand, objective)


CASES = {
    "IWELBO of a VAE, 5 draws": weighted_vae,
    **{f"mixture of {k}, enumerated": functools.partial(mixture, k) for k in (2, 3, 8, 10, 64)},
    "AIR, enum": functools.partial(air_step, "enum"),
    "AIR, mvd": functools.partial(air_step, "mvd"),
}
VERSIONS = ("by hand", "lapilli")


def run_of(case: Case, version: str) -> Run:
    """A compiled (params, key, x) -> (value, gradient)."""
    if version == "by hand":
        return jax.jit(jax.value_and_grad(case.by_hand))
    return jax.jit(case.objective.value_and_grad)


def arguments(case: Case, version: str) -> Any:
    return case.params if version == "by hand" else ppl.Params(case.params)


def check_agreement(case: Case) -> None:
    """Both have the same mean value and gradient, within six standard errors over draws."""
    keys = jax.random.split(jax.random.key(3), 256)
    x = case.x[:8] if case.x.shape[0] <= 64 else case.x
    found = []
    for version in VERSIONS:
        run = jax.vmap(run_of(case, version), (None, 0, None))
        value, grads = run(arguments(case, version), keys, x)
        found.append(jax.tree.leaves((value, dict(grads))))
    for a, b in zip(*found, strict=True):
        error = jnp.sqrt((a.var(0) + b.var(0)) / len(keys)) + 1e-4 * (1 + jnp.abs(a.mean(0)))
        z = jnp.max(jnp.abs(a.mean(0) - b.mean(0)) / error)
        assert z < 6, f"the two disagree by {z} standard errors"


def steady(case: Case, repeats: int) -> dict[str, np.ndarray]:
    """Seconds of processor time of each call."""
    runs = {version: run_of(case, version) for version in VERSIONS}
    params = {version: arguments(case, version) for version in VERSIONS}
    calls = {v: lambda i, v=v: runs[v](params[v], jax.random.key(i), case.x) for v in VERSIONS}
    return interleaved(calls, repeats, clock=time.process_time).steady


def first_call(name: str, version: str) -> float:
    """Seconds of processor time of the first call in this process, after JAX has started."""
    case = CASES[name]()
    params, key = arguments(case, version), jax.block_until_ready(jax.random.key(2))
    start = time.process_time()
    jax.block_until_ready(run_of(case, version)(params, key, case.x))
    return time.process_time() - start


def first_calls(name: str, repeats: int) -> dict[str, float]:
    """Median first call of each version, in fresh interleaved processes."""
    times: dict[str, list[float]] = {version: [] for version in VERSIONS}
    for _ in range(repeats):
        for version in VERSIONS:
            times[version].append(float(output_of(__file__, "--first-call", name, version)))
    return {version: statistics.median(t) for version, t in times.items()}


def record(found: dict[str, Ratio], first: dict[str, float]) -> None:
    """The ratios of bounds and of mixtures, for the page of figures; records of cases that have not been run stay as they are."""
    groups = {"mixtures": "mixtures of 1,000 rows, enumerated row by row", "bounds": "other bounds"}
    for group, words in groups.items():
        rows = {n: r for n, r in found.items() if n.startswith("mixture") == (group == "mixtures")}
        calls = "; ".join(f"{name} {first[name]:.2f}" for name in rows if name in first)
        if rows:
            record_figure(
                f"gradients/overhead_{group}",
                what=f"{words}, processor time of a gradient relative to JAX by hand, median; spread: half of its 95% interval",
                note=f"first call: {calls}" if calls else None,
                digits=2,
                measures=["ppl"],
                **with_intervals(rows),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--first-calls", type=int, default=3)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--first-call", nargs=2, help=argparse.SUPPRESS)
    args = parsed(parser)
    if args.first_call:
        print(first_call(*args.first_call))
        return
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, float32")
    print(
        "median ms of processor time per gradient, median of paired ratios to the hand-written one"
    )
    found, shares = {}, {}
    for name in args.cases:
        case = CASES[name]()
        check_agreement(case)
        times = steady(case, args.repeats)
        found[name] = ratio = paired(times["lapilli"], times["by hand"])
        ms = {version: 1e3 * np.median(seconds) for version, seconds in times.items()}
        line = f"  {name:28s} by hand {ms['by hand']:7.3f}, lapilli {ms['lapilli']:7.3f} (x{ratio:.3f})"
        if args.first_calls:
            first = first_calls(name, args.first_calls)
            shares[name] = share = first["lapilli"] / first["by hand"]
            line += (
                f"; first call {first['by hand']:.2f} s, {first['lapilli']:.2f} s (x{share:.2f})"
            )
        print(line, flush=True)
    if args.record:
        record(found, shares)


if __name__ == "__main__":
    main()
