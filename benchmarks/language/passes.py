"""Question: what does each pass of the evaluator buy (`ppl/evaluation/_passes.py`)?

Gradients of programs in which sites are enumerated, replayed or drawn in loops, with all passes, with one of them left out, and
with none (the reference). All run in one process, interleaved. A figure is the median of paired ratios, time without the pass to
time with all: above 1 the pass pays. The answer is the last row: the most that each pass buys. One that buys less than 5 % in
every program has no place in the library.

usage: taskset -c 0 python benchmarks/language/passes.py [--repeats 60] [--cases "AIR, enum" ...]
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import hmm
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import overhead

from lapilli import inference, ppl
from lapilli.ppl.evaluation import NAMES, passes

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _common import interleaved, paired

Run = Callable[[Any, jax.Array, Any], Any]  # (params, key, data) -> (value, gradient)


class Case(NamedTuple):
    """A gradient; parameters and data are operands: what is closed over, XLA computes ahead of time."""

    run: Run
    params: Any
    x: jax.Array


LENGTH = 200


def of_overhead(make: Callable[[], overhead.Case]) -> Callable[[], Case]:
    def case() -> Case:
        found = make()
        return Case(found.objective.value_and_grad, ppl.Params(found.params), found.x)

    return case


def chain(quantity: str, strategy: str = "enum") -> Case:
    model, guide = hmm.programs(8)
    x = jax.random.normal(jax.random.key(1), (LENGTH,))
    params = hmm.init(jax.random.key(0), 8)
    if quantity == "ELBO":
        bound = inference.elbo(model, guide, strategies=strategy)
        return Case(bound.value_and_grad, ppl.Params(params), x)
    likelihood = lambda p, x: ppl.eliminate(model, "z").bind(p).log_density({}, x)
    return Case(lambda p, _, x: jax.value_and_grad(likelihood)(p, x), params, x)


def regimes() -> Case:
    """A level that drifts by noise of its own, in two regimes that follow one another: drawn states in a loop, one enumerated."""
    x = jax.random.normal(jax.random.key(1), (LENGTH,))

    @ppl.model
    def model(x: jax.Array) -> None:
        def step(carry: Any, x: Any) -> Any:
            z, level = carry
            z = ppl.sample("z", dist.Bernoulli(0.1 + 0.8 * z))
            level = ppl.sample("level", dist.Normal(level, 0.1 + z))
            ppl.sample("x", dist.Normal(level, 0.5), obs=x)
            return (z, level), None

        ppl.scan(step, (0, 0.0), x)

    @ppl.model
    def guide(x: jax.Array) -> None:
        slope, logit = ppl.param("slope", 0.1), ppl.param("logit", -1.0)

        def step(level: Any, x: Any) -> Any:
            ppl.sample("z", dist.Bernoulli(logits=logit + slope * x))
            level = ppl.sample("level", dist.Normal(level + slope * (x - level), 0.3))
            return level, None

        ppl.scan(step, 0.0, x)

    bound = inference.elbo(model, guide, strategies={"z": "reinforce_loo", "level": "reparam"})
    params = bound.init(jax.random.key(0), x)
    return Case(bound.value_and_grad, params, x)


def states_of_space() -> Case:
    """A nonlinear state-space model whose states are reparametrised in a loop."""
    x = jax.random.normal(jax.random.key(1), (LENGTH,))

    @ppl.model
    def model(x: jax.Array) -> None:
        def step(z: Any, x: Any) -> Any:
            z = ppl.sample("z", dist.Normal(0.9 * jnp.tanh(z), 0.3).expand([8]).to_event(1))
            ppl.sample("x", dist.Normal(z.sum(), 0.5), obs=x)
            return z, None

        ppl.scan(step, jnp.zeros(8), x)

    @ppl.model
    def guide(x: jax.Array) -> None:
        weights = ppl.param("weights", 0.1 * jnp.ones(8))

        def step(z: Any, x: Any) -> Any:
            return ppl.sample("z", dist.Normal(0.8 * z + weights * x, 0.3).to_event(1)), None

        ppl.scan(step, jnp.zeros(8), x)

    bound = inference.elbo(model, guide)
    params = bound.init(jax.random.key(0), x)
    return Case(bound.value_and_grad, params, x)


def with_codes(strategy: str) -> Case:
    """A class and a code per row, the code's guide depends on the class."""
    x = 3 * jax.random.normal(jax.random.key(1), (500, 2))

    @ppl.model
    def model(x: jax.Array) -> None:
        means = ppl.param("means", 3 * jax.random.normal(jax.random.key(2), (5, 2)))
        with ppl.plate("rows", len(x)):
            k = ppl.sample("k", dist.Categorical(jnp.full(5, 0.2)))
            z = ppl.sample("z", dist.Normal(means[k], 1.0).to_event(1))
            ppl.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    @ppl.model
    def guide(x: jax.Array) -> None:
        logits, shift = ppl.param("logits", jnp.zeros(5)), ppl.param("shift", jnp.zeros((5, 2)))
        with ppl.plate("rows", len(x)):
            k = ppl.sample("k", dist.Categorical(logits=logits))
            ppl.sample("z", dist.Normal(0.8 * x + shift[k], 0.5).to_event(1))

    bound = inference.elbo(model, guide, strategies={"k": strategy, "z": "reparam"})
    params = bound.init(jax.random.key(0), x)
    return Case(bound.value_and_grad, params, x)


CASES: dict[str, Callable[[], Case]] = {
    **{n: of_overhead(overhead.CASES[n]) for n in ("AIR, enum", "AIR, mvd")},
    **{
        f"mixture of {k}, enum": of_overhead(functools.partial(overhead.mixture, k))
        for k in (3, 4, 10, 64)
    },
    "HMM, ELBO": lambda: chain("ELBO"),
    "HMM, log-likelihood": lambda: chain("log-likelihood"),
    "HMM, mvd": lambda: chain("ELBO", "mvd"),
    "HMM, reinforce": lambda: chain("ELBO", "reinforce"),
    "regimes": regimes,
    "state space": states_of_space,
    "classes with codes, enum": lambda: with_codes("enum"),
    "classes with codes, mvd": lambda: with_codes("mvd"),
}
VERSIONS = ("all", *NAMES, "reference")


def compiled(make: Callable[[], Case], version: str) -> Callable[[jax.Array], Any]:
    """The program with all passes but `version`; traced anew, under this choice."""
    kept = () if version == "reference" else tuple(n for n in NAMES if n != version)
    case = make()
    with passes(*kept):
        run = jax.jit(case.run)
        run(case.params, jax.random.key(0), case.x)  # traced here
    return lambda key: run(case.params, key, case.x)


def check_agreement(name: str, runs: dict[str, Callable[[jax.Array], Any]]) -> None:
    expected = jax.tree.leaves(runs["all"](jax.random.key(5)))
    for version, run in runs.items():
        for a, b in zip(jax.tree.leaves(run(jax.random.key(5))), expected, strict=True):
            error = jnp.abs(a - b).max() / (1 + jnp.abs(b).max())
            assert error < 1e-3, f"{name} differs by {error} without {version}"


def ratios(runs: dict[str, Callable[[jax.Array], Any]], repeats: int) -> dict[str, float]:
    """Median over calls of the processor time relative to all passes."""
    calls = {version: lambda i, run=run: run(jax.random.key(i)) for version, run in runs.items()}
    times = interleaved(calls, repeats, clock=time.process_time).steady
    base = times.pop("all")
    return {version: paired(seconds, base).median for version, seconds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, float32")
    columns = [v for v in VERSIONS if v != "all"]
    print(f"{'time without / with':26s}" + "".join(f"{c:>12s}" for c in columns))
    most = dict.fromkeys(columns, 0.0)
    for name in args.cases:
        runs = {version: compiled(CASES[name], version) for version in VERSIONS}
        check_agreement(name, runs)
        found = ratios(runs, args.repeats)
        print(f"{name:26s}" + "".join(f"{found[c]:12.2f}" for c in columns), flush=True)
        most = {c: max(most[c], found[c]) for c in columns}
    print(f"{'most':26s}" + "".join(f"{most[c]:12.2f}" for c in columns))


if __name__ == "__main__":
    main()
