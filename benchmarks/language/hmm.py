"""Question: what does exact elimination of a hidden Markov chain cost beside a forward algorithm written by hand in JAX?

Two gradients of a chain of T = 200 steps with 8 states and Normal emissions: of the log-likelihood (`ppl.eliminate`, the
hand-written forward algorithm in logs, NumPyro's enumeration of the same program), and of the ELBO with a guide chain
q(z_t | z_{t-1}, x_t) (`strategies="enum"`, the hand-written forward recursion of marginals). All run in one process,
interleaved; the answer is the median of paired ratios to the hand-written call, with the first call of each (tracing,
checks, compilation) in this process.

usage: python benchmarks/language/hmm.py [--steps 200] [--states 8] [--repeats 100] [--record]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan as numpyro_scan
from numpyro.contrib.funsor import config_enumerate, enum, log_density as enumerated_log_density

from lapilli import inference, ppl

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _common import interleaved, paired, parsed, record_figure, with_intervals

Run = Callable[[Any, jax.Array], Any]


def init(key: jax.Array, states: int) -> dict[str, jax.Array]:
    """Logits of transitions, means of emissions; logits and slopes of the guide."""
    keys = jax.random.split(key, 4)
    shapes = {"trans": (states, states), "means": (states,), "u": (states, states), "v": (states,)}
    return {n: jax.random.normal(k, shapes[n]) for n, k in zip(shapes, keys, strict=True)}


def declared(name: str, states: int) -> Any:
    return ppl.param(name, lambda key: init(key, states)[name])


def programs(states: int) -> tuple[ppl.Program, ppl.Program]:
    """The model and the guide."""

    @ppl.model
    def model(x: jax.Array) -> None:
        trans, means = declared("trans", states), declared("means", states)

        def step(z: Any, x: Any) -> Any:
            z = ppl.sample("z", dist.CategoricalLogits(trans[z]))
            ppl.sample("x", dist.Normal(means[z], 1.0), obs=x)
            return z, None

        ppl.scan(step, 0, x)

    @ppl.model
    def guide(x: jax.Array) -> None:
        u, v = declared("u", states), declared("v", states)

        def step(z: Any, x: Any) -> Any:
            return ppl.sample("z", dist.CategoricalLogits(u[z] + x * v)), None

        ppl.scan(step, 0, x)

    return model, guide


def log_tables(p: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log transition matrix; log-density of each observation in each state."""
    return jax.nn.log_softmax(p["trans"]), dist.Normal(p["means"], 1.0).log_prob(x[:, None])


def likelihood_by_hand(p: Any, x: jax.Array) -> jax.Array:
    """The forward algorithm in logs."""
    log_w, log_x = log_tables(p, x)

    def step(alpha: jax.Array, row: jax.Array) -> tuple[jax.Array, None]:
        return jax.nn.logsumexp(alpha[:, None] + log_w, axis=0) + row, None

    return jax.nn.logsumexp(jax.lax.scan(step, log_w[0] + log_x[0], log_x[1:])[0])


def bound_by_hand(p: Any, x: jax.Array) -> jax.Array:
    """The ELBO by a forward recursion of the guide's marginals."""
    log_w, log_x = log_tables(p, x)
    log_q = jax.nn.log_softmax(p["u"] + x[:, None, None] * p["v"])
    costs = log_w + log_x[:, None] - log_q

    def step(marginal: jax.Array, inputs: Any) -> tuple[jax.Array, jax.Array]:
        log_q, cost = inputs
        pair = marginal[:, None] * jnp.exp(log_q)
        return pair.sum(0), (pair * cost).sum()

    start = jnp.zeros(x.shape and p["means"].shape).at[0].set(1.0)
    return jax.lax.scan(step, start, (log_q, costs))[1].sum()


def numpyro_likelihood(p: Any, x: jax.Array) -> jax.Array:
    """NumPyro's elimination by funsor."""

    def model(x: jax.Array) -> None:
        def step(z: Any, x: Any) -> Any:
            z = numpyro.sample("z", dist.CategoricalLogits(p["trans"][z]))
            numpyro.sample("x", dist.Normal(p["means"][z], 1.0), obs=x)
            return z, None

        numpyro_scan(step, 0, x)

    return enumerated_log_density(enum(config_enumerate(model), -1), (x,), {}, {})[0]


def runs(states: int) -> dict[str, dict[str, Run]]:
    """Quantity -> name -> compiled (params, x) -> (value, gradient); the hand-written one first."""
    model, guide = programs(states)
    likelihood = lambda p, x: ppl.eliminate(model, "z").bind(p).log_density({}, x)
    bound = inference.elbo(model, guide, strategies="enum")
    key = jax.random.key(2)
    compiled = lambda fn: jax.jit(jax.value_and_grad(fn))
    return {
        "log-likelihood": {
            "hand": compiled(likelihood_by_hand),
            "lapilli": compiled(likelihood),
            "numpyro": compiled(numpyro_likelihood),
        },
        "ELBO": {
            "hand": compiled(bound_by_hand),
            "lapilli": jax.jit(lambda p, x: bound.value_and_grad(p, key, x)),
        },
    }


def measure(functions: dict[str, Run], params: Any, x: jax.Array, repeats: int) -> dict[str, Any]:
    """Check agreement, then print first calls, medians and paired ratios; name -> (ratio, ratio of first calls)."""
    first, results = {}, {}
    for name, run in functions.items():
        start = time.perf_counter()
        results[name] = jax.block_until_ready(run(params, x))
        first[name] = time.perf_counter() - start
    value, grads = results["hand"]
    for name, (other, slopes) in results.items():
        assert abs(float(other - value)) < 1e-4 * abs(float(value)), f"{name}: {other}, not {value}"
        for key, slope in dict(slopes).items():
            error = jnp.abs(slope - grads[key]).max() / (1 + jnp.abs(grads[key]).max())
            assert error < 1e-3, f"{name} disagrees in the gradient of {key}: {error}"
    calls = {name: lambda i, run=run: run(params, x) for name, run in functions.items()}
    times = interleaved(calls, repeats).steady
    ratios = {name: paired(seconds, times["hand"]) for name, seconds in times.items()}
    for name, seconds in times.items():
        print(
            f"  {name:8s} {1e3 * np.median(seconds):7.2f} ms (x{ratios[name]:.2f}), first call {first[name]:.2f} s",
            flush=True,
        )
    return {name: (ratio, first[name] / first["hand"]) for name, ratio in ratios.items()}


def record(found: dict[str, dict[str, Any]], steps: int, states: int) -> None:
    """The ratios, for the page of figures."""
    record_figure(
        "gradients/hidden_markov_chain",
        what=f"a hidden Markov chain of {steps} steps and {states} states summed out, time of the gradient relative to JAX by "
        "hand; spread: half of the 95% interval of the median",
        claim={q: rows["numpyro"][0].median for q, rows in found.items() if "numpyro" in rows},
        claimed_by="NumPyro",
        note="first call: "
        + "; ".join(f"{q} {rows['lapilli'][1]:.2f}" for q, rows in found.items()),
        digits=2,
        measures=["ppl"],
        **with_intervals({quantity: rows["lapilli"][0] for quantity, rows in found.items()}),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--states", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=100)
    args = parsed(parser)
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, float32")
    print(
        f"{args.steps} steps, {args.states} states; median ms per gradient (median of paired ratios)"
    )
    x = jax.random.normal(jax.random.key(1), (args.steps,))
    params = init(jax.random.key(0), args.states)
    found = {}
    for quantity, functions in runs(args.states).items():
        print(quantity)
        found[quantity] = measure(functions, params, x, args.repeats)
    if args.record:
        record(found, args.steps, args.states)


if __name__ == "__main__":
    main()
