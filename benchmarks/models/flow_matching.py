"""Question: what do a training step and a draw of flow matching cost beside JAX by hand, and is what is learned as good?

torchcfm's recipe for points of the plane, 8 Gaussians to moons (same network: three hidden layers of 64, SELU; Adam at 1e-3,
batches of 256, 20,000 steps), through `paths.flow_matching`, with random pairs and with the assignment of each batch; written
out in JAX, with and without its constant noise of 0.1 on x_t, which the library's straight path has not; and by torchcfm itself,
in an environment of its own (_peers/flow_matching_torchcfm.py), on the same rows.

Cost: one process, interleaved, the median of paired ratios of processor times, of 20 steps of training in a compiled loop and of
100 Euler steps for 1,000 points; beside them what the compiled step counts, its operations on floats and its instructions.
Quality: distances between 2,000 points that a flow has carried and as many of the moons, beside two samples of the moons: W2, and
the squared sliced Wasserstein distance.

Published for these two sets: W2 0.120 +- 0.045 for random pairs and 0.050 +- 0.040 for optimal transport with an adaptive solver,
ten runs (Cheng and Schwing 2025, arXiv:2503.10636, figure 1), of samples of another size.

usage: python benchmarks/models/flow_matching.py cost [--repeats 60] [--record]
       python benchmarks/models/flow_matching.py quality [--num-steps 20000] [--seeds 3] [--torchcfm PYTHON] [--record]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import ot
from sklearn.datasets import make_moons

from lapilli import inference
from lapilli.inference import evaluation
from lapilli.models import paths

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _common import interleaved, paired, parsed, record_figure, with_intervals
from _intervals import interval

BATCH, ROWS, POINTS, EULER = 256, 50_000, 2_000, 100
PEER = Path(__file__).resolve().parents[1] / "_peers" / "flow_matching_torchcfm.py"

type Gradient = Callable[[Any, jax.Array], Any]


class Plane(eqx.Module):
    """torchcfm's network: an MLP of the point and the time."""

    net: eqx.nn.MLP

    def __init__(self, key: jax.Array) -> None:
        self.net = eqx.nn.MLP(3, 2, 64, 3, jax.nn.selu, key=key)

    def __call__(self, x: jax.Array, t: jax.Array, context: Any = None) -> jax.Array:
        return self.net(jnp.append(x, t))


def gaussians(rng: np.random.Generator, num: int) -> np.ndarray:
    angles = 2 * np.pi * rng.integers(8, size=num) / 8
    noise = 0.1**0.25 * rng.normal(size=(num, 2))  # its variance is the root of 0.1
    return (5 * np.stack([np.cos(angles), np.sin(angles)], 1) + noise).astype(np.float32)


def moons(seed: int, num: int) -> np.ndarray:
    return (3 * make_moons(num, noise=0.2, random_state=seed)[0] - 1).astype(np.float32)


def loss_by_hand(
    network: Plane, key: jax.Array, start: jax.Array, end: jax.Array, noise: float
) -> jax.Array:
    keys = jax.random.split(key, 4)
    x0 = start[jax.random.randint(keys[0], (BATCH,), 0, len(start))]
    x1 = end[jax.random.randint(keys[1], (BATCH,), 0, len(end))]
    t = jax.random.uniform(keys[2], (BATCH,))
    x = (1 - t[:, None]) * x0 + t[:, None] * x1
    if noise:
        x = x + noise * jax.random.normal(keys[3], x.shape)
    return 0.5 * jnp.sum((jax.vmap(network)(x, t) - (x1 - x0)) ** 2)


def by_hand(network: Plane, start: jax.Array, end: jax.Array, noise: float) -> tuple[Any, Gradient]:
    """Parameters, and the gradient of the loss in them."""
    arrays, rest = eqx.partition(network, eqx.is_inexact_array)
    loss = lambda part, key: loss_by_hand(eqx.combine(part, rest), key, start, end, noise)
    return arrays, jax.grad(loss)


def trainer(gradient: Gradient, num_steps: int) -> Gradient:
    """(parameters, key) -> parameters after some steps of Adam."""
    optimizer = optax.adam(1e-3)

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        part, state = carry
        updates, state = optimizer.update(gradient(part, key), state)
        return (optax.apply_updates(part, updates), state), None

    @jax.jit
    def train(part: Any, key: jax.Array) -> Any:
        keys = jax.random.split(key, num_steps)
        return jax.lax.scan(step, (part, optimizer.init(part)), keys)[0][0]

    return train


def draw_by_hand(network: Plane, x: jax.Array, num_steps: int) -> jax.Array:
    def step(x: jax.Array, n: jax.Array) -> tuple[jax.Array, None]:
        t = n / num_steps
        return x + jax.vmap(lambda x: network(x, t))(x) / num_steps, None

    return jax.lax.scan(step, x, jnp.arange(num_steps))[0]


def counted(gradient: Gradient, params: Any, key: jax.Array) -> dict[str, float]:
    """Operations on floats and instructions of a compiled gradient."""
    compiled = jax.jit(gradient).lower(params, key).compile()
    found: Any = compiled.cost_analysis()
    instructions = len(re.findall(r"^ +(?:ROOT )?%?\S+ = ", compiled.as_text() or "", re.M))
    return {"operations": float(found["flops"]), "instructions": instructions}


def cost(options: argparse.Namespace) -> None:
    network, rng, key = Plane(jax.random.key(0)), np.random.default_rng(0), jax.random.key(1)
    start, end = jnp.asarray(gaussians(rng, ROWS)), jnp.asarray(moons(0, ROWS))
    objective = paths.flow_matching(
        network, paths.linear(), start, batch_size=BATCH, drop_context=0.0
    )
    params = objective.init(key, end)
    ours: Gradient = lambda params, key: objective.value_and_grad(params, key, end)[1]
    arrays, hand = by_hand(network, start, end, 0.0)
    many = lambda f, p: jax.vmap(f, (None, 0))(p, jax.random.split(key, 200))
    up, down = (
        np.concatenate([np.ravel(np.mean(x, 0)) for x in jax.tree.leaves(many(f, p))])
        for f, p in ((ours, params), (hand, arrays))
    )
    assert np.linalg.norm(up + down) < 0.1 * np.linalg.norm(down)  # a value and a loss
    field, points = paths.from_network(network, paths.linear()), start[:1000]
    draw = jax.jit(lambda x: paths.diffuse(field, key, x, noise=0.0, num_steps=EULER))
    own = jax.jit(lambda x: draw_by_hand(network, x, EULER))
    np.testing.assert_allclose(draw(points), own(points), rtol=1e-3, atol=1e-3)
    step, own_step = trainer(ours, 20), trainer(hand, 20)
    keys = [jax.random.fold_in(key, i) for i in range(options.repeats + 2)]
    pairs = {
        "training step": (lambda i: step(params, keys[i]), lambda i: own_step(arrays, keys[i])),
        "draw of 1,000 points": (lambda i: draw(points + i), lambda i: own(points + i)),
    }
    found = {}
    for name, (lapilli, hand_run) in pairs.items():
        steady = interleaved(
            {"lapilli": lapilli, "by hand": hand_run}, options.repeats, clock=time.process_time
        ).steady
        found[name] = paired(steady["lapilli"], steady["by hand"])
        print(f"{name:<22} {1e3 * np.median(steady['lapilli']):7.2f} ms, by hand {1e3 * np.median(steady['by hand']):7.2f} ms, "
              f"ratio {found[name]:.3f}")  # fmt: skip
    counts = counted(ours, params, key), counted(hand, arrays, key)
    print(f"a gradient counts {counts[0]}, by hand {counts[1]}")
    if options.record:
        fields = with_intervals(found)
        fields["value"] |= {f"{n} of a gradient": counts[0][n] / counts[1][n] for n in counts[0]}
        record_figure(
            "diffusion/flow_matching_speed",
            what="20 steps of flow matching, and 100 Euler steps of 1,000 points, beside JAX by hand: processor time, median of "
            "paired ratios, and ratios of counts in the compiled gradient; spread: half of a 95% interval",
            measures=["models/paths"], **fields,
        )  # fmt: skip


def w2(one: Any, other: Any) -> float:
    even = np.full(len(one), 1 / len(one))
    return float(
        np.sqrt(
            ot.emd2(
                even,
                even,
                ot.dist(np.asarray(one, float), np.asarray(other, float)),
                numItermax=10**7,
            )
        )
    )


def learned(num_steps: int, seed: int, python: str | None) -> dict[str, float]:
    """Distances from moons of what flows of one seed carry there."""
    rng, keys = np.random.default_rng(seed), jax.random.split(jax.random.key(seed), 2)
    rows = {"start": gaussians(rng, ROWS), "end": moons(seed, ROWS)}
    start, end = (jnp.asarray(x) for x in rows.values())
    x, truth, other = gaussians(rng, POINTS), moons(seed + 1000, POINTS), moons(seed + 2000, POINTS)
    network, path = Plane(keys[0]), paths.linear()
    rest = eqx.filter(network, eqx.is_inexact_array, inverse=True)
    carried: dict[str, Any] = {"two samples of moons": other}
    for name, coupling in {"": paths.independent, ", transport": paths.transport}.items():
        objective = paths.flow_matching(
            network, path, start, coupling=coupling, batch_size=BATCH, drop_context=0.0
        )
        fit = inference.fit(
            objective, optax.adam(1e-3), (end,), num_steps=num_steps, key=keys[1], progress=False
        )
        field = paths.from_network(network, path, params=fit.params)
        carried[f"lapilli{name}"] = paths.diffuse(
            field, keys[1], jnp.asarray(x), noise=0.0, num_steps=EULER
        )
    for noise in (0.0, 0.1):
        arrays, gradient = by_hand(network, start, end, noise)
        trained = eqx.combine(trainer(gradient, num_steps)(arrays, keys[1]), rest)
        carried[f"by hand, noise {noise:g}"] = draw_by_hand(trained, jnp.asarray(x), EULER)
    if python:
        carried |= by_torchcfm(python, rows | {"points": x, "seed": seed, "num_steps": num_steps, "batch": BATCH})  # fmt: skip
    found = {f"W2, {name}": w2(points, truth) for name, points in carried.items()}
    for name, points in carried.items():
        sliced = evaluation.sliced_wasserstein(truth, np.asarray(points), jax.random.key(0))
        found[f"sliced, {name}"] = sliced.value
    return found


def by_torchcfm(python: str, problem: dict[str, Any]) -> dict[str, np.ndarray]:
    """Points that torchcfm's flows have carried, by name."""
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{name}.npz") for name in ("problem", "answer")]
        np.savez(files[0], **problem)
        subprocess.run([os.path.abspath(python), str(PEER), *files], check=True)
        answer = dict(np.load(files[1]))
    return {name.removesuffix(".points"): x for name, x in answer.items() if x.ndim}


def quality(options: argparse.Namespace) -> None:
    rows = []
    for seed in range(options.seeds):
        rows.append(learned(options.num_steps, seed, options.torchcfm))
        print(f"seed {seed}: {rows[-1]}", flush=True)
    values = {name: interval(np.array([row[name] for row in rows])) for name in rows[0]}
    for name, (mean, half) in values.items():
        print(f"{name:<32} {mean:.3f} ± {half:.3f}")
    if options.record:
        record_figure(
            "diffusion/flow_matching_plane",
            what="8 Gaussians carried to moons by torchcfm's recipe: W2 of 2,000 points, and squared sliced distance; spread: "
            "half of the 95 % t interval over seeds",
            value={name: mean for name, (mean, _) in values.items()},
            spread={name: half for name, (_, half) in values.items()},
            seeds=f"0 to {options.seeds - 1}", measures=["models/paths", "benchmarks/_peers/flow_matching_torchcfm.py"],
            claim="W2 0.120 ± 0.045; 0.050 ± 0.040 by transport", claimed_by="Cheng and Schwing 2025, arXiv:2503.10636, figure 1",
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Flow matching of the plane.")
    parser.add_argument("part", choices=PARTS, nargs="?", default="cost")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--num-steps", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--torchcfm", metavar="PYTHON", help="that of an environment with torchcfm")
    options = parsed(parser)
    PARTS[options.part](options)


PARTS = {"cost": cost, "quality": quality}

if __name__ == "__main__":
    main()
