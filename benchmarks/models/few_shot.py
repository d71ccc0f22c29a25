"""Question: what does one training step of NIW-Meta cost beside first-order MAML's, at equal inner steps?

Five-way classification of images by a convolutional network, all of whose weights are adapted: five steps of gradient descent on
the support in both. NIW-Meta then expands the loss where the steps end (gradient and Jacobian of the support's scores), draws the
weights from the Laplace site, and takes the outer gradient on support and query; MAML takes it on the query alone. The networks
are those of Finn et al. 2017: "images", four layers of 32 filters on 84 x 84 x 3, "letters", four strided layers of 64 filters on
28 x 28, both without batch normalisation; "points" is the MLP of sine_line.py. Convolutions are products with patches, since
those of XLA are slow on CPU where every episode has a kernel of its own. Images are noise: no time depends on them.

Both are measured twice, as programs of `niw_meta` and written out in JAX, with the same values and, of MAML, gradients, which is
checked. All run in one process, interleaved, several steps in a compiled loop as `fit` runs them; the answer is the median of
paired ratios of processor times, with a bootstrap interval. NIW-Meta's curvature has all of its rows or, of images, one for each.

Answer: of images NIW-Meta costs up to half more than MAML, of letters, where a row of the curvature has 112,709 numbers and an
image costs little, twice as much and more; one row for each image brings both down. Of points it costs the less more, the more
inner steps there are. By hand it costs as much. Figures: docs/_data/figures, few_shot/few_shot_step_images, and
few_shot_step_points (`--networks points --steps 5 20 80`).

usage: taskset -c 0 python benchmarks/models/few_shot.py [--networks images letters points] [--shots 1 5] [--queries 15]
    [--repeats 20] [--record]
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from lapilli import inference
from lapilli.models import niw_meta

sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "papers" / "few_shot"))
import _baselines as baselines
from _common import Ratio, interleaved, paired, parsed, record_figure, with_intervals

WAYS = 5
SGD = optax.sgd(1e-3)


class Convolution(eqx.Module):
    """3 x 3, padded, as a product with patches; [height, width, channels]."""

    layer: eqx.nn.Linear
    stride: int = eqx.field(static=True)

    def __init__(self, num_in: int, num_out: int, stride: int, key: Any) -> None:
        self.layer, self.stride = eqx.nn.Linear(9 * num_in, num_out, key=key), stride

    def __call__(self, x: Any) -> Any:
        height, width = ((n - 1) // self.stride + 1 for n in x.shape[:2])
        padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
        reach = lambda start, n: slice(start, start + self.stride * (n - 1) + 1, self.stride)
        shifted = [padded[reach(i, height), reach(j, width)] for i in range(3) for j in range(3)]
        out = jnp.concatenate(shifted, -1) @ self.layer.weight.T + self.layer.bias
        # Else XLA's CPU compiler adds up the nine shifted slopes again for each use of their sum: twice the time in all methods.
        return jax.lax.optimization_barrier(out)


class Images(eqx.Module):
    """Four convolutions, each followed by a pool of 2 x 2 or strided, and a linear layer."""

    layers: list[Convolution]
    last: eqx.nn.Linear
    is_pooled: bool = eqx.field(static=True)

    def __init__(self, size: int, channels: int, width: int, *, is_pooled: bool) -> None:
        keys = jax.random.split(jax.random.key(0), 5)
        widths = [channels, *[width] * 4]
        stride = 1 if is_pooled else 2
        self.layers = [Convolution(*widths[i : i + 2], stride, keys[i]) for i in range(4)]
        for _ in range(4):
            size = size // 2 if is_pooled else -(-size // 2)
        self.last = eqx.nn.Linear(size**2 * width, WAYS, key=keys[4])
        self.is_pooled = is_pooled

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
            if self.is_pooled:
                half = tuple(n // 2 for n in x.shape[:2])
                cropped = x[: 2 * half[0], : 2 * half[1]]
                x = cropped.reshape(half[0], 2, half[1], 2, -1).max((1, 3))
        return self.last(x.ravel())


class Case(NamedTuple):
    """What is learned and how a step of it is measured.

    Attributes:
        network: all of whose weights are adapted.
        head: law of a label.
        shape: of an input.
        batch: number of episodes in a step; of one alone nobody can see that episodes do not meet.
        num_loops: steps in a call.
    """

    network: Any
    head: niw_meta.Head
    shape: tuple[int, ...]
    batch: int
    num_loops: int


def cases() -> dict[str, Case]:
    """By name."""
    softmax = niw_meta.Softmax()
    images, letters = Images(84, 3, 32, is_pooled=True), Images(28, 1, 64, is_pooled=False)
    points = eqx.nn.MLP(1, 1, 40, 2, key=jax.random.key(0))
    return {
        "images": Case(images, softmax, (84, 84, 3), batch=2, num_loops=4),
        "letters": Case(letters, softmax, (28, 28, 1), batch=4, num_loops=4),
        "points": Case(points, niw_meta.GaussianNoise(0.3), (1,), batch=8, num_loops=200),
    }


def make_episodes(case: Case, shots: int, queries: int) -> niw_meta.Episodes:
    """Noise with labels; a regression has five points in its support and 45 to predict."""
    rng = np.random.default_rng(0)

    def points(count: int) -> niw_meta.Points:
        if isinstance(case.head, niw_meta.Softmax):
            y = np.tile(np.repeat(np.arange(WAYS), count), (case.batch, 1))
        else:
            y = rng.normal(size=(case.batch, count)).astype(np.float32)
        x = rng.normal(size=(*y.shape, *case.shape)).astype(np.float32)
        return niw_meta.Points(x, y, np.ones(y.shape, bool))

    return jax.tree.map(jnp.asarray, niw_meta.Episodes(points(shots), points(queries)))


def maml_by_hand(case: Case, num_steps: int) -> Any:
    """`(loc, episodes) -> mean loss of an episode's queries`, first order."""
    arrays, static = eqx.partition(case.network, eqx.is_inexact_array)
    unravel = ravel_pytree(arrays)[1]

    def losses(theta: Any, points: niw_meta.Points) -> Any:
        out = jax.vmap(eqx.combine(unravel(theta), static))(points.x)
        return -case.head.law(out).log_prob(points.y)

    def episode(loc: Any, episode: niw_meta.Episodes) -> Any:
        slope = jax.grad(lambda theta: losses(theta, episode.support).mean())
        step = lambda theta, _: (theta - 1e-3 * slope(theta), None)
        start = jax.lax.stop_gradient(loc)
        moved = jax.lax.scan(step, start, None, num_steps)[0]
        return losses(loc + jax.lax.stop_gradient(moved - start), episode.query).sum()

    return lambda loc, episodes: jax.vmap(episode, (None, 0))(loc, episodes).mean()


def niw_meta_by_hand(case: Case, num_steps: int) -> Any:
    """`(params, key, episodes) -> mean bound of an episode`, params the location and the log of the scale of the weights."""
    arrays, static = eqx.partition(case.network, eqx.is_inexact_array)
    unravel = ravel_pytree(arrays)[1]
    stop = jax.lax.stop_gradient
    scores = lambda theta, x: eqx.combine(unravel(theta), static)(x)

    def log_likelihood(theta: Any, points: niw_meta.Points) -> Any:
        return case.head.law(jax.vmap(scores, (None, 0))(theta, points.x)).log_prob(points.y).sum()

    def whitened(out: Any, y: Any) -> tuple[Any, Any]:
        """R with R'R the Fisher information in the scores of a point, and r with R'r the slope of its loss."""
        if isinstance(case.head, niw_meta.GaussianNoise):
            return jnp.eye(1) / case.head.noise, (out - y) / case.head.noise
        p = jax.nn.softmax(out)
        s = jnp.sqrt(p)
        return jnp.diag(s) - jnp.outer(s, p), (p - jax.nn.one_hot(y, WAYS)) / s

    def episode(params: Any, key: Any, episode: niw_meta.Episodes) -> Any:
        loc, scale = params["loc"], jnp.exp(params["log_scale"])
        variance, start, precision = scale**2, stop(loc), stop(scale**-2)
        slope = jax.grad(lambda theta: -log_likelihood(theta, episode.support))
        step = lambda x, _: (x - 1e-3 * (slope(x) + precision * (x - start)), None)
        end = jax.lax.scan(step, start, None, num_steps)[0]

        def rows(x: Any, y: Any) -> tuple[Any, Any]:
            root, r = whitened(scores(end, x), y)
            return root @ jax.jacrev(scores)(end, x), r

        u, r = stop(jax.vmap(rows)(episode.support.x, episode.support.y))
        u, r = u.reshape(-1, loc.size), r.ravel()
        gram = jnp.eye(r.size) + (variance * u) @ u.T
        tril = jnp.linalg.cholesky(gram)
        solve = lambda b: jax.scipy.linalg.cho_solve((tril, True), b)
        spread = lambda seen: variance * (solve(seen) @ u)
        down = variance * (r @ u)
        mean = loc - down + spread(u @ (end - loc + down))
        of_prior, of_points = jax.random.split(key)
        prior = scale * jax.random.normal(of_prior, loc.shape)
        theta = mean + prior - spread(u @ prior + jax.random.normal(of_points, r.shape))
        trace = jnp.trace(solve(jnp.eye(r.size))) - r.size
        quadratic = ((mean - loc) ** 2 / variance).sum()
        kl = 0.5 * (trace + quadratic) + jnp.log(jnp.diag(tril)).sum()
        return log_likelihood(theta, episode.support) + log_likelihood(theta, episode.query) - kl

    def bound(params: Any, key: Any, episodes: niw_meta.Episodes) -> Any:
        keys = jax.random.split(key, episodes.support.y.shape[0])
        return jax.vmap(episode, (None, 0, 0))(params, keys, episodes).mean()

    return bound


def functions(case: Case, episodes: Any, num_steps: int, rank: int) -> dict[str, Any]:
    """By name, a call of `case.num_loops` compiled training steps."""
    infinite = {"episodes": math.inf}
    key = jax.random.key(0)
    keys = jax.random.split(key, case.num_loops)

    def compiled(value_and_grad: Any, params: Any) -> Any:
        def run(params: Any, keys: Any, episodes: Any) -> Any:
            def step(params: Any, key: Any) -> tuple[Any, Any]:
                value, grads = value_and_grad(params, key, episodes)
                # A step depends on the one before, else the compiler takes MAML, which draws nothing, out of the loop.
                return jax.tree.map(lambda p, g: p + 1e-8 * g, params, grads), value

            return jax.lax.scan(step, params, keys)

        loop = jax.jit(run).lower(params, keys, episodes).compile()
        return lambda: jax.block_until_ready(loop(params, keys, episodes))

    def of(objective: inference.Objective) -> Any:
        return compiled(objective.value_and_grad, objective.init(key, episodes))

    maml = baselines.likelihood(
        baselines.maml(case.network, case.head, optimizer=SGD, num_steps=num_steps, order=1)
    )
    params = maml.init(key, episodes)
    loss = maml_by_hand(case, num_steps)
    by_hand = jax.value_and_grad(lambda params, key, episodes: -loss(params["loc"], episodes))
    value, grads = jax.jit(maml.value_and_grad)(params, key, episodes)
    other_value, other_grads = jax.jit(by_hand)(params, key, episodes)
    np.testing.assert_allclose(value, other_value, rtol=1e-4)
    np.testing.assert_allclose(grads["loc"], other_grads["loc"], rtol=1e-2, atol=1e-3)
    found = {"MAML": of(maml), "MAML by hand": compiled(by_hand, params)}
    limits: dict[str, int | None] = {"NIW-Meta": None}
    if isinstance(case.head, niw_meta.Softmax):
        limits[f"NIW-Meta, rank {rank}"] = rank
    for name, limit in limits.items():
        programs = niw_meta.programs(
            case.network, case.head, inner=inference.local.Descent(SGD, num_steps),
            curvature=inference.local.Curvature("low_rank_gauss_newton", limit),
        )  # fmt: skip
        bound = inference.elbo(*programs, kl="analytic")
        found[name] = of(bound.with_plate_sizes(infinite))
    loc = params["loc"]
    start = {"loc": loc, "log_scale": jnp.full_like(loc, math.log(0.1))}
    by_hand = jax.value_and_grad(niw_meta_by_hand(case, num_steps))
    found["NIW-Meta by hand"] = compiled(by_hand, start)
    one, two = (np.asarray(found[name]()[1]) for name in ("NIW-Meta", "NIW-Meta by hand"))
    error = math.sqrt((one.var() + two.var()) / (one.size - 1))
    assert abs(one.mean() - two.mean()) < 4.5 * error + 1e-4 * abs(one.mean()), (one, two)
    return found


def record(found: dict[str, Ratio], networks: list[str]) -> None:
    """The ratios, for the page of figures; those of points alone are a record of their own."""
    record_figure(
        f"few_shot/few_shot_step_{'points' if networks == ['points'] else 'images'}",
        what="processor time of a training step with all weights adapted, beside first-order MAML; spread: half of the 95% "
        "interval of the median",
        digits=2,
        measures=["examples/papers/few_shot/_baselines.py", "models/niw_meta"],
        **with_intervals(found),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", default=["images", "letters", "points"])
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--queries", type=int, nargs="+", default=[15], help="for each class")
    parser.add_argument("--steps", type=int, nargs="+", default=[5])
    parser.add_argument(
        "--rank",
        type=int,
        help="of a second NIW-Meta; default, one row for each image of the support",
    )
    parser.add_argument("--repeats", type=int, default=20)
    config = parsed(parser)
    print(f"{os.cpu_count()} cores, jax {jax.__version__}, float32; processor time of one step")
    found = {}
    for name in config.networks:
        case = cases()[name]
        count = ravel_pytree(eqx.filter(case.network, eqx.is_inexact_array))[0].size
        print(f"\n{name}: {count} weights, {case.batch} episodes a step")
        sizes = [(s, q) for s in config.shots for q in config.queries]
        if name == "points":
            sizes = [(5, 45)]
        for num_steps in config.steps:
            for shots, queries in sizes:
                episodes = make_episodes(case, shots, queries)
                rank = config.rank or episodes.support.y.shape[1]
                runs = functions(case, episodes, num_steps, rank)
                calls = {name: lambda i, run=run: run() for name, run in runs.items()}
                times = interleaved(calls, config.repeats, clock=time.process_time).steady
                print(f"  {num_steps} inner steps, {shots} shots, {queries} queries:")
                for other, seconds in times.items():
                    ratio = paired(seconds, times["MAML"])
                    print(
                        f"    {other:22s} {1e3 * np.median(seconds) / case.num_loops:9.2f} ms   / MAML: {ratio:.3f}",
                        flush=True,
                    )
                    if other != "MAML":
                        size = f"{num_steps} inner steps, {shots} shot{'s' * (shots > 1)}"
                        found[f"{name}, {size}, {other}"] = ratio
    if config.record:
        record(found, config.networks)


if __name__ == "__main__":
    main()
