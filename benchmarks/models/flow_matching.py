"""Question: what do a training step and a draw of flow matching cost beside JAX by hand, and is what is learned as good?

torchcfm's recipe for points of the plane, 8 Gaussians to moons (same network: three hidden layers of 64, SELU; Adam at 1e-3,
batches of 256, 20,000 steps), once through `paths.flow_matching` and once written out in JAX, with its constant noise of 0.1 on
x_t that the library's straight path has not. One process, interleaved: the median of paired ratios of processor times, of a
gradient with its draws and of 100 Euler steps for 1,000 points. Quality, in three seeds: W2 between 2,000 points that a flow has
carried and as many of the moons, beside two samples of the moons; the same with the assignment of each batch (`transport`), if
`--transport` asks for it.

Published for these two sets: W2 0.120 +- 0.045 for random pairs and 0.050 +- 0.040 for optimal transport with an adaptive solver,
ten runs (Cheng and Schwing 2025, arXiv:2503.10636, figure 1), of samples of another size.

usage: python benchmarks/models/flow_matching.py [--repeats 60] [--num-steps 20000] [--seeds 3] [--transport] [--record]
"""

from __future__ import annotations

import argparse
import sys
import time
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
from lapilli.models import paths

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _common import interleaved, paired, parsed, record_figure, with_intervals

BATCH, ROWS, POINTS = 256, 50_000, 2_000


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


@eqx.filter_jit
def train_by_hand(
    network: Plane, key: jax.Array, start: jax.Array, end: jax.Array, num_steps: int, noise: float
) -> Plane:
    optimizer = optax.adam(1e-3)
    arrays = eqx.filter(network, eqx.is_inexact_array)
    rest = eqx.filter(network, eqx.is_inexact_array, inverse=True)
    whole = lambda part: eqx.combine(part, rest)

    def of_arrays(carry: Any, key: jax.Array) -> tuple[Any, None]:
        part, state = carry
        grads = jax.grad(lambda p: loss_by_hand(whole(p), key, start, end, noise))(part)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(part, updates), state), None

    carry = arrays, optimizer.init(arrays)
    return jax.lax.scan(of_arrays, carry, jax.random.split(key, num_steps))[0][0]


def draw_by_hand(network: Plane, x: jax.Array, num_steps: int) -> jax.Array:
    def step(x: jax.Array, n: jax.Array) -> tuple[jax.Array, None]:
        t = n / num_steps
        return x + jax.vmap(lambda x: network(x, t))(x) / num_steps, None

    return jax.lax.scan(step, x, jnp.arange(num_steps))[0]


def times(repeats: int) -> dict[str, Any]:
    """Ratios of a gradient and of a draw to those by hand."""
    network, rng = Plane(jax.random.key(0)), np.random.default_rng(0)
    start, end = jnp.asarray(gaussians(rng, ROWS)), jnp.asarray(moons(0, ROWS))
    objective = paths.flow_matching(
        network, paths.linear(), start, batch_size=BATCH, drop_context=0.0
    )
    key = jax.random.key(1)
    params = objective.init(key, end)
    ours = jax.jit(lambda key: objective.value_and_grad(params, key, end))
    arrays, rest = eqx.partition(network, eqx.is_inexact_array)
    hand = jax.jit(
        jax.value_and_grad(lambda p, k: loss_by_hand(eqx.combine(p, rest), k, start, end, 0.0))
    )
    field, points = paths.from_network(network, paths.linear()), start[:1000]
    draw = jax.jit(lambda x: paths.diffuse(field, key, x, noise=0.0, num_steps=100))
    own = jax.jit(lambda x: draw_by_hand(network, x, 100))
    np.testing.assert_allclose(draw(points), own(points), rtol=1e-3, atol=1e-3)
    means = [
        np.mean([float(f(jax.random.key(i))[0]) for i in range(50)])
        for f in (ours, lambda k: hand(arrays, k))
    ]
    constant = 0.5 * 2 * BATCH * np.log(2 * np.pi)
    assert abs(-means[0] - constant - means[1]) < 0.05 * means[1], means
    found = {}
    pairs = {
        "gradient": (lambda i: [ours(jax.random.fold_in(key, 20 * i + j)) for j in range(20)],
                     lambda i: [hand(arrays, jax.random.fold_in(key, 20 * i + j)) for j in range(20)]),
        "draw of 1,000 points": (lambda i: draw(points + i), lambda i: own(points + i)),
    }  # fmt: skip
    for name, (lapilli, by_hand) in pairs.items():
        steady = interleaved(
            {"lapilli": lapilli, "by hand": by_hand}, repeats, clock=time.process_time
        ).steady
        found[name] = paired(steady["lapilli"], steady["by hand"])
        print(f"{name:<22} {1e3 * np.median(steady['lapilli']):7.2f} ms, by hand {1e3 * np.median(steady['by hand']):7.2f} ms, "
              f"ratio {found[name]:.3f}")  # fmt: skip
    return found


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


def quality(num_steps: int, seed: int, has_transport: bool) -> dict[str, float]:
    """W2 to moons of what flows carry there, 100 Euler steps."""
    rng, keys = np.random.default_rng(seed), jax.random.split(jax.random.key(seed), 2)
    start, end = jnp.asarray(gaussians(rng, ROWS)), jnp.asarray(moons(seed, ROWS))
    x, truth, other = gaussians(rng, POINTS), moons(seed + 1000, POINTS), moons(seed + 2000, POINTS)
    network = Plane(keys[0])
    rest = eqx.filter(network, eqx.is_inexact_array, inverse=True)
    found = {"two samples of moons": w2(other, truth)}
    couplings = {"lapilli": paths.independent} | (
        {"lapilli, transport": paths.transport} if has_transport else {}
    )
    for name, coupling in couplings.items():
        objective = paths.flow_matching(
            network, paths.linear(), start, coupling=coupling, batch_size=BATCH, drop_context=0.0
        )
        fit = inference.fit(
            objective, optax.adam(1e-3), (end,), num_steps=num_steps, key=keys[1], progress=False
        )
        field = paths.from_network(network, paths.linear(), params=fit.params)
        found[name] = w2(
            paths.diffuse(field, keys[1], jnp.asarray(x), noise=0.0, num_steps=100), truth
        )
    for noise in (0.0, 0.1):
        trained = eqx.combine(train_by_hand(network, keys[1], start, end, num_steps, noise), rest)
        found[f"by hand, noise {noise}"] = w2(draw_by_hand(trained, jnp.asarray(x), 100), truth)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Flow matching of the plane.")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--num-steps", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--transport", action="store_true")
    options = parsed(parser)
    ratios = times(options.repeats)
    rows = [quality(options.num_steps, seed, options.transport) for seed in range(options.seeds)]
    values = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    for name, v in values.items():
        print(f"W2 {name:<24} {v.mean():.3f} ± {v.std(ddof=1):.3f}  {np.round(v, 3)}")
    if options.record:
        record_figure(
            "diffusion/flow_matching_speed",
            what="a gradient of flow matching, and 100 Euler steps of 1,000 points, beside JAX by hand, processor time, median "
            "of paired ratios; spread: half of its 95% interval",
            measures=["models/paths"], **with_intervals(ratios),
        )  # fmt: skip
        record_figure(
            "diffusion/flow_matching_plane",
            what="8 Gaussians carried to moons by torchcfm's recipe, W2 of 2,000 points; spread: standard deviation over seeds",
            value={name: v.mean() for name, v in values.items()}, spread={name: v.std(ddof=1) for name, v in values.items()},
            seeds=f"0 to {options.seeds - 1}", measures=["models/paths"],
            claim="0.120 ± 0.045; 0.050 ± 0.040 by transport", claimed_by="Cheng and Schwing 2025, arXiv:2503.10636, figure 1",
        )  # fmt: skip


if __name__ == "__main__":
    main()
