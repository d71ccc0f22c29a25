"""Thirteen Lennard-Jones atoms: a diffusion model learned warm, annealed cold with and without weights.

What it shows: samples at a low temperature from a model that never saw it. A network learns the law of LJ-13 at temperature 2
from molecular samples; at temperature T the target is its power 2 / T, which `inference.diffusion.fkc(model, times, exponents=2
/ T)` samples. The network sees distances only, so that it is equivariant to rotations, reflections and permutations of the
atoms; the centre of mass is taken out by coordinates (36 in place of 39).

Energy: sum over ordered pairs of r^-12 - 2 r^-6, plus half the squared distances from the centre of mass, over T. Reference
samples come from Hamiltonian Monte Carlo. Source: Skreta et al. 2025, arXiv:2503.02819, section 5.3 and table 3, there with a
base model of iDEM's, 1,000 steps and 50,000 particles; at T = 1.5 weights brought W2 of distances from 0.168 to 0.083 (target
score) and from 0.095 to 0.066 (tempered noise), W2 of energies from 6.21 to 3.39 and from 3.92 to 0.94. Here it is the same
experiment at the size of a small computer: numbers compare between rows, not with the paper.

Expected: weights bring target score nearer in distances and energies, as in the paper; with tempered noise they do harm to
energies; automatic zeta with weights is the nearest in both. Energies have a few outliers, where atoms of learned samples
overlap. Figures: docs/_data/figures, diffusion/lennard_jones. Run time: about four minutes on 2 free CPU cores.

    python examples/papers/diffusion/lennard_jones.py [--smoke] [--temperature 1.5] [--seed 0]
        [--out lennard_jones_output] [--record]
"""

import argparse
import functools
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import arviz
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import ot
from scipy.linalg import helmert

from lapilli import inference
from lapilli.models import diffusion

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure

ATOMS, DIMS = 13, 3
SHAPE = (ATOMS - 1, DIMS)
WARM = 2.0
BASIS = jnp.asarray(helmert(ATOMS), jnp.float32)  # rows span what has no centre of mass, [12, 13]
PAIRS = np.triu_indices(ATOMS, 1)
NOISING = diffusion.VE(sigma_min=0.02, sigma_max=4.0)


class Config(NamedTuple):
    num_samples: int = 2_000  # of a temperature
    num_training_steps: int = 3_000
    width: int = 32
    num_particles: int = 400
    num_steps: int = 150
    temperature: float = 1.5


# The molecule.


def distances(z: jax.Array) -> jax.Array:
    """Of all pairs of atoms, [78]; z [12, 3] are coordinates without the centre of mass."""
    x = BASIS.T @ z
    return jnp.sqrt(jnp.sum((x[PAIRS[0]] - x[PAIRS[1]]) ** 2, -1))


def energy(z: jax.Array) -> jax.Array:
    r6 = distances(z) ** -6
    return 2 * jnp.sum(r6**2 - 2 * r6) + 0.5 * jnp.sum(z**2)


@functools.partial(jax.jit, static_argnums=(2, 3))
def hamiltonian(key: jax.Array, start: jax.Array, temperature: float, num_moves: int) -> Any:
    """Chains [chains, 12, 3] after `num_moves` moves of ten leapfrog steps at a step size adapted to 80% acceptance."""

    def move(carry: Any, key: jax.Array) -> Any:
        z, size = carry
        keys = jax.random.split(key)
        p = jax.random.normal(keys[0], z.shape)
        force = jax.vmap(jax.grad(lambda z: -energy(z) / temperature))
        total = lambda z, p: -jax.vmap(energy)(z) / temperature - 0.5 * jnp.sum(p**2, (1, 2))

        def leapfrog(_: int, zp: Any) -> Any:
            z, p = zp
            p = p + 0.5 * size * force(z)
            z = z + size * p
            return z, p + 0.5 * size * force(z)

        new, q = jax.lax.fori_loop(0, 10, leapfrog, (z, p))
        ratio = total(new, q) - total(z, p)
        chance = jnp.exp(jnp.minimum(jnp.where(jnp.isnan(ratio), -jnp.inf, ratio), 0.0))
        is_taken = jax.random.uniform(keys[1], chance.shape) < chance
        size = size * jnp.exp(0.05 * (chance.mean() - 0.8))
        return (jnp.where(is_taken[:, None, None], new, z), size), chance.mean()

    (z, _), rates = jax.lax.scan(move, (start, jnp.asarray(0.02)), jax.random.split(key, num_moves))
    return z, rates[-num_moves // 4 :].mean()


def molecular_samples(config: Config, temperature: float, key: jax.Array) -> tuple[Any, float]:
    """Samples [num_samples, 12, 3]: chains cooled from 4 T, every 40 moves one state of each is kept."""
    chains = max(100, config.num_samples // 8)
    start_key, key = jax.random.split(key)
    # A lattice keeps atoms apart at first.
    lattice = np.stack(np.meshgrid(*[np.arange(3)] * 3), -1).reshape(-1, 3)[:ATOMS] * 1.1
    z = BASIS @ jnp.asarray(lattice, jnp.float32)
    z = z + 0.05 * jax.random.normal(start_key, (chains, *SHAPE))
    for factor in (4.0, 2.0, 1.0):
        z, rate = hamiltonian(jax.random.fold_in(key, int(factor)), z, factor * temperature, 150)
    found = []
    while len(found) * chains < config.num_samples:
        z, rate = hamiltonian(jax.random.fold_in(key, 100 + len(found)), z, temperature, 40)
        found.append(z)
    return jnp.concatenate(found)[: config.num_samples], float(rate)


# The network.


class Equivariant(eqx.Module):
    """Messages between atoms from their distances; the prediction is a sum of differences of positions.

    Reference: Satorras, Hoogeboom and Welling 2021, arXiv:2102.09844.
    """

    condition: eqx.nn.MLP
    own: list[eqx.nn.Linear]
    radial: list[eqx.nn.Linear]
    pair: list[eqx.nn.Linear]
    update: list[eqx.nn.Linear]
    coefficient: eqx.nn.Linear
    skip: eqx.nn.Linear
    num_classes: int = eqx.field(static=True, default=0)

    def __init__(self, width: int, depth: int = 3, *, key: jax.Array) -> None:
        keys = iter(jax.random.split(key, 4 * depth + 3))
        linear = lambda a, b: eqx.nn.Linear(a, b, key=next(keys))
        self.condition = eqx.nn.MLP(8, width, width, 1, jax.nn.silu, key=next(keys))
        self.own = [linear(width, width) for _ in range(depth)]
        self.radial = [linear(8, width) for _ in range(depth)]
        self.pair = [linear(width, width) for _ in range(depth)]
        self.update = [linear(width, width) for _ in range(depth)]
        self.coefficient = linear(width, 1)
        self.skip = linear(width, 1)

    def __call__(self, z: jax.Array, level: jax.Array, label: jax.Array) -> jax.Array:
        """Coordinates z [12, 3] of about unit variance; level as in `diffusion.MLP`."""
        x = BASIS.T @ z
        difference = x[:, None] - x
        square = jnp.sum(difference**2, -1) + 1e-4
        r = jnp.sqrt(square)
        # Contact is at a distance that the noise level sets: features at several scales.
        radial = jnp.stack([jnp.exp(-r / s) for s in (0.25, 0.5, 1.0, 2.0)], -1)
        near = jnp.stack([jnp.exp(-(((r - c) / 0.25) ** 2)) for c in (0.4, 0.7, 1.0, 1.4)], -1)
        radial = jnp.concatenate([radial, near], -1)
        angles = level * jnp.array([0.5, 1.5, 4.0, 10.0])
        condition = self.condition(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)]))
        h = jnp.broadcast_to(condition, (ATOMS, condition.size))
        messages = jnp.zeros((ATOMS, ATOMS, condition.size))
        layers = zip(self.own, self.radial, self.pair, self.update, strict=True)
        for own, between, pair, update in layers:
            sent = jax.vmap(own)(h)
            hidden = sent[:, None] + sent + radial @ between.weight.T + condition
            messages = jax.nn.silu(jax.nn.silu(hidden) @ pair.weight.T + pair.bias)
            h = h + jax.vmap(update)(messages.mean(1))
        weight = messages @ self.coefficient.weight[0] + self.coefficient.bias
        moved = jnp.mean(difference * (weight / (1 + r))[..., None], 1)
        return BASIS @ (moved * 4.0) + self.skip(condition)[0] * z


def train(config: Config, x: jax.Array, key: jax.Array) -> tuple[Any, float]:
    """The diffusion model of the warm samples, and the scale by which coordinates are divided."""
    scale = float(x.std())
    network = Equivariant(config.width, key=key)
    fit = inference.fit(
        diffusion.score_matching(network, NOISING, predicts="velocity"),
        optax.chain(
            optax.clip_by_global_norm(100.0),
            optax.adam(optax.cosine_decay_schedule(3e-3, config.num_training_steps)),
        ),
        (x / scale,), num_steps=config.num_training_steps, key=key, subsample={"rows": 64}, average=0.995,
    )  # fmt: skip
    return diffusion.from_network(network, NOISING, SHAPE, params=fit.params), scale


# Annealing.

ARMS = {  # noise scale as a function of beta, and whether the weights are used
    "target score": (lambda beta: 1.0, False),
    "tempered noise": (lambda beta: beta**-0.5, False),
    "target score, FKC": (lambda beta: 1.0, True),
    "tempered noise, FKC": (lambda beta: beta**-0.5, True),
    "automatic zeta, FKC": (lambda beta: "auto", True),
}


def anneal(config: Config, model: Any, arm: str, beta: float, key: jax.Array) -> dict[str, Any]:
    """Equally weighted samples, [particles, 12, 3]."""
    zeta, is_weighted = ARMS[arm][0](beta), ARMS[arm][1]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fkc: .* infinite variance")
        target = inference.diffusion.fkc(
            model, NOISING.times(config.num_steps), exponents=beta, zeta=zeta
        )
    policy = None if is_weighted else inference.particles.resampling.never()

    @jax.jit
    def one(key: jax.Array) -> dict[str, Any]:
        run_key, draw_key = jax.random.split(key)
        result = inference.smc(
            target, run_key, num_particles=config.num_particles, policy=policy, history="ancestors"
        )
        drawn = result.sample(draw_key, config.num_particles) if is_weighted else result.particles
        return {
            "x": drawn.x,
            "ess": result.ess.min() / config.num_particles,
            "ancestors": inference.particles.unique_ancestors(result)[0],
        }

    return one(key)


def compare(z: jax.Array, reference: jax.Array) -> dict[str, float]:
    """W2 between pooled distances; W1 and W2 between energies, all on a line. Energies above 1,000 count as 1,000."""
    pool = lambda z: np.asarray(jax.vmap(distances)(z), float).ravel()
    energies = lambda z: np.minimum(
        np.nan_to_num(np.asarray(jax.vmap(energy)(z), float), nan=1e3), 1e3
    )
    line = lambda a, b, p: float(ot.wasserstein_1d(a, b, p=p) ** (1 / p))
    a, b = energies(z), energies(reference)
    return {
        "distance W2": line(pool(z), pool(reference), 2),
        "energy W1": line(a, b, 1),
        "energy W2": line(a, b, 2),
        "mean energy": float(a.mean()),
    }


def run(config: Config, key: jax.Array) -> tuple[dict, dict]:
    """Metrics of every arm, and the samples."""
    keys = jax.random.split(key, 4)
    warm, rate = molecular_samples(config, WARM, keys[0])
    start = time.perf_counter()
    model, scale = train(config, warm, keys[1])
    table: dict[str, dict[str, float]] = {}
    table["training"] = {"seconds": time.perf_counter() - start, "acceptance": rate}
    samples: dict[str, Any] = {}
    half = config.num_samples // 2
    cold, _ = molecular_samples(config, config.temperature, keys[2])
    table["warm, molecular samples"] = compare(warm[half:], warm[:half])
    table["cold, molecular samples"] = compare(cold[half:], cold[:half])
    table["cold, not annealed"] = compare(warm, cold)
    samples: dict[str, Any] = {"warm": warm, "molecular samples": cold}
    for i, arm in enumerate(("model", *ARMS)):
        start = time.perf_counter()
        is_warm = arm == "model"
        beta = 1.0 if is_warm else WARM / config.temperature
        name = "target score" if is_warm else arm
        found = anneal(config, model, name, beta, jax.random.fold_in(keys[3], i))
        samples[arm] = found["x"] * scale
        row = compare(samples[arm], warm if is_warm else cold)
        row |= {n: float(found[n]) for n in ("ess", "ancestors")}
        row["seconds"] = time.perf_counter() - start
        table[f"{'warm' if is_warm else 'cold'}, {arm}"] = row
    return table, samples


def report(table: dict) -> str:
    columns = [
        "distance W2",
        "energy W1",
        "energy W2",
        "mean energy",
        "ess",
        "ancestors",
        "seconds",
    ]
    lines = [f"{'':<36}" + "".join(f"{c:>13}" for c in columns)]
    for name, row in table.items():
        cells = [f"{row[c]:.3f}" if c in row else "-" for c in columns]
        lines.append(f"{name:<36}" + "".join(f"{cell:>13}" for cell in cells))
    return "\n".join(lines)


def record(config: Config, table: dict, seed: int) -> None:
    """Distances between the laws of distances and energies, for the page of figures."""
    columns = {"distances": "distance W2", "energies": "energy W2"}
    of = lambda arm, what: table[f"cold, {arm}"][columns[what]]
    best = "automatic zeta, FKC"
    record_figure(
        "diffusion/lennard_jones",
        what=f"{ATOMS} Lennard-Jones particles learned at T = {WARM:g}, annealed to {config.temperature:g}, W2 of distances and "
        "of energies",
        value={f"{arm}, {what}": of(arm, what) for arm in ARMS for what in columns},
        seeds=str(seed),
        claim={f"{best}, {what}": of("molecular samples", what) for what in columns},
        claimed_by="two halves of molecular samples",
        note=f"samples not annealed: {of('not annealed', 'distances'):.3f}, {of('not annealed', 'energies'):.1f}",
        measures=["inference/diffusion", "models/diffusion"],
    )


def draw(config: Config, samples: dict, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    shown = ["molecular samples", "target score", "target score, FKC", "automatic zeta, FKC"]
    energies = lambda name: np.clip(np.asarray(jax.vmap(energy)(samples[name])), -60, 60)
    for i, arm in enumerate(shown):
        pooled = np.asarray(jax.vmap(distances)(samples[arm])).ravel()
        style = {"color": "k", "lw": 2} if i == 0 else {"color": f"C{i - 1}"}
        options = {"density": True, "histtype": "step", "label": arm, **style}
        axes[0].hist(pooled, np.linspace(0.6, 4.0, 70), **options)
        axes[1].hist(energies(arm), np.linspace(-60, 60, 41), **options)
    warm = {"density": True, "alpha": 0.25, "color": "C7", "label": f"warm, T = {WARM:g}"}
    axes[1].hist(energies("warm"), np.linspace(-60, 60, 41), **warm)
    temperature = config.temperature
    axes[0].set(xlabel="distance between atoms", title=f"LJ-13 at T = {temperature:g}")
    axes[1].set(xlabel="energy (all above 60 in the last bin)")
    for axis in axes:
        axis.legend(frameon=False, fontsize=8)
        axis.set_yticks([])
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="LJ-13 annealed by a diffusion model.")
    parser.add_argument("--smoke", action="store_true", help="few samples, particles and steps")
    parser.add_argument("--temperature", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("lennard_jones_output"))
    options = parsed(parser, arguments)
    config = Config(400, 60, 8, 32, 20) if options.smoke else Config()
    config = config._replace(temperature=options.temperature)
    table, samples = run(config, jax.random.key(options.seed))
    text = report(table)
    print(text)
    (options.out / "report.txt").write_text(text + "\n")
    (options.out / "metrics.json").write_text(json.dumps(table, indent=1))
    best = {"z": np.asarray(samples["automatic zeta, FKC"])[None]}
    tree = arviz.from_dict({"posterior": best}, sample_dims=["chain", "draw"])
    tree.to_netcdf(options.out / "samples.nc")
    draw(config, samples, options.out / "lennard_jones.png")
    if options.record:
        record(config, table, options.seed)


if __name__ == "__main__":
    main()
