"""How do time and memory grow with sites, rows, steps and states?

Each family is measured at several sizes; the exponent is the slope of the logarithms between the last two, 1 for linear growth
and 0 for none. Sites stand in a chain in straight code, each influenced by the one before: traced equations, seconds to trace
and to compile the gradient, beside NumPyro's SVI update. Rows are of `fit(subsample=)`, batches of 256. Steps are those of a
`ppl.scan`, states those of a hidden Markov chain of 20 steps that is summed out. Clocks are of the processor.

Run: python benchmarks/language/growth.py [--smoke]   (about four minutes on 2 CPU cores)
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI, Trace_ELBO

from lapilli import inference, ppl

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

    run(1)
    few = float(np.median([run(1) for _ in range(3)]))
    return {"us a step": (run(steps) - few) / steps * 1e6, "set-up s": few}


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


def families(is_smoke: bool) -> Iterator[tuple[str, list[int], Callable[[int], Measured]]]:
    """Name, sizes and measurement of each family."""
    sites = [4, 8] if is_smoke else [10, 20, 40]
    yield "sites, pathwise", sites, lambda n: of_sites(n, "reparam")
    yield "sites, pathwise, NumPyro", sites, of_sites_in_numpyro
    yield "sites, scores", sites, lambda n: of_sites(n, "reinforce")
    yield "rows, minibatches", [10**3, 10**4] if is_smoke else [10**4, 10**6, 10**7], of_rows
    yield "steps of a scan", [10, 100] if is_smoke else [100, 1000, 10_000], of_steps
    yield "states of a chain", [8, 16] if is_smoke else [64, 256, 1024], of_states


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="small sizes")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{'family':<26}{'what':<12}{'at sizes':<44}exponent")
    for name, sizes, measure in families(options.smoke):
        found = [measure(size) for size in sizes]
        for what in found[0]:
            *_, a, b = values = [f[what] for f in found]
            rise = math.log(b / a) / math.log(sizes[-1] / sizes[-2]) if min(a, b) > 0 else math.nan
            at = ", ".join(f"{n:.3g}: {v:.3g}" for n, v in zip(sizes, values, strict=True))
            print(f"{name:<26}{what:<12}{at:<44}{rise:.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
