"""Question: up to which condition number is each exact part right in single precision, and what does it say beyond?

Random instances of a condition number: the ratio of the widest prior scale to the narrowest posterior one, in units of the data's
own. Against double precision of the same numbers: how far means are off in posterior standard deviations, scales as a share, log
evidence in nats, beyond the last digits of what is returned. The worst of what is given as numbers; what is NaN is counted.

usage: python benchmarks/language/conditions.py [--seeds 6] [--only NAME]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from lapilli import inference, ppl

Array = Any
Found = dict[
    str, Array
]  # "mean" and "scale" of what is integrated out, "log_z"; each may be left out
CONDITIONS = (1e2, 1e4, 1e6, 1e8)
NUM, SIZE = 60, 8


class Part(NamedTuple):
    """An exact part.

    Attributes:
        run: function of arrays, of either precision.
        instance: (random generator, condition number) -> these arrays.
    """

    run: Callable[..., Found]
    instance: Callable[[np.random.Generator, float], Sequence[Any]]


class Error(NamedTuple):
    """How far off an instance is, each NaN where nothing of it is given; and how much of it is."""

    mean: float
    scale: float
    log_z: float
    share_given: float


def moments(program: Any, sites: Sequence[str], *args: Array, **options: Any) -> Found:
    """Log evidence, posterior means and scales of sites that are integrated out."""
    log_z = ppl.eliminate(program, sites, **options).log_density({}, *args)
    laws = ppl.eliminate(program, sites).posterior_marginals({}, *args)
    flat = lambda what: jnp.concatenate([jnp.ravel(getattr(laws[n], what)) for n in sites])
    return {"mean": flat("loc"), "scale": flat("scale"), "log_z": log_z}


# Regressions: whitened designs with singular values from the condition number down to 1, columns in units of their own.


def design(rng: np.random.Generator, condition: float) -> Sequence[Any]:
    """Rows, observations, prior widths and noise."""
    u, v = (np.linalg.qr(rng.normal(size=(n, SIZE)))[0] for n in (NUM, SIZE))
    units, noise = 10.0 ** rng.uniform(-2, 2, SIZE), 10.0 ** rng.uniform(-2, 2)
    whitened = (u * np.geomspace(condition, 1, SIZE)) @ v.T
    width = condition * noise / units
    x = whitened * noise / width
    y = x @ (width * rng.normal(size=SIZE) * min(1, 1e3 / condition)) + noise * rng.normal(size=NUM)
    return *(np.asarray(a, np.float32) for a in (x, y, width)), np.float32(noise)


def regression(x: Array, y: Array, width: Array, noise: Array) -> None:
    beta = ppl.sample("beta", dist.Normal(jnp.zeros_like(width), width).to_event(1))
    with ppl.plate("rows", len(y)):
        ppl.sample("y", dist.Normal(x @ beta, noise), obs=y)


def by_rows(size: int) -> Callable[..., None]:
    """The same in blocks of rows, one after the other."""

    def program(x: Array, y: Array, width: Array, noise: Array) -> None:
        beta = ppl.sample("beta", dist.Normal(jnp.zeros_like(width), width).to_event(1))

        def step(beta: Array, row: Any) -> tuple[Array, None]:
            law = dist.Normal(row[0] @ beta, noise)
            ppl.sample("y", law.to_event(1), obs=row[1])
            return beta, None

        ppl.scan(step, beta, (x.reshape(-1, size, SIZE), y.reshape(-1, size)))

    return program


# Groups under a vague mean, and series from a vague start.


def groups(rng: np.random.Generator, condition: float) -> Sequence[Any]:
    """Observations of eight groups, the width of their mean, the spread of the groups."""
    spread = 10.0 ** rng.uniform(-1, 1)
    y = 30 * rng.normal() + spread * rng.normal(size=8) + rng.normal(size=(10, 8))
    return y.astype(np.float32), np.float32(condition), np.float32(spread)


def effects(y: Array, width: Array, spread: Array) -> None:
    mean = ppl.sample("mean", dist.Normal(jnp.zeros_like(width), width))
    with ppl.plate("groups", y.shape[1]):
        effect = ppl.sample("effect", dist.Normal(mean, spread))
        with ppl.plate("rows", len(y)):
            ppl.sample("y", dist.Normal(effect, jnp.ones_like(width)), obs=y)


def effects_by_rows(y: Array, width: Array, spread: Array) -> None:
    mean = ppl.sample("mean", dist.Normal(jnp.zeros_like(width), width))
    with ppl.plate("groups", y.shape[1]):
        effect = ppl.sample("effect", dist.Normal(mean, spread))

        def step(carry: Array, y: Array) -> tuple[Array, None]:
            ppl.sample("y", dist.Normal(effect, jnp.ones_like(width)), obs=y)
            return carry, None

        ppl.scan(step, jnp.zeros_like(width), y)


def steps(rng: np.random.Generator, condition: float) -> Sequence[Any]:
    """A system's matrices, its noise, observations of it, the width of its start."""
    move = np.linalg.qr(rng.normal(size=(3, 3)))[0] * 0.98
    look, own, noise = (
        rng.normal(size=(2, 3)),
        10.0 ** rng.uniform(-2, 0),
        10.0 ** rng.uniform(-2, 1),
    )
    z, y = 30 * noise * rng.normal(size=3), []
    for _ in range(50):
        z = move @ z + own * rng.normal(size=3)
        y.append(look @ z + noise * rng.normal(size=2))
    arrays = move, look, np.array(y), np.array([own, noise, condition * noise])
    return [a.astype(np.float32) for a in arrays]


def system(move: Array, look: Array, y: Array, scales: Array) -> None:
    first = ppl.sample("first", dist.Normal(jnp.zeros(3, y.dtype), scales[2]).to_event(1))

    def step(z: Array, y: Array) -> tuple[Array, None]:
        z = ppl.sample("z", dist.Normal(move @ z, scales[0]).to_event(1))
        ppl.sample("y", dist.Normal(look @ z, scales[1]).to_event(1), obs=y)
        return z, None

    ppl.scan(step, first, y)


def trend(move: Array, look: Array, y: Array, scales: Array) -> None:
    start = ppl.sample("start", dist.Normal(jnp.zeros(2, y.dtype), scales[2]).to_event(1))

    def step(x: Array, y: Array) -> tuple[Array, None]:
        level = ppl.sample("level", dist.Normal(x[0] + x[1], scales[0]))
        slope = ppl.sample("slope", dist.Normal(x[1], 0.1 * scales[0]))
        ppl.sample("y", dist.Normal(level, scales[1]), obs=y)
        return jnp.stack([level, slope]), None

    ppl.scan(step, start, y[:, 0])


# Conjugate laws: the condition number is that of the root of the data's covariance, or of their mean in standard deviations.


def vectors(rng: np.random.Generator, condition: float) -> Sequence[Any]:
    """Rows of a normal law of four dimensions, and a row of its posterior's prediction."""
    turns = [np.linalg.qr(rng.normal(size=(4, 4)))[0] for _ in range(2)]
    root = turns[0] * np.geomspace(condition**0.5, condition**-0.5, 4) @ turns[1]
    x = rng.normal(size=(NUM + 1, 4)) @ root + rng.normal(size=4)
    return x[:-1].astype(np.float32), x[-1].astype(np.float32)


def wishart(x: Array, new: Array) -> Found:
    d, one = x.shape[1], jnp.ones((), x.dtype)
    prior = ppl.distributions.NormalInverseWishart(
        jnp.zeros(d, x.dtype), 1e-3 * one, 1e-3 * jnp.eye(d, dtype=x.dtype), (d + 2) * one
    )
    after = prior.posterior(x)
    scale = jnp.sqrt((after.scale_tril**2).sum(-1) / after.df)
    return {"mean": after.loc, "scale": scale, "log_z": after.predictive().log_prob(new)}


def numbers(rng: np.random.Generator, condition: float) -> Sequence[Any]:
    """Rows far from zero, in standard deviations."""
    unit = 10.0 ** rng.uniform(-3, 3, 5)
    x = unit * (min(condition, 1e5) * rng.choice([-1, 1], 5) + rng.normal(size=(NUM, 5)))
    return x.astype(np.float32), (unit * condition).astype(np.float32)


def gamma(x: Array, width: Array) -> Found:
    """Under priors as wide as the data are far away."""
    d, small = x.shape[1], 1e-3 * jnp.ones((), x.dtype)
    unit = jnp.std(x, 0)
    law = ppl.distributions.NormalInverseGamma(
        jnp.zeros(d, x.dtype), (unit / width) ** 2, small, small * unit**2
    )
    after = law.posterior(x)
    scale = jnp.sqrt(after.rate / after.concentration)
    return {"mean": after.loc, "scale": scale, "log_z": after.predictive().log_prob(x[0]).sum()}


def alike(rng: np.random.Generator, condition: float) -> Sequence[Any]:
    """The same in one unit."""
    unit = 10.0 ** rng.uniform(-3, 3)
    x = unit * (min(condition, 1e5) * rng.choice([-1, 1], 5) + rng.normal(size=(NUM, 5)))
    return x.astype(np.float32), np.float32(unit * condition)


def grouped(x: Array, width: Array) -> Found:
    """Five coordinates that share a variance."""
    small, square = 1e-3 * jnp.ones((1,), x.dtype), x.var() * jnp.ones((1,), x.dtype)
    law = ppl.distributions.GroupedNormalInverseGamma(
        jnp.zeros(5, x.dtype), square / width**2, small, small * square, group=[0] * 5
    )
    after = law.posterior(x)
    scale = jnp.broadcast_to(jnp.sqrt(after.rate / after.concentration), (5,))
    return {"mean": after.loc, "scale": scale, "log_z": after.predictive().log_prob(x[0])}


# Laplace's law, whose mean and scale are those of the posterior here; truncation in turn; sums over steps.


def laplace(curvature: str) -> Callable[..., Found]:
    def model(x: Array, y: Array, width: Array, noise: Array) -> None:
        beta = ppl.sample("beta", dist.Normal(jnp.zeros_like(width), width).to_event(1))
        with ppl.plate("rows", len(y)):
            ppl.sample("y", dist.Normal(x @ beta, noise), obs=y)

    guide = inference.local_laplace(model, site="beta", curvature=curvature)  # pyright: ignore[reportArgumentType]
    bound = inference.elbo(model, guide)

    def run(*args: Array) -> Found:
        seen = numpyro.handlers.seed(guide, jax.random.key(0))
        law = numpyro.handlers.trace(seen).get_trace(*args)["beta"]["fn"]
        params = bound.init(jax.random.key(0), *args)
        log_z = bound.value(params, jax.random.key(0), *args)
        return {"mean": law.mean, "scale": jnp.sqrt(law.variance), "log_z": log_z}

    return run


def chain(rng: np.random.Generator, condition: float) -> Sequence[Any]:
    """Transitions of four states that are as improbable as 1 / condition, and a thousand observations."""
    logits = -np.log(condition) * rng.uniform(0, 1, (4, 4)) * (1 - np.eye(4))
    return logits.astype(np.float32), rng.normal(size=1000).astype(np.float32)


def hidden(logits: Array, y: Array) -> Found:
    def program(y: Array) -> None:
        def step(s: Array, y: Array) -> tuple[Array, None]:
            s = ppl.sample("s", dist.Categorical(logits=logits[s]))
            ppl.sample("y", dist.Normal(s - 1.5 * jnp.ones_like(y), jnp.ones_like(y)), obs=y)
            return s, None

        ppl.scan(step, 0, y)

    return {"log_z": ppl.eliminate(program, "s").log_density({}, y)}


def sums(rng: np.random.Generator, condition: float) -> Sequence[Any]:
    """A thousand observations, as many scales off as the root of the condition number."""
    return [condition**0.5 / 30 + rng.normal(size=1000).astype(np.float32)]


def particles(y: Array) -> Found:
    """Evidence of particles that are all alike, so that it is known."""

    def program(y: Array) -> None:
        def step(carry: Array, y: Array) -> tuple[Array, None]:
            ppl.sample("x", dist.Normal(jnp.zeros_like(y), jnp.ones_like(y)))
            ppl.sample("y", dist.Normal(jnp.zeros_like(y), jnp.ones_like(y)), obs=y)
            return carry, None

        ppl.scan(step, jnp.zeros_like(y[0]), y)

    run = inference.smc(program, jax.random.key(0), y, num_particles=16)
    return {"log_z": run.log_evidence}


# Linear constraints: the condition number is that of the size of two coordinates to the room between them.


def rooms(rng: np.random.Generator, condition: float) -> Sequence[Any]:
    """A room, and two numbers that are no further apart."""
    size, sign = 10.0 ** rng.uniform(-2, 2), rng.choice([-1, 1])
    near = sign * size * rng.uniform(1, 2)
    room = np.float32(size / condition)
    x = np.array([room, near, near + room * rng.uniform(-0.9, 0.9)], np.float32)
    x[2] = np.clip(x[2], x[1] - x[0], x[1] + x[0])
    return x, np.float32(size)


def inside() -> Any:
    statements = ["room >= 0", "0.1 * a - 0.1 * room <= 0.1 * b", "b <= a + room"]
    return ppl.distributions.LinearConstraints(statements, names=["room", "a", "b"])


def in_turn(x: Array, size: Array) -> Found:
    law = dist.Normal(jnp.zeros_like(x), size * jnp.ones_like(x))
    return {"log_z": ppl.distributions.TruncatedInTurn(law, inside()).log_prob(x)}


def bijection(x: Array, size: Array) -> Found:
    """From free numbers, of which that of the room is negative."""
    move = dist.biject_to(inside())
    u = jnp.stack([jnp.log(jnp.expm1(x[0])), x[1], x[1] / size])
    return {"log_z": move.log_abs_det_jacobian(u, move(u))}


PARTS = {
    "regression, rows in a plate": Part(lambda *a: moments(regression, ["beta"], *a), design),
    "regression, row by row": Part(lambda *a: moments(by_rows(1), ["beta"], *a), design),
    "regression, three rows a step": Part(lambda *a: moments(by_rows(3), ["beta"], *a), design),
    "regression, six rows a step": Part(lambda *a: moments(by_rows(6), ["beta"], *a), design),
    "regression, twelve rows a step": Part(lambda *a: moments(by_rows(12), ["beta"], *a), design),
    "groups, in a plate": Part(lambda *a: moments(effects, ["mean", "effect"], *a), groups),
    "groups, row by row": Part(lambda *a: moments(effects_by_rows, ["mean", "effect"], *a), groups),
    "system, two of three seen": Part(lambda *a: moments(system, ["first", "z"], *a), steps),
    "level and slope": Part(lambda *a: moments(trend, ["start", "level", "slope"], *a), steps),
    "system, parallel=True": Part(
        lambda *a: moments(system, ["first", "z"], *a, parallel=True), steps
    ),
    "NormalInverseWishart": Part(wishart, vectors),
    "NormalInverseGamma": Part(gamma, numbers),
    "GroupedNormalInverseGamma": Part(grouped, alike),
    "local_laplace, hessian": Part(laplace("hessian"), design),
    "local_laplace, gauss_newton": Part(laplace("gauss_newton"), design),
    "TruncatedInTurn": Part(in_turn, rooms),
    "LinearConstraints, bijection": Part(bijection, rooms),
    "hidden Markov chain": Part(hidden, chain),
    "smc, sums of weights": Part(particles, sums),
}


def measured(part: Part, condition: float, seeds: Sequence[int]) -> list[Error]:
    """The errors of random instances."""
    found = []
    single, double = jax.jit(part.run), jax.jit(part.run)
    for seed in seeds:
        args = part.instance(np.random.default_rng(seed), condition)
        with jax.enable_x64(True):
            wide = [
                np.asarray(a, np.float64) if np.asarray(a).dtype == np.float32 else a for a in args
            ]
            right = jax.tree.map(np.asarray, double(*wide))
        found.append(_error(jax.tree.map(lambda x: np.asarray(x, float), single(*args)), right))
    return found


def _error(now: Found, right: Found) -> Error:
    given = np.concatenate([np.isfinite(np.ravel(x)) for x in now.values()])
    mean = scale = np.nan
    if "scale" in right:
        least = np.spacing(np.abs(right["mean"]).astype(np.float32))  # of what is returned
        off = np.maximum(np.abs(now["mean"] - right["mean"]) - least, 0) / right["scale"]
        mean, scale = _worst(off), _worst(np.abs(now["scale"] / right["scale"] - 1))
    least = 4 * np.spacing(np.abs(right["log_z"]).astype(np.float32))
    log_z = _worst(np.maximum(np.abs(now["log_z"] - right["log_z"]) - least, 0))
    return Error(mean, scale, log_z, float(given.mean()))


def _worst(x: Array) -> float:
    x = np.ravel(x)
    x = x[np.isfinite(x)]
    return float(x.max()) if x.size else np.nan


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    print(f"{'':34}" + "".join(f"{c:>30.0e}" for c in CONDITIONS))
    print(f"{'':34}" + f"{'mean, sd  scale, %  nats given':>30}" * len(CONDITIONS))
    for name, part in PARTS.items():
        if options.only not in name:
            continue
        cells = []
        for condition in CONDITIONS:
            errors = measured(part, condition, range(options.seeds))
            worst = [_worst(np.array(column)) for column in zip(*errors, strict=True)]
            share = np.mean([e.share_given for e in errors])
            cells.append(f"{worst[0]:10.1g}{100 * worst[1]:8.1g}{worst[2]:8.1g}{share:4.0%}")
        print(f"{name:34}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
