"""Question: what does tempered SMC cost beside BlackJAX's, on one target with the same settings?

Logistic regression on 10 covariates and an intercept (made-up rows, seed 0). K particles go from the prior through the same
temperatures, with five moves of Hamiltonian Monte Carlo of equal numbers of leapfrog steps, step sizes and metrics at each
temperature (those of a pilot run of ours), and systematic resampling at every temperature. Both are compiled and run in one
process, interleaved; the ratio is the median of paired ratios with a 95% bootstrap interval. Both estimate one evidence, which is
compared by a z score over the repeats.

usage: python benchmarks/particles/tempering.py [--particles 1000 4000] [--rows 500] [--repeats 20] [--record]
    (needs blackjax: lapilli[mcmc])
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lapilli  # noqa: F401  (first: it sets a flag that JAX reads when it starts)

import jax  # isort: skip
import blackjax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from blackjax.smc import resampling, tempered

from lapilli import inference, ppl

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _common import interleaved, paired, parsed, record_figure, with_intervals

LEAPFROG, MOVES, DIMENSION = 5, 5, 11


@ppl.model
def logistic(x: jax.Array, y: jax.Array) -> None:
    w = ppl.sample("w", dist.Normal(0.0, 2.0).expand([x.shape[1]]).to_event(1))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def data(rows: int) -> tuple[jax.Array, jax.Array]:
    """Made-up rows, seed 0."""
    rng = np.random.default_rng(0)
    x = np.concatenate([np.ones((rows, 1)), rng.normal(size=(rows, DIMENSION - 1))], 1)
    logits = x @ rng.normal(size=DIMENSION)
    y = rng.uniform(size=rows) < 1 / (1 + np.exp(-logits))
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


def by_lapilli(pilot: Any, size: int, x: jax.Array, y: jax.Array) -> Callable[[jax.Array], Any]:
    def run(key: jax.Array) -> jax.Array:
        return inference.tempered_smc(
            logistic, key, x, y, num_particles=size, num_moves=MOVES, frozen=pilot,
            kernel=inference.particles.moves.HMC(LEAPFROG),
        ).log_evidence  # fmt: skip

    return run


def by_blackjax(pilot: Any, size: int, x: jax.Array, y: jax.Array) -> Callable[[jax.Array], Any]:
    def log_prior(w: jax.Array) -> jax.Array:
        return dist.Normal(0.0, 2.0).log_prob(w).sum()

    def log_likelihood(w: jax.Array) -> jax.Array:
        return dist.Bernoulli(logits=x @ w).log_prob(y).sum()

    kernel = tempered.build_kernel(
        log_prior, log_likelihood, blackjax.hmc.build_kernel(), blackjax.hmc.init, resampling.systematic
    )  # fmt: skip
    num = int(pilot.num_steps)
    path = (
        pilot.temperatures[:num],
        pilot.tuning["scale"][:num],
        pilot.tuning["spread"][:num] ** 2,
    )

    def run(key: jax.Array) -> jax.Array:
        init_key, key = jax.random.split(key)
        start = tempered.init(2.0 * jax.random.normal(init_key, (size, DIMENSION)))

        def step(state: Any, inputs: Any) -> Any:
            key, temperature, scale, metric = inputs
            shared = {
                "step_size": scale[None],
                "inverse_mass_matrix": metric[None],
                "num_integration_steps": jnp.full(1, LEAPFROG),
            }
            state, info = kernel(key, state, MOVES, temperature, shared)
            return state, info.log_likelihood_increment

        keys = jax.random.split(key, num)
        return jax.lax.scan(step, start, (keys, *path))[1].sum()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--particles", type=int, nargs="+", default=[1000, 4000])
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=20)
    args = parsed(parser)
    print(
        f"jax {jax.__version__}, blackjax {blackjax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, float32"
    )
    x, y = data(args.rows)
    found = {}
    for size in args.particles:
        pilot = inference.tempered_smc(
            logistic,
            jax.random.key(99),
            x,
            y,
            num_particles=1000,
            num_moves=MOVES,
            kernel=inference.particles.moves.HMC(LEAPFROG),
        )
        makers = {"lapilli": by_lapilli, "blackjax": by_blackjax}
        runs = {name: jax.jit(make(pilot, size, x, y)) for name, make in makers.items()}
        calls = {
            name: lambda i, name=name, run=run: run(
                jax.random.fold_in(jax.random.key(i), len(name))
            )
            for name, run in runs.items()
        }
        values: dict[str, list[float]] = {name: [] for name in runs}
        see = lambda name, log_z, values=values: values[name].append(float(log_z))
        times = interleaved(calls, args.repeats, see=see)
        speed = found[f"{size:,} particles, {args.rows} rows"] = paired(
            times.steady["blackjax"], times.steady["lapilli"]
        )
        error = np.hypot(*(np.std(v, ddof=1) / len(v) ** 0.5 for v in values.values()))
        z = (np.mean(values["lapilli"]) - np.mean(values["blackjax"])) / error
        print(
            f"K = {size}, {args.rows} rows, {int(pilot.num_steps)} temperatures, {MOVES} moves of {LEAPFROG} leapfrog steps"
        )
        for name in runs:
            print(
                f"  {name:9s} {1e3 * np.median(times.steady[name]):8.1f} ms, first call {times.first[name]:.2f} s, "
                f"log Z {np.mean(values[name]):.3f} (sd of a run {np.std(values[name], ddof=1):.3f})"
            )
        print(
            f"  speed x{speed:.2f} of blackjax; z of the evidences {z:.1f}",
            flush=True,
        )
    if args.record:
        record_figure(
            "particles/tempering",
            what="tempered particles, same temperatures and moves, speed relative to BlackJAX's; spread: half of the 95% "
            "interval of the median",
            digits=2,
            measures=["inference/particles"],
            packages=["blackjax"],
            **with_intervals(found),
        )


if __name__ == "__main__":
    main()
