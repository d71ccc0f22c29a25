"""Question: variance times time of gradients with discrete sites, beside NumPyro's objectives on the same programs.

Three plain NumPyro models, run by both libraries as they stand: a mixture (a Bernoulli label per row), a chain (three states,
twelve steps, the guide a chain as well), and clusters with codes (a class and a continuous code per row, the code's guide
depending on the class). For the ELBO: NumPyro's TraceGraph_ELBO and TraceEnum_ELBO; for the importance-weighted bound of five
draws: RenyiELBO(alpha=0). The product of a gradient's variance (summed over coordinates) and the time of one gradient is
what a step of optimisation pays: half the product, half the time to the same accuracy.

Every row also shows the distance of its mean gradient from the reference (our enumeration for the ELBO, our VIMCO for the
importance-weighted bound), in standard errors of that distance: near 1 for an unbiased row. Beyond 3 a row is marked BIASED,
whatever its product.

usage: python benchmarks/estimators.py [--draws 20000] [--repeats 40] [--cases mixture ...] [--bounds elbo ...]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import RenyiELBO, TraceEnum_ELBO, TraceGraph_ELBO

from lapilli import inference


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


NUM_STEPS, NUM_STATES = 12, 3


def chain() -> Case:
    x = jnp.asarray(np.random.default_rng(1).normal(0.0, 1.5, NUM_STEPS))
    transition = 0.6 * jnp.eye(NUM_STATES) + 0.4 / NUM_STATES
    means = jnp.array([-1.5, 0.0, 1.5])

    def model(x: jax.Array) -> None:
        k = None
        for t in range(NUM_STEPS):
            probs = jnp.full(NUM_STATES, 1 / NUM_STATES) if k is None else transition[k]
            k = numpyro.sample(f"k{t}", dist.Categorical(probs))
            numpyro.sample(f"x{t}", dist.Normal(means[k], 0.8), obs=x[t])

    def guide(x: jax.Array) -> None:
        logits = numpyro.param("logits", jnp.zeros((NUM_STEPS, NUM_STATES, NUM_STATES)))
        k = jnp.array(0)
        for t in range(NUM_STEPS):
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


class Row(NamedTuple):
    name: str
    grad: Callable[[Any, jax.Array], Any]


def rows_of(case: Case, bound: str) -> list[Row]:
    """Gradients of minus the bound, all with one draw of the guide (leave-one-out: two; importance-weighted: five)."""

    def theirs(loss: Any) -> Callable:
        return lambda p, key: jax.grad(
            lambda p: loss.loss(key, p, case.model, case.guide, *case.args)
        )(p)

    def ours(objective: Any) -> Callable:
        return lambda p, key: jax.tree.map(jnp.negative, objective.grad(p, key, *case.args))

    if bound == "elbo":
        rows = [
            Row(
                f"lapilli {name}",
                ours(
                    inference.elbo(
                        case.model,
                        case.guide,
                        strategies=strategies,
                        num_particles=2 if name == "reinforce_loo" else 1,
                    )
                ),
            )
            for name, strategies in case.strategies.items()
        ]
        return [
            *rows,
            Row("NumPyro TraceGraph_ELBO", theirs(TraceGraph_ELBO())),
            Row("NumPyro TraceEnum_ELBO", theirs(TraceEnum_ELBO())),
        ]
    score = case.strategies["reinforce"]
    programs = (case.model, case.guide)
    weighted = inference.iwelbo(*programs, num_particles=5, per=case.per, strategies=score)
    multi = inference.vimco(*programs, num_particles=5, per=case.per, strategies=score)
    return [
        Row("lapilli vimco", ours(multi)),
        Row("lapilli iwelbo, reinforce", ours(weighted)),
        Row("NumPyro RenyiELBO", theirs(RenyiELBO(alpha=0, num_particles=5))),
    ]


def flat(tree: Any) -> jax.Array:
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])


def measure(row: Row, params: Any, num_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean gradient and variance of each coordinate."""
    keys = jax.random.split(jax.random.key(0), num_draws)
    one = lambda key: flat(row.grad(params, key))
    draws = np.asarray(jax.jit(lambda ks: jax.lax.map(one, ks, batch_size=100))(keys), float)
    return draws.mean(0), draws.var(0, ddof=1)


def times(rows: list[Row], params: Any, repeats: int) -> dict[str, np.ndarray]:
    """Seconds of one compiled gradient, all rows interleaved."""
    compiled = {r.name: jax.jit(r.grad).lower(params, jax.random.key(0)).compile() for r in rows}
    found: dict[str, list[float]] = {r.name: [] for r in rows}
    inner = 20
    for i in range(repeats + 2):
        for name, fn in compiled.items():
            start = time.perf_counter()
            for j in range(inner):
                out = fn(params, jax.random.key(i * inner + j))
            jax.block_until_ready(out)
            if i >= 2:
                found[name].append((time.perf_counter() - start) / inner)
    return {name: np.array(t) for name, t in found.items()}


def report(case: str, bound: str, num_draws: int, repeats: int) -> None:
    made = CASES[case]()
    rows = rows_of(made, bound)
    key = jax.random.key(3)
    start = inference.elbo(made.model, made.guide, strategies="auto").init(key, *made.args)
    params = {n: x + 0.3 * jax.random.normal(key, jnp.shape(x)) for n, x in start.items()}
    moments = {r.name: measure(r, params, num_draws) for r in rows}
    seconds = times(rows, params, repeats)
    # The first row is exact (enumeration) or unbiased (score): its own error counts as well.
    mean, variance = moments[rows[0].name]
    print(f"{case}, {bound}: {mean.size} coordinates")
    for r in rows:
        own, spread = moments[r.name]
        total = spread.sum() + (variance.sum() if r is not rows[0] else 0)
        # At least the rounding of float32, for rows without variance.
        error = max(np.sqrt(total / num_draws), 1e-5 * (1 + np.linalg.norm(mean)))
        apart = np.linalg.norm(own - mean) / error
        duration = np.median(seconds[r.name])
        product = spread.sum() * duration
        print(
            f"  {r.name:26s} variance {spread.sum():11.4g}  {1e6 * duration:8.1f} us  product {product:10.3g}"
            f"  distance {apart:6.2f}{'  BIASED' if apart > 3 else ''}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--bounds", nargs="+", choices=BOUNDS, default=list(BOUNDS))
    args = parser.parse_args()
    versions = f"jax {jax.__version__}, numpyro {numpyro.__version__}"
    print(f"{versions}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, float32")
    for bound in args.bounds:
        for case in args.cases:
            report(case, bound, args.draws, args.repeats)


if __name__ == "__main__":
    main()
