"""More compute for one sample: searching for what a verifier likes, beside sampling what it weighs.

What it shows: given a model q and a verifier r, best-of-N draws N points and keeps the one of largest r; zero-order search
changes one noise little by little, as long as r rises; search over paths goes back to more noise again and again, and forward
from where r promised most. Their laws move away from every tilt of q as N grows, to the verifier's maxima, errors of the
verifier included. Feynman-Kac steering with as many evaluations samples q(x) exp(r(x)), and comes nearer to that with every
particle. In a plane all can be compared with the exact tilt.

Data: four Gaussians in the plane; a verifier that prefers one of them but has a spurious maximum at the rim of another. Source:
Ma et al. 2025, arXiv:2501.09732, section 4 (search over noises, and "verifier hacking"); Singhal et al. 2025, arXiv:2501.06848
(steering).

Expected, total variation to the tilt: best-of-N is nearest at few trajectories, and moves away as N grows, until everything sits
at the verifier's maxima; so does zero-order search, with the largest verifier of all, and search over paths soonest. Steering
comes nearer with every particle, and is as near as exact draws but for some hundredths. Figures: docs/_data/figures,
diffusion/search. Run time: two minutes on 2 CPU cores.

    python examples/papers/diffusion/search.py [--smoke] [--seed 0] [--out search_output] [--record]
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import arviz
import jax
import jax.numpy as jnp
import numpy as np

from lapilli import inference
from lapilli.models import diffusion

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure

VP = diffusion.VP()
MEANS = np.array([[a, b] for a in (-1.5, 1.5) for b in (-1.5, 1.5)])
MODEL = diffusion.gaussian_mixture(VP, np.ones(4), MEANS, 0.16)
EDGES = np.linspace(-3.5, 3.5, 36)


class Config(NamedTuple):
    budgets: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)  # trajectories for one sample
    num_samples: int = 4_000
    num_steps: int = 60


def verifier(x: Any) -> Any:
    """In nats: 2 in the upper right mode, and a narrow peak of 6 at the outer rim of the lower left one."""
    good = 2 * jnp.exp(-jnp.sum((x - MEANS[3]) ** 2) / 1.5)
    spurious = 6 * jnp.exp(-jnp.sum((x - jnp.array([-2.4, -2.2])) ** 2) / 0.05)
    return good + spurious


def exact(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Masses of q and of q exp(r) in the cells of a grid, by 5 x 5 points a cell, [cells, cells]."""
    num = len(EDGES) - 1
    fine = np.linspace(EDGES[0], EDGES[-1], 10 * num + 1)[1::2]
    x = jnp.asarray(
        np.stack(np.meshgrid(fine, fine, indexing="ij"), -1).reshape(-1, 2), jnp.float32
    )
    both = jax.jit(jax.vmap(lambda x: (MODEL.log_density(x, VP.first), verifier(x))))
    log_q, reward = (np.asarray(v, float) for v in both(x))
    cells = lambda p: (p / p.sum()).reshape(num, 5, num, 5).sum((1, 3))
    return cells(np.exp(log_q)), cells(np.exp(log_q + reward))


def best_of(config: Config, budget: int, key: jax.Array) -> jax.Array:
    """[samples, 2]: of `budget` draws of the model the one that the verifier likes best."""
    times = VP.times(config.num_steps)
    x = diffusion.ancestral(MODEL, key, times, num_samples=budget * config.num_samples)
    x = x.reshape(config.num_samples, budget, 2)
    best = jnp.argmax(jax.vmap(jax.vmap(verifier))(x), 1)
    return jnp.take_along_axis(x, best[:, None, None], 1)[:, 0]


def many(one: Any, config: Config, key: jax.Array) -> jax.Array:
    """[samples, 2]: a search for each start."""
    keys = jax.random.split(key, config.num_samples)
    starts = MODEL.prior().sample(jax.random.fold_in(key, 1), (config.num_samples,))
    return jax.vmap(one)(keys, starts).sample


def zero_order(config: Config, budget: int, key: jax.Array) -> jax.Array:
    """[samples, 2]: a noise is moved `budget` - 1 times, and stays moved where the verifier likes its sample (by DDIM) better."""
    times = VP.times(config.num_steps)

    def end(noise: jax.Array) -> jax.Array:
        return diffusion.ddim(MODEL, key, times, num_samples=1, start=noise[None])[0]

    if budget == 1:
        return jax.vmap(end)(MODEL.prior().sample(key, (config.num_samples,)))
    search = lambda k, x: inference.search.zero_order(end, verifier, k, x, num_steps=budget - 1)
    return many(search, config, key)


def over_paths(config: Config, budget: int, key: jax.Array) -> jax.Array:
    """[samples, 2]: at t = 0.7, 0.4, 0.1 `budget` copies get noise up to t + 0.1 and are denoised; the most promising goes on."""

    def denoised(x: jax.Array, first: float, last: float) -> jax.Array:
        steps = max(1, round((first - last) * config.num_steps))
        times = np.linspace(first, last, steps + 1)
        return diffusion.ddim(MODEL, key, times, num_samples=1, start=x[None])[0]

    def renoised(key: jax.Array, x: jax.Array, t: float) -> jax.Array:
        kept = VP.alpha(t + 0.1) / VP.alpha(t)
        scale = jnp.sqrt(VP.variance(t + 0.1) - kept**2 * VP.variance(t))
        return kept * x + scale * jax.random.normal(key, x.shape)

    levels = (0.7, 0.4, 0.1, float(VP.first))
    search = lambda k, x: inference.search.over_paths(
        renoised, lambda x, t, s: denoised(x, t + 0.1, s), lambda x, s: verifier(MODEL.denoise(x, s)),
        k, denoised(x, 1.0, levels[0]), levels, num_copies=budget,
    )  # fmt: skip
    return many(search, config, key)


def steered(config: Config, budget: int, key: jax.Array) -> jax.Array:
    """[samples, 2]: one particle, drawn by its weight, of each of so many runs of `budget` particles."""
    model = inference.diffusion.fk_steering(MODEL, VP.times(config.num_steps), verifier)

    def one(key: jax.Array) -> jax.Array:
        run_key, draw_key = jax.random.split(key)
        result = inference.smc(model, run_key, num_particles=budget, history="none")
        return result.sample(draw_key, 1).x[0]

    return jax.vmap(one)(jax.random.split(key, config.num_samples))


METHODS = {
    "best of N": best_of,
    "zero order": zero_order,
    "paths": over_paths,
    "steering": steered,
}


def run(config: Config, key: jax.Array) -> tuple[dict, dict]:
    base, tilted = exact(config)
    rows: dict[str, dict[str, float]] = {
        "total variation of q itself": {"tilt": float(np.abs(base - tilted).sum() / 2)}
    }
    rng = np.random.default_rng(0)
    fair = rng.multinomial(config.num_samples, tilted.ravel()).reshape(tilted.shape)
    rows["exact draws"] = {"tilt": float(np.abs(fair / fair.sum() - tilted).sum() / 2)}
    samples: dict[str, Any] = {"exact": tilted}
    for i, budget in enumerate(config.budgets):
        for j, (name, method) in enumerate(METHODS.items()):
            run_key = jax.random.fold_in(key, len(METHODS) * i + j)
            x = np.asarray(jax.jit(lambda k, m=method, b=budget: m(config, b, k))(run_key))
            counts = np.histogram2d(*x.T, bins=[EDGES, EDGES])[0] / len(x)
            score = float(jnp.mean(jax.vmap(verifier)(x)))
            tilt = float(np.abs(counts - tilted).sum() / 2)
            rows[f"{name}, N = {budget}"] = {"tilt": tilt, "verifier": score}
            samples[f"{name}, N = {budget}"] = x
    return rows, samples


def report(rows: dict) -> str:
    lines = [f"{'':<30}{'TV to q exp(r)':>16}{'mean verifier':>16}"]
    for name, row in rows.items():
        cells = [f"{row[c]:.3f}" if c in row else "-" for c in ("tilt", "verifier")]
        lines.append(f"{name:<30}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def record(config: Config, rows: dict, seed: int) -> None:
    """Distances to the tilt, for the page of figures."""
    most = config.budgets[-1]
    least = {
        name: min(config.budgets, key=lambda n, name=name: rows[f"{name}, N = {n}"]["tilt"])
        for name in METHODS
    }
    record_figure(
        "diffusion/search",
        what=f"more compute for a sample, total variation to q exp(r) at {most} trajectories for each of "
        f"{config.num_samples:,} samples",
        value={name: rows[f"{name}, N = {most}"]["tilt"] for name in METHODS},
        seeds=str(seed),
        claim={"steering": rows["exact draws"]["tilt"]},
        claimed_by="exact draws",
        note="each at its best number of trajectories: "
        + "; ".join(f"{k} {rows[f'{k}, N = {n}']['tilt']:.3f} at {n}" for k, n in least.items()),
        measures=["inference/diffusion", "inference/search", "models/diffusion"],
    )


def draw(config: Config, rows: dict, samples: dict, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    middle = (EDGES[1:] + EDGES[:-1]) / 2
    for axis, name in zip(axes, ("best of N", "steering"), strict=False):
        key = f"{name}, N = {config.budgets[-1]}"
        axis.plot(*samples[key].T, ".", ms=1.5, alpha=0.4)
        levels = samples["exact"].max() * np.array([0.02, 0.1, 0.4])
        axis.contour(middle, middle, samples["exact"].T, levels=levels, colors="k", linewidths=0.8)
        axis.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", title=f"{key}; lines: exact tilt")
    for name in METHODS:
        values = [rows[f"{name}, N = {n}"]["tilt"] for n in config.budgets]
        axes[2].plot(config.budgets, values, "-o", label=name)
    axes[2].axhline(rows["exact draws"]["tilt"], color="C7", ls=":", label="exact draws")
    axes[2].set(
        xscale="log", xlabel="trajectories for one sample", ylabel="total variation to the tilt"
    )
    axes[2].set_xticks(config.budgets, labels=map(str, config.budgets))
    axes[2].minorticks_off()
    axes[2].legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Search and steering beside the exact tilt.")
    parser.add_argument("--smoke", action="store_true", help="small budgets, few samples and steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("search_output"))
    options = parsed(parser, arguments)
    config = Config((1, 16), 2_000, 40) if options.smoke else Config()
    rows, samples = run(config, jax.random.key(options.seed))
    text = report(rows)
    print(text)
    (options.out / "report.txt").write_text(text + "\n")
    (options.out / "metrics.json").write_text(json.dumps(rows, indent=1))
    kept = {n.replace(" ", "_"): x[None] for n, x in samples.items() if n != "exact"}
    tree = arviz.from_dict({"posterior": kept}, sample_dims=["chain", "draw"])
    tree.to_netcdf(options.out / "samples.nc")
    draw(config, rows, samples, options.out / "search.png")
    if options.record:
        record(config, rows, options.seed)


if __name__ == "__main__":
    main()
