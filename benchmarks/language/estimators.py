"""Question: variance times time of gradients with discrete sites, beside NumPyro's objectives on the same programs.

Three plain NumPyro models, run by both libraries as they stand: a mixture (a Bernoulli label per row), a chain (three states,
twelve steps, the guide a chain as well), and clusters with codes (a class and a continuous code per row, the code's guide
depending on the class). For the ELBO: NumPyro's TraceGraph_ELBO and TraceEnum_ELBO; for the importance-weighted bound of five
draws: RenyiELBO(alpha=0). The product of a gradient's variance (summed over coordinates) and the processor time of one step is
what optimisation pays: half the product, half the time to the same accuracy. Steps run in a compiled loop, as in our fit and
NumPyro's SVI.run: of a call on its own, some microseconds, most is the waking of threads.

The answer is the last column: each of our rows relative to NumPyro's row of the same kind (enumeration to TraceEnum_ELBO, single
draws to TraceGraph_ELBO, importance weights to RenyiELBO), variance ratio times the median of paired time ratios, with a 95%
bootstrap interval over repeats and blocks of draws. Where both are exact it is the ratio of times.

Every row also shows the distance of its mean gradient from the reference (our enumeration for the ELBO, our VIMCO for the
importance-weighted bound), in standard errors of that distance: near 1 for an unbiased row. Beyond 3 a row is marked BIASED,
whatever its product.

usage: taskset -c 0 python benchmarks/language/estimators.py [--draws 20000] [--repeats 40] [--cases mixture ...]
    [--bounds elbo ...] [--record]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import RenyiELBO, TraceEnum_ELBO, TraceGraph_ELBO

from lapilli import inference

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _common import Ratio, interleaved, parsed, record_figure, with_intervals


def enumerated() -> dict[str, str]:
    """For `infer=`: TraceEnum_ELBO sums the site out. A new dict each time, for NumPyro writes into it."""
    return {"enumerate": "parallel"}


class Case(NamedTuple):
    """A model and a guide, data, the plate of the importance weights, and the strategies of our ELBO by name of the row."""

    model: Callable
    guide: Callable
    args: tuple[Any, ...]
    per: str
    strategies: dict[str, dict[str, str]]


def mixture() -> Case:
    x = jnp.asarray(np.random.default_rng(0).normal([[-1.0], [2.0]], 0.7, (2, 100)).ravel())

    def model(x: jax.Array) -> None:
        with numpyro.plate("rows", len(x)):
            k = numpyro.sample("k", dist.Bernoulli(0.4))
            numpyro.sample("x", dist.Normal(3.0 * k - 1.0, 0.7), obs=x)

    def guide(x: jax.Array) -> None:
        logits = numpyro.param("logits", jnp.zeros(len(x)))
        with numpyro.plate("rows", len(x)):
            numpyro.sample("k", dist.Bernoulli(logits=logits), infer=enumerated())

    names = ("enum", "mvd", "disarm", "reinforce_loo", "reinforce")
    return Case(model, guide, (x,), "plate", {name: {"k": name} for name in names})


LENGTH, NUM_STATES = 12, 3


def chain() -> Case:
    x = jnp.asarray(np.random.default_rng(1).normal(0.0, 1.5, LENGTH))
    transition = 0.6 * jnp.eye(NUM_STATES) + 0.4 / NUM_STATES
    means = jnp.array([-1.5, 0.0, 1.5])

    def model(x: jax.Array) -> None:
        k = None
        for t in range(LENGTH):
            probs = jnp.full(NUM_STATES, 1 / NUM_STATES) if k is None else transition[k]
            k = numpyro.sample(f"k{t}", dist.Categorical(probs))
            numpyro.sample(f"x{t}", dist.Normal(means[k], 0.8), obs=x[t])

    def guide(x: jax.Array) -> None:
        logits = numpyro.param("logits", jnp.zeros((LENGTH, NUM_STATES, NUM_STATES)))
        k = jnp.array(0)
        for t in range(LENGTH):
            k = numpyro.sample(f"k{t}", dist.Categorical(logits=logits[t][k]), infer=enumerated())

    names = ("enum", "mvd", "reinforce_loo", "reinforce")
    return Case(model, guide, (x,), "joint", {name: {"k*": name} for name in names})


def clusters() -> Case:
    x = jnp.asarray(np.random.default_rng(2).normal(0.0, 2.0, (50, 2)))
    centres = jnp.array([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, -2.0]])

    def model(x: jax.Array) -> None:
        with numpyro.plate("rows", len(x)):
            k = numpyro.sample("k", dist.Categorical(jnp.full(4, 0.25)))
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            loc = centres[k] + jnp.tanh(z)
            numpyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def guide(x: jax.Array) -> None:
        logits = numpyro.param("logits", jnp.zeros((len(x), 4)))
        locs = numpyro.param("locs", jnp.zeros((4, 2)))
        with numpyro.plate("rows", len(x)):
            k = numpyro.sample("k", dist.Categorical(logits=logits), infer=enumerated())
            numpyro.sample("z", dist.Normal(locs[k], 0.7).to_event(1))

    names = ("enum", "mvd", "reinforce_loo", "reinforce")
    return Case(model, guide, (x,), "plate", {name: {"k": name, "z": "reparam"} for name in names})


BOUNDS = ("elbo", "iwelbo")
CASES = {"mixture": mixture, "chain": chain, "clusters with codes": clusters}
NUM_STEPS = 100  # of a compiled loop
NUM_BLOCKS = 20  # of draws, for the error of a variance
LEAVE_ONE_OUT = (2, 4)  # numbers of draws: the fewest there are, and with a baseline of three


class Row(NamedTuple):
    """A gradient, and the name of the row of NumPyro's that it is compared with."""

    name: str
    grad: Callable[[Any, jax.Array], Any]
    peer: str = ""


def rows_of(case: Case, bound: str) -> list[Row]:
    """Gradients of minus the bound, with one draw of the guide unless the name tells (importance-weighted: five)."""

    def theirs(name: str, loss: Any) -> Row:
        value = lambda p, key: loss.loss(key, p, case.model, case.guide, *case.args)
        return Row(f"NumPyro {name}", jax.grad(value))

    def ours(name: str, peer: str, objective: Any) -> Row:
        grad = lambda p, key: jax.tree.map(jnp.negative, objective.grad(p, key, *case.args))
        return Row(f"lapilli {name}", grad, f"NumPyro {peer}")

    programs = (case.model, case.guide)
    if bound == "elbo":
        rows = []
        for name, strategies in case.strategies.items():
            for draws in LEAVE_ONE_OUT if name == "reinforce_loo" else (1,):
                objective = inference.elbo(*programs, strategies=strategies, num_replicates=draws)
                title = name if draws == 1 else f"{name}, {draws} draws"
                peer = "TraceEnum_ELBO" if name == "enum" else "TraceGraph_ELBO"
                rows.append(ours(title, peer, objective))
        return [
            *rows,
            theirs("TraceGraph_ELBO", TraceGraph_ELBO()),
            theirs("TraceEnum_ELBO", TraceEnum_ELBO()),
        ]
    score = case.strategies["reinforce"]
    weighted = inference.iwelbo(*programs, num_particles=5, per=case.per, strategies=score)
    multi = inference.vimco(*programs, num_particles=5, per=case.per, strategies=score)
    return [
        ours("vimco", "RenyiELBO", multi),
        ours("iwelbo, reinforce", "RenyiELBO", weighted),
        theirs("RenyiELBO", RenyiELBO(alpha=0, num_particles=5)),
    ]


def flat(tree: Any) -> jax.Array:
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])


def measure(row: Row, params: Any, num_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean gradient, and its variance, summed over coordinates, in each block of draws."""
    keys = jax.random.split(jax.random.key(0), num_draws)
    one = lambda key: flat(row.grad(params, key))
    draws = np.asarray(jax.jit(lambda ks: jax.lax.map(one, ks, batch_size=100))(keys), float)
    mean = draws.mean(0)
    squares = ((draws - mean) ** 2).sum(1) * num_draws / (num_draws - 1)
    return mean, squares.reshape(NUM_BLOCKS, -1).mean(1)


def times(rows: list[Row], params: Any, repeats: int) -> dict[str, np.ndarray]:
    """Processor seconds of one gradient step in a compiled loop, all rows interleaved."""

    def steps(row: Row) -> Callable:
        def step(p: Any, key: jax.Array) -> tuple[Any, None]:
            return jax.tree.map(lambda x, g: x - 1e-6 * g, p, row.grad(p, key)), None

        return jax.jit(lambda key: jax.lax.scan(step, params, jax.random.split(key, NUM_STEPS))[0])

    compiled = {r.name: steps(r) for r in rows}
    calls = {name: lambda i, run=run: run(jax.random.key(i)) for name, run in compiled.items()}
    found = interleaved(calls, repeats, clock=time.process_time).steady
    return {name: seconds / NUM_STEPS for name, seconds in found.items()}


def relative(
    own: tuple[np.ndarray, np.ndarray], peer: tuple[np.ndarray, np.ndarray]
) -> tuple[float, float, float]:
    """The ratio of two products of variance and time and its 95% interval, from (variance by block, paired times) each.

    The ratio of times alone where both have no variance.
    """
    generator = np.random.default_rng(0)
    size, repeats = len(own[0]), len(own[1])
    is_exact = own[0].mean() == peer[0].mean() == 0.0

    def ratio(blocks: tuple[np.ndarray, np.ndarray], pairs: np.ndarray) -> float:
        speed = float(np.median(own[1][pairs] / peer[1][pairs]))
        return speed if is_exact else speed * own[0][blocks[0]].mean() / peer[0][blocks[1]].mean()

    drawn = [
        ratio(
            (generator.integers(size, size=size), generator.integers(size, size=size)),
            generator.integers(repeats, size=repeats),
        )
        for _ in range(1000)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return ratio((np.arange(size), np.arange(size)), np.arange(repeats)), low, high


def report(
    case: str, bound: str, num_draws: int, repeats: int
) -> tuple[dict[str, Ratio], set[str]]:
    """Prints a table; returns our products relative to NumPyro's, and the names of biased rows."""
    made = CASES[case]()
    rows = rows_of(made, bound)
    key = jax.random.key(3)
    start = inference.elbo(made.model, made.guide, strategies="auto").init(key, *made.args)
    params = {n: x + 0.3 * jax.random.normal(key, jnp.shape(x)) for n, x in start.items()}
    moments = {r.name: measure(r, params, num_draws) for r in rows}
    seconds = times(rows, params, repeats)
    # The first row is exact (enumeration) or unbiased (score): its own error counts as well.
    mean, variance = moments[rows[0].name]

    def distance(row: Row) -> float:
        own, spread = moments[row.name]
        total = spread.mean() + (variance.mean() if row is not rows[0] else 0.0)
        # At least the rounding of float32, for rows without variance.
        error = max(np.sqrt(total / num_draws), 1e-5 * (1 + np.linalg.norm(mean)))
        return float(np.linalg.norm(own - mean) / error)

    biased = {r.name for r in rows if distance(r) > 3}
    found: dict[str, Ratio] = {}
    print(f"{case}, {bound}: {mean.size} coordinates")
    for r in rows:
        spread, duration = moments[r.name][1].mean(), np.median(seconds[r.name])
        line = (
            f"  {r.name:30s} variance {spread:10.4g}  {1e6 * duration:7.1f} us  product {spread * duration:9.3g}"
            f"  distance {distance(r):6.2f}{'  BIASED' if r.name in biased else ''}"
        )
        if r.peer in biased:
            line += f"  ({r.peer} is biased)"
        elif r.peer:
            both = ((moments[n][1], seconds[n]) for n in (r.name, r.peer))
            found[f"{case}, {r.name.removeprefix('lapilli ')}"] = ratio = Ratio(*relative(*both))
            line += f"  x{ratio:.2f} of {r.peer}"
        print(line, flush=True)
    return found, {f"{case}, {bound}, {name}" for name in biased}


def record(found: dict[str, Ratio], biased: set[str], num_draws: int) -> None:
    """Products relative to NumPyro's, for the page of figures."""
    record_figure(
        "gradients/estimators",
        what="gradients with discrete sites, variance x processor time of an ELBO step relative to NumPyro's (enum beside "
        "TraceEnum, others beside TraceGraph; times alone where both are exact); spread: half of the 95% interval",
        note="biased: " + ("; ".join(sorted(biased)) or "none"),
        seeds=f"{num_draws:,} draws",
        digits=2,
        measures=["ppl", "inference/objectives"],
        **with_intervals(found),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--bounds", nargs="+", choices=BOUNDS, default=list(BOUNDS))
    args = parsed(parser)
    versions = f"jax {jax.__version__}, numpyro {numpyro.__version__}"
    print(f"{versions}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, float32")
    found, biased = {}, set()
    for bound in args.bounds:
        for case in args.cases:
            ratios, wrong = report(case, bound, args.draws, args.repeats)
            found |= ratios if bound == "elbo" else {}
            biased |= wrong
    if args.record:
        record(found, biased, args.draws)


if __name__ == "__main__":
    main()
