"""How do time and memory grow with sites, rows, steps and states?

Each family is measured at several sizes; the exponent is the slope of the logarithms between the last two, 1 for linear growth
and 0 for none. Sites stand in a chain in straight code, each influenced by the one before: traced equations, seconds to trace
and to compile the gradient, beside NumPyro's SVI update. Rows are of `fit(subsample=)`, batches of 256. Steps are those of a
`ppl.scan`, states those of a hidden Markov chain of 20 steps that is summed out, particles those of `smc` over 100 steps, beside
a filter by hand; dimension is that of the normal states of 200 steps that are integrated out, beside Kalman's filter by hand with
covariances and with square roots, and dynamax and cuthbert where they are installed. A first fit of a model alone has 200 steps
and its judgement; NumPyro's is AutoNormal's SVI, up to 50 sites: it takes minutes at 200. Clocks are of the processor.

Run: python benchmarks/language/growth.py [--smoke] [--record] [--only NAME ...]   (about ten minutes on 2 CPU cores)
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

from lapilli import inference, ppl

sys.path.append(str(Path(__file__).resolve().parents[1]))
import kalman
from _common import interleaved, parsed, record_figure

KEY = jax.random.key(0)
Measured = dict[str, float]


def equations(jaxpr: Any) -> int:
    """How many equations a traced function has, inner ones included."""
    inner = [x for eqn in jaxpr.eqns for x in jax.tree.leaves(list(eqn.params.values()))]
    inner = [getattr(x, "jaxpr", x) for x in inner]
    return len(jaxpr.eqns) + sum(equations(x) for x in inner if hasattr(x, "eqns"))


def compiled(fn: Callable[..., Any], *args: Any) -> tuple[Measured, Any]:
    """What it costs to trace and to compile a function, and the executable."""
    start = time.process_time()
    traced = jax.jit(fn).trace(*args)
    between = time.process_time()
    executable = traced.lower().compile()
    found = {
        "equations": equations(traced.jaxpr.jaxpr),
        "trace s": between - start,
        "compile s": time.process_time() - between,
        "MB": getattr(executable.memory_analysis(), "temp_size_in_bytes", 0) / 1e6,
    }
    return found, executable


def seconds_of(run: Callable[[], Any]) -> float:
    """Median seconds of five calls, after one."""
    jax.block_until_ready(run())
    found = []
    for _ in range(5):
        start = time.process_time()
        jax.block_until_ready(run())
        found.append(time.process_time() - start)
    return float(np.median(found))


def chain(num: int) -> tuple[Callable, Callable]:
    """A model and a guide of `num` sites in straight code."""

    def model(y):
        z = 0.0
        for i in range(num):
            z = ppl.sample(f"z{i}", dist.Normal(z, 1.0))
            ppl.sample(f"y{i}", dist.Normal(jnp.tanh(z), 1.0), obs=y)

    def guide(y):
        for i in range(num):
            scale = ppl.param(f"s{i}", 0.5, constraint=dist.constraints.positive)
            ppl.sample(f"z{i}", dist.Normal(ppl.param(f"m{i}", 0.1), scale))

    return model, guide


def of_sites(num: int, strategy: str) -> Measured:
    objective = inference.elbo(*chain(num), strategies={"z*": strategy})
    start = time.process_time()
    params = objective.init(KEY, 0.5)
    return {"init s": time.process_time() - start} | compiled(
        objective.value_and_grad, params, KEY, 0.5
    )[0]


def of_sites_in_numpyro(num: int) -> Measured:
    svi = SVI(*chain(num), optax.adam(0.01), Trace_ELBO())
    start = time.process_time()
    state = svi.init(KEY, 0.5)
    return {"init s": time.process_time() - start} | compiled(
        lambda state, y: svi.update(state, y), state, 0.5
    )[0]


def of_first_fit(num: int) -> Measured:
    start = time.process_time()
    inference.fit(chain(num)[0], args=(0.5,), num_steps=200, progress=False)
    return {"s": time.process_time() - start}


def of_first_fit_in_numpyro(num: int) -> Measured:
    model = chain(num)[0]
    start = time.process_time()
    svi = SVI(model, AutoNormal(model), optax.adam(0.01), Trace_ELBO())
    svi.run(KEY, 200, 0.5, progress_bar=False)
    return {"s": time.process_time() - start}


def of_rows(num: int, steps: int = 4000) -> Measured:
    def model(x, y):
        w = ppl.sample("w", dist.Normal(jnp.zeros(4), 1.0).to_event(1))
        with ppl.plate("rows", len(x)):
            ppl.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    def guide(x, y):
        ppl.sample("w", dist.Normal(ppl.param("m", jnp.zeros(4)), 0.1).to_event(1))

    x = np.random.default_rng(0).normal(size=(num, 4)).astype(np.float32)
    objective = inference.elbo(model, guide)

    def run(num_steps: int) -> float:
        start = time.process_time()
        inference.fit(
            objective, optax.adam(0.01), (x, x.sum(1)), num_steps=num_steps, subsample={"rows": 256},
            progress=False, k_hat="skip",
        )  # fmt: skip
        return time.process_time() - start

    run(1), run(steps)
    few, many = (float(np.median([run(n) for _ in range(3)])) for n in (1, steps))
    return {"us a step": (many - few) / steps * 1e6, "set-up s": few}


def of_steps(num: int) -> Measured:
    def model(ys):
        def step(z, y):
            z = ppl.sample("z", dist.Normal(0.9 * z, 1.0))
            ppl.sample("y", dist.Normal(z, 1.0), obs=y)
            return z, None

        ppl.scan(step, 0.0, ys)

    def guide(ys):
        ppl.scan(
            lambda _, y: (None, ppl.sample("z", dist.Normal(ppl.param("a", 0.5) * y, 0.5))),
            None,
            ys,
        )

    ys = jnp.zeros(num)
    objective = inference.elbo(model, guide)
    params = objective.init(KEY, ys)
    found, run = compiled(objective.value_and_grad, params, KEY, ys)
    return found | {"us a call": seconds_of(lambda: run(params, KEY, ys)) * 1e6}


def of_states(num: int) -> Measured:
    ys, means = jnp.zeros(20), jnp.linspace(-2.0, 2.0, num)

    def log_density(logits, ys):
        def series(ys):
            def step(s, y):
                s = ppl.sample("s", dist.Categorical(logits=logits[s]))
                return s, ppl.sample("y", dist.Normal(means[s], 1.0), obs=y)

            ppl.scan(step, 0, ys)

        return ppl.eliminate(series, "s").log_density({}, ys)

    logits = jnp.zeros((num, num))
    found, run = compiled(log_density, logits, ys)
    return found | {"us a call": seconds_of(lambda: run(logits, ys)) * 1e6}


def series(ys: jax.Array) -> None:
    def step(z: Any, y: jax.Array) -> Any:
        z = ppl.sample("z", dist.Normal(0.9 * z, 1.0))
        ppl.sample("y", dist.Normal(z, 0.5), obs=y)
        return z, None

    ppl.scan(step, 0.0, ys)


def by_hand(key: jax.Array, ys: jax.Array, num: int) -> jax.Array:
    """The evidence by a bootstrap filter that resamples systematically below half of the particles."""

    def step(carry: Any, now: Any) -> Any:
        z, log_weights, log_z = carry
        y, *keys = now
        weights = jax.nn.softmax(log_weights)

        def resampled() -> Any:
            places = (jax.random.uniform(keys[0]) + jnp.arange(num)) / num
            rows = jnp.clip(jnp.searchsorted(jnp.cumsum(weights), places), 0, num - 1)
            return z[rows], jnp.zeros(num), log_z + jax.nn.logsumexp(log_weights) - math.log(num)

        few = 1 / (weights**2).sum() < num / 2
        z, log_weights, log_z = jax.lax.cond(few, resampled, lambda: carry)
        z = 0.9 * z + jax.random.normal(keys[1], (num,))
        return (z, log_weights + dist.Normal(z, 0.5).log_prob(y), log_z), None

    keys = jax.random.split(key, (2, len(ys)))
    start = jnp.zeros(num), jnp.zeros(num), jnp.zeros(())
    (_, log_weights, log_z), _ = jax.lax.scan(step, start, (ys, *keys))
    return log_z + jax.nn.logsumexp(log_weights) - math.log(num)


def of_particles(num: int) -> Measured:
    ys = jnp.asarray(np.random.default_rng(0).normal(size=100), jnp.float32)
    run = lambda key, ys: (
        inference.smc(series, key, ys, num_particles=num, history="none").log_evidence
    )
    found, ours = compiled(run, KEY, ys)
    other, hand = compiled(lambda key, ys: by_hand(key, ys, num), KEY, ys)
    first = lambda measured: measured["trace s"] + measured["compile s"]
    calls = {
        "ours": lambda i: ours(jax.random.key(i), ys),
        "hand": lambda i: hand(jax.random.key(i), ys),
    }
    steady = {name: 1e4 * float(np.median(t)) for name, t in interleaved(calls, 60).steady.items()}
    return {
        "first s": first(found), "first, hand": first(other), "MB": found["MB"],
        "us a step": steady["ours"], "us, by hand": steady["hand"],
    }  # fmt: skip


def of_dimension(num: int) -> Measured:
    system = kalman.system(num, 200)
    filters = {"lapilli": kalman.integrated, "roots": kalman.by_roots}
    filters |= {"covariances": kalman.by_covariances}
    if all(importlib.util.find_spec(peer) for peer in kalman.PEERS):
        from _peers.kalman import by_cuthbert, by_dynamax

        filters |= {"dynamax": by_dynamax, "cuthbert": by_cuthbert}
    found = {}
    for name, fn in filters.items():
        run = jax.jit(jax.value_and_grad(fn)).lower(*system).compile()
        found[f"us, {name}"] = seconds_of(lambda run=run: run(*system)) / 200 * 1e6
    return found


def families(is_smoke: bool) -> Iterator[tuple[str, list[int], Callable[[int], Measured]]]:
    """Name, sizes and measurement of each family."""
    sites = [4, 8] if is_smoke else [10, 20, 40]
    yield "sites, pathwise", sites, lambda n: of_sites(n, "reparam")
    yield "sites, pathwise, NumPyro", sites, of_sites_in_numpyro
    yield "sites, scores", sites, lambda n: of_sites(n, "reinforce")
    yield "first fit", [4, 8] if is_smoke else [10, 50, 200, 500], of_first_fit
    yield "first fit, NumPyro", [4, 8] if is_smoke else [10, 50], of_first_fit_in_numpyro
    yield "rows, minibatches", [10**3, 10**4] if is_smoke else [10**4, 10**6, 10**7], of_rows
    yield "steps of a scan", [10, 100] if is_smoke else [100, 1000, 10_000], of_steps
    yield "states of a chain", [8, 16] if is_smoke else [64, 256, 1024], of_states
    yield "particles", [10, 20] if is_smoke else [100, 1000, 10_000], of_particles
    yield "dimension of a filter", [2, 4] if is_smoke else [4, 16, 64], of_dimension


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="small sizes")
    parser.add_argument("--only", nargs="+", default=[""], help="families whose names begin so")
    options = parsed(parser)
    warnings.simplefilter("ignore")
    print(f"{'family':<26}{'what':<16}{'at sizes':<56}exponent")
    exponents: dict[str, float] = {}
    table: list[str] = []
    for name, sizes, measure in families(options.smoke):
        if not name.startswith(tuple(options.only)):
            continue
        found = [measure(size) for size in sizes]
        for what in found[0]:
            *_, a, b = values = [f[what] for f in found]
            rise = math.log(b / a) / math.log(sizes[-1] / sizes[-2]) if min(a, b) > 0 else math.nan
            at = ", ".join(f"{n:.3g}: {v:.3g}" for n, v in zip(sizes, values, strict=True))
            print(f"{name:<26}{what:<16}{at:<56}{rise:.2f}", flush=True)
            table.append(f"{name}, {what} ({at})")
            if rise == rise:
                exponents[f"{name}, {what}"] = rise
    if options.record:
        record_figure(
            "gradients/growth",
            what="exponents of growth, slopes of the logarithms between the two largest sizes: 1 is linear, 0 none",
            value=exponents,
            note="; ".join(table),
            digits=2,
            measures=["ppl", "inference/fitting"],
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
