"""Question: what do a step of SVI and its first call cost beside NumPyro's own, on NumPyro's own models?

Eight models of NumPyro's examples and tutorials, data of a small size, each under `AutoNormal`: one jitted step (value, gradient,
Adam) by `SVI` with `Trace_ELBO`, and by our `elbo` with optax's Adam. A step is the median of paired ratios of processor time in
one process (pin it to one core). The first call, from model and guide to the first step, with set-up, checks and compilation, is
measured in fresh processes without a compilation cache. Aims: a step 1.05, a first call 1.5.

usage: taskset -c 0 python benchmarks/language/numpyro_models.py [--repeats 100] [--first-calls 3] [--cases NAME ...] [--record]
"""

from __future__ import annotations

import argparse
import os
import statistics
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
import optax
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

from lapilli import inference, ppl

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _common import (
    Ratio,
    interleaved,
    output_of,
    paired,
    parsed,
    record_figure,
    with_intervals,
)

RNG = np.random.default_rng(0)
RATE = 0.01


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def eight_schools() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model(sigma: Any, y: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfCauchy(5))
        with numpyro.plate("J", 8):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
            numpyro.sample("obs", dist.Normal(theta, sigma), obs=y)

    return model, (sigma, y)


def baseball() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    at_bats = jnp.full(18, 45)
    hits = jnp.asarray(RNG.binomial(45, 0.27, 18))

    def model(at_bats: Any, hits: Any) -> None:
        m = numpyro.sample("m", dist.Uniform(0, 1))
        kappa = numpyro.sample("kappa", dist.Pareto(1, 1.5))
        with numpyro.plate("num_players", 18):
            phi = numpyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
            numpyro.sample("obs", dist.Binomial(at_bats, probs=phi), obs=hits)

    return model, (at_bats, hits)


def horseshoe() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    x = normal(200, 20)
    y = x[:, 0] - x[:, 1] + 0.3 * normal(200)

    def model(x: Any, y: Any) -> None:
        lambdas = numpyro.sample("lambdas", dist.HalfCauchy(jnp.ones(20)))
        tau = numpyro.sample("tau", dist.HalfCauchy(jnp.ones(1)))
        betas = numpyro.sample("unscaled", dist.Normal(0.0, jnp.ones(20))) * tau * lambdas
        prec = numpyro.sample("prec_obs", dist.Gamma(3.0, 1.0))
        numpyro.sample("y", dist.Normal(x @ betas, 1.0 / jnp.sqrt(prec)).to_event(1), obs=y)

    return model, (x, y)


def hierarchical() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Bayesian hierarchical linear regression (the tutorial on lung function)."""
    patient, weeks = jnp.asarray(RNG.integers(0, 50, 400)), normal(400)
    fvc = normal(400)

    def model(patient: Any, weeks: Any, fvc: Any) -> None:
        mu_a = numpyro.sample("mu_a", dist.Normal(0.0, 500.0))
        sigma_a = numpyro.sample("sigma_a", dist.HalfNormal(100.0))
        mu_b = numpyro.sample("mu_b", dist.Normal(0.0, 3.0))
        sigma_b = numpyro.sample("sigma_b", dist.HalfNormal(3.0))
        with numpyro.plate("patients", 50):
            a = numpyro.sample("a", dist.Normal(mu_a, sigma_a))
            b = numpyro.sample("b", dist.Normal(mu_b, sigma_b))
        sigma = numpyro.sample("sigma", dist.HalfNormal(100.0))
        with numpyro.plate("data", 400):
            numpyro.sample("obs", dist.Normal(a[patient] + b[patient] * weeks, sigma), obs=fvc)

    return model, (patient, weeks, fvc)


def volatility() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    returns = 0.02 * normal(300)

    def model(returns: Any) -> None:
        step = numpyro.sample("sigma", dist.Exponential(50.0))
        s = numpyro.sample("s", dist.GaussianRandomWalk(scale=step, num_steps=300))
        nu = numpyro.sample("nu", dist.Exponential(0.1))
        law = dist.StudentT(df=nu, loc=0.0, scale=jnp.exp(s)).to_event(1)
        numpyro.sample("r", law, obs=returns)

    return model, (returns,)


def ar2() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A sample statement for each of 40 steps, in a Python loop."""
    y = normal(40)

    def model(y: Any) -> None:
        a1 = numpyro.sample("alpha_1", dist.Normal(0, 1))
        a2 = numpyro.sample("alpha_2", dist.Normal(0, 1))
        const = numpyro.sample("const", dist.Normal(0, 1))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1))
        before, last = y[0], y[1]
        for t in range(2, len(y)):
            law = dist.Normal(const + a1 * last + a2 * before, sigma)
            before, last = last, numpyro.sample(f"y_{t}", law, obs=y[t])

    return model, (y,)


def network() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A Bayesian network of two hidden layers (examples/bnn.py)."""
    x, y = normal(100, 3), normal(100, 1)

    def model(x: Any, y: Any) -> None:
        weights = lambda name, *shape: numpyro.sample(
            name, dist.Normal(jnp.zeros(shape), jnp.ones(shape)).to_event(2)
        )
        z = jnp.tanh(jnp.tanh(x @ weights("w1", 3, 5)) @ weights("w2", 5, 5)) @ weights("w3", 5, 1)
        prec = numpyro.sample("prec_obs", dist.Gamma(3.0, 1.0))
        with numpyro.plate("data", 100):
            law = dist.Normal(z, 1.0 / jnp.sqrt(prec)).to_event(1)
            numpyro.sample("Y", law, obs=y)

    return model, (x, y)


def process() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A Gaussian process (examples/gp.py)."""
    x = jnp.linspace(-1.0, 1.0, 30)
    y = jnp.sin(3.0 * x) + 0.1 * normal(30)

    def model(x: Any, y: Any) -> None:
        var = numpyro.sample("kernel_var", dist.LogNormal(0.0, 10.0))
        noise = numpyro.sample("kernel_noise", dist.LogNormal(0.0, 10.0))
        length = numpyro.sample("kernel_length", dist.LogNormal(0.0, 10.0))
        kernel = var * jnp.exp(-0.5 * ((x[:, None] - x) / length) ** 2)
        kernel = kernel + (noise + 1e-3) * jnp.eye(30)
        law = dist.MultivariateNormal(jnp.zeros(30), covariance_matrix=kernel)
        numpyro.sample("Y", law, obs=y)

    return model, (x, y)


CASES = {
    "eight schools": eight_schools,
    "baseball": baseball,
    "horseshoe": horseshoe,
    "hierarchical regression": hierarchical,
    "stochastic volatility": volatility,
    "AR(2), Python loop": ar2,
    "Bayesian network": network,
    "Gaussian process": process,
}
VERSIONS = ("NumPyro", "lapilli")
Step = Callable[[Any], tuple[Any, Any]]


def started(case: str, version: str) -> tuple[Step, Any]:
    """A jitted step, state -> (state, loss), and the state before the first."""
    model, args = CASES[case]()
    guide, key = AutoNormal(model), jax.random.key(0)
    if version == "NumPyro":
        svi = SVI(model, guide, numpyro.optim.Adam(RATE), Trace_ELBO())
        update = jax.jit(lambda state, args: svi.update(state, *args))
        return lambda state: update(state, args), svi.init(key, *args)
    objective, optimizer = inference.elbo(model, guide), optax.adam(RATE)

    @jax.jit
    def step(carry: Any, args: Any) -> Any:
        params, state, key = carry
        key, own = jax.random.split(key)
        value, grads = objective.value_and_grad(params, own, *args)
        # Adam descends, and the bound is to grow.
        change, state = optimizer.update(jax.tree.map(jnp.negative, grads), state, params)
        return (optax.apply_updates(params, change), state, key), -value

    params = objective.init(key, *args)
    return lambda carry: step(carry, args), (params, optimizer.init(params), key)


def steady(case: str, repeats: int) -> dict[str, np.ndarray]:
    """Seconds of processor time of each step."""
    runs, states = {}, {}
    for version in VERSIONS:
        runs[version], states[version] = started(case, version)

    def take(version: str) -> Any:
        states[version], loss = runs[version](states[version])
        return loss

    calls = {v: lambda i, v=v: take(v) for v in VERSIONS}
    return interleaved(calls, repeats, clock=time.process_time).steady


def check_agreement(case: str, num_draws: int = 2000) -> None:
    """Losses at equal parameters have equal medians over draws, within six standard errors; their tails are heavy."""
    model, args = CASES[case]()
    guide, keys = AutoNormal(model), jax.random.split(jax.random.key(1), num_draws)
    objective = inference.elbo(model, guide)
    params = objective.init(jax.random.key(0), *args)
    theirs = lambda key: Trace_ELBO().loss(key, ppl.constrain(params), model, guide, *args)
    ours = lambda key: -objective.value(params, key, *args)
    found = [np.asarray(jax.jit(jax.vmap(loss))(keys)) for loss in (theirs, ours)]
    spread = np.sqrt(sum(np.median(np.abs(x - np.median(x))) ** 2 for x in found))
    gap = abs(np.median(found[0]) - np.median(found[1]))
    # Of a Normal sample: 1.2533 standard deviations / sqrt(n), and a deviation is 1.4826 median absolute ones.
    assert gap < 6 * 1.2533 * 1.4826 * spread / np.sqrt(num_draws), (case, gap, spread)


def first_call(case: str, version: str) -> float:
    """Seconds of processor time from model and guide to the first step, in this process, after JAX has started."""
    jax.block_until_ready(jax.random.split(jax.random.key(0)))
    start = time.process_time()
    step, state = started(case, version)
    jax.block_until_ready(step(state))
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--first-calls", type=int, default=3)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--first", nargs=2, help=argparse.SUPPRESS)
    options = parsed(parser)
    if options.first:
        print(first_call(*options.first))
        return
    print(
        f"jax {jax.__version__}, numpyro {numpyro.__version__}, {os.cpu_count()} cores, CPU, float32"
    )
    print(
        f"{'':24} step, ms: NumPyro / lapilli / ratio       first call, s: NumPyro / lapilli / ratio"
    )
    steps: dict[str, Ratio] = {}
    first_calls: dict[str, float] = {}
    for case in options.cases:
        check_agreement(case)
        times = steady(case, options.repeats)
        ratio = paired(times["lapilli"], times["NumPyro"])
        ms = [1e3 * float(np.median(times[v])) for v in VERSIONS]
        line = f"{case:24} {ms[0]:7.3f} {ms[1]:7.3f}  {ratio:.2f}"
        steps[case] = ratio
        if options.first_calls:
            firsts = {
                v: [
                    float(output_of(__file__, "--first", case, v))
                    for _ in range(options.first_calls)
                ]
                for v in VERSIONS
            }
            first = [statistics.median(firsts[v]) for v in VERSIONS]
            first_calls[case] = first[1] / first[0]
            line += f"       {first[0]:6.2f} {first[1]:6.2f}  {first_calls[case]:.2f}"
        print(line, flush=True)
    middle = statistics.median(ratio.median for ratio in steps.values())
    print(f"median ratio: step {middle:.2f}")
    if first_calls:
        print(f"median ratio: first call {statistics.median(first_calls.values()):.2f}")
    if options.record:
        what = "of SVI under AutoNormal on NumPyro's own models, processor time beside NumPyro's"
        measures = ["inference/objectives", "inference/fitting", "ppl/strategies", "ppl/checks"]
        record_figure(
            "gradients/numpyro_models_step", what=f"a jitted step {what}; halves of 95% intervals",
            measures=measures, note="aim: 1.05", **with_intervals(steps),
        )  # fmt: skip
        if first_calls:
            record_figure(
                "gradients/numpyro_models_first_call", what=f"the first call {what}",
                value=first_calls, measures=measures, note="aim: 1.5",
            )  # fmt: skip


if __name__ == "__main__":
    main()
