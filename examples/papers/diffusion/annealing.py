"""Colder mixtures from a warm diffusion model: how much noise, and with weights or without?

What it shows: a diffusion model of a 40-mode mixture (exact scores, variance-exploding noise) is annealed to the inverse
temperature 3, q^3, by `inference.diffusion.fkc`. Simulated alone, the annealed drift misses the target; the weights of a
Feynman-Kac corrector mend that, if the noise scale zeta leaves them a variance: zeta^2 > 2 (1 - 1/3). Both settings of the
paper lie below that bound: the target score (zeta = 1) and tempered noise (zeta = 3^-1/2). `zeta="auto"` lies above it. Here
the target is a mixture again, so that samples, and the log of its normalising constant, can be compared with the exact ones.
Beside these: a drift fitted by a pilot run (`control=`), which takes the weights of each mode away and with them the bound on the
noise, and replica exchange along a tenth of the steps.
Two toys follow: four modes annealed to 10, and the product of two models that share no mode.

Source: Skreta et al. 2025, arXiv:2503.02819, section 5.1 and figures 1 and 2 (40 modes; 10,000 particles, 1,000 steps, Euler
weights, resampling at each step, which the paper's two settings have here as well). Their finding: with weights better than
without; target score best; tempered noise drops modes. The means here are drawn anew (numpy, seed 0), so that numbers compare
between rows, not with the paper.

Expected: with weights all are nearer to exact draws than without; of the paper's two settings target score is ahead, and tempered
noise keeps 30 of 40 modes: the paper's finding. Automatic noise with weights is the nearest of these by far, has all modes, and
log Z right to some hundredths of a nat, where tempered noise, whose weights have an infinite variance, is off by nats. With a
control tempered noise is as good as the automatic one, which gains as well; replica exchange is level with them. Figures:
docs/_data/figures, diffusion/annealing. Run time: five minutes on 2 CPU cores.

    python examples/papers/diffusion/annealing.py [--smoke] [--seed 0] [--out annealing_output] [--record]
"""

import argparse
import functools
import json
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import ot
from scipy.special import logsumexp

from lapilli import inference
from lapilli.inference import evaluation
from lapilli.inference.particles import resampling
from lapilli.models import diffusion

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure

BETA = 3.0
MEANS = np.random.default_rng(0).uniform(-40, 40, (40, 2)) / 50
SCALE = 2.127 / 50  # softplus(2) / 50
NOISING = diffusion.VE(sigma_min=0.01, sigma_max=10.0)
WARM = diffusion.gaussian_mixture(NOISING, np.ones(40), MEANS, SCALE**2)
# Noise scale, weights, when particles are resampled, and whether a drift is fitted: as in the paper, and as `fkc` and `smc`
# choose by themselves.
ARMS = {
    "target score": (1.0, "euler", resampling.never(), False),
    "tempered noise": (BETA**-0.5, "euler", resampling.never(), False),
    "automatic zeta": ("auto", "auto", resampling.never(), False),
    "target score, FKC": (1.0, "euler", resampling.every(1), False),
    "tempered noise, FKC": (BETA**-0.5, "euler", resampling.every(1), False),
    "automatic zeta, FKC": ("auto", "auto", None, False),
    "tempered noise, control, FKC": (BETA**-0.5, "auto", None, True),
    "automatic zeta, control, FKC": ("auto", "auto", None, True),
}
EXCHANGE = "replica exchange"


class Config(NamedTuple):
    num_particles: int = 10_000
    num_steps: int = 1_000
    num_seeds: int = 5
    num_compared: int = 1_000  # samples in a transport distance
    num_ladders: int = 50  # of replica exchange, with as many draws as particles
    num_levels: int = 100  # of a ladder, steps of the sampler


def cold_mixture() -> tuple[float, np.ndarray, np.ndarray, float]:
    """q^3 in closed form: its integral's log, and means, weights and scale of its components, one for each triple of modes."""
    triples = np.stack(np.meshgrid(*[np.arange(40)] * 3, indexing="ij"), -1).reshape(-1, 3)
    chosen = MEANS[triples]
    means = chosen.mean(1)
    spread = ((chosen - means[:, None]) ** 2).sum((1, 2))
    # Normal(x; a) Normal(x; b) Normal(x; c) = Normal(x; mean, v / 3) exp(-spread / 2v) / (3 (2 pi v)^2) in two dimensions.
    logs = -spread / (2 * SCALE**2) - np.log(3 * (2 * np.pi * SCALE**2) ** 2) - 3 * np.log(40)
    log_z = float(logsumexp(logs))
    return log_z, means, np.exp(logs - log_z), SCALE / np.sqrt(3)


def exact_draws(num: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    _, means, weights, scale = cold_mixture()
    return rng.normal(means[rng.choice(len(means), num, p=weights)], scale)


def run_arm(name: str, config: Config, key: jax.Array) -> dict[str, np.ndarray]:
    """Samples [seeds, particles, 2], log evidence and effective sample size of one arm."""
    zeta, weights, policy, has_control = ARMS[name]
    times = np.linspace(1.0, 0.0, config.num_steps + 1)
    with warnings.catch_warnings():
        # What the warning says of the paper's settings is what the table shows.
        warnings.filterwarnings("ignore", message="fkc: .* infinite variance")
        model = inference.diffusion.fkc(
            WARM, times, exponents=BETA, zeta=zeta, weights=weights, control=drift(key) if has_control else None
        )  # fmt: skip

    def one(key: jax.Array) -> dict[str, jax.Array]:
        run_key, draw_key = jax.random.split(key)
        result = inference.smc(
            model, run_key, num_particles=config.num_particles, policy=policy, history="ancestors"
        )
        drawn = result.sample(draw_key, config.num_particles)
        return {
            "x": (drawn if "FKC" in name else result.particles).x,
            "log_evidence": result.log_evidence,
            "ess": result.ess.min() / config.num_particles,
            "ancestors": inference.particles.unique_ancestors(result)[0],
        }

    found = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(key, config.num_seeds))
    return {name: np.asarray(value) for name, value in found.items()}


def run_exchange(config: Config, key: jax.Array) -> dict[str, np.ndarray]:
    """The same by replica exchange along fewer steps, with a fitted drift; half of the sweeps are left out."""
    times = np.linspace(1.0, 0.0, config.num_levels + 1)
    model = inference.diffusion.fkc(WARM, times, exponents=BETA, zeta=1.0, control=drift(key))
    num_sweeps = config.num_particles // config.num_ladders

    def one(key: jax.Array) -> dict[str, jax.Array]:
        result = inference.diffusion.replica_exchange(
            model, key, num_sweeps=num_sweeps, num_chains=config.num_ladders, num_burn_in=num_sweeps
        )
        return {"x": result.x.reshape(-1, 2), "log_evidence": result.log_evidence}

    found = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(key, config.num_seeds))
    return {name: np.asarray(value) for name, value in found.items()}


def drift(key: jax.Array) -> inference.diffusion.DriftControl:
    """Fitted once for all seeds, by a run of its own."""
    return inference.diffusion.DriftControl(jax.random.fold_in(key, 1))


def distances(x: np.ndarray, reference: np.ndarray, num: int) -> dict[str, float]:
    """W1 and W2 by exact transport and MMD^2 of `num` points each, total variation of 25 x 25 cells, W2 between energies."""
    rng = np.random.default_rng(0)
    a, b = (points[rng.choice(len(points), num, replace=False)] for points in (x, reference))
    uniform = np.full(num, 1 / num)
    cost = ot.dist(a, b)
    edges = np.linspace(-1, 1, 26)
    histogram = lambda points: np.histogram2d(*points.T, bins=[edges, edges])[0] / len(points)
    cells = np.abs(histogram(x) - histogram(reference)).sum() / 2
    energy = lambda points: -np.asarray(jax.vmap(lambda p: WARM.log_density(p, 0.0))(points)) * BETA
    return {
        "W1": float(ot.emd2(uniform, uniform, np.sqrt(cost), numItermax=1_000_000)),
        "W2": float(np.sqrt(ot.emd2(uniform, uniform, cost, numItermax=1_000_000))),
        "MMD^2": evaluation.kernel_distance(b, a, kernel=gaussians).value,
        "TV": float(cells),
        "energy W2": float(np.sqrt(ot.wasserstein_1d(energy(x), energy(reference), p=2))),
    }


def gaussians(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean of ten kernels exp(-|x - y|^2 / 2 h^2), h from 0.01 to 1, [rows of a, rows of b]."""
    squares = ot.dist(a, b)
    return np.mean([np.exp(-0.5 * squares / h**2) for h in np.logspace(-2, 0, 10)], 0)


def modes_found(x: np.ndarray) -> int:
    """Modes of the cold mixture that hold at least a tenth of their share of the samples."""
    nearest = np.argmin(((x[:, None] - MEANS) ** 2).sum(-1), 1)
    _, means, weights, _ = cold_mixture()
    home = np.argmin(((means[:, None] - MEANS) ** 2).sum(-1), 1)
    share = np.bincount(home, weights, 40)
    return int((np.bincount(nearest, minlength=40) / len(x) > 0.1 * share).sum())


def run(config: Config, key: jax.Array) -> dict[str, dict[str, list[float]]]:
    """Metrics of every arm, seed by seed; the row "exact draws" compares two sets of exact samples."""
    log_z = cold_mixture()[0]
    reference = [exact_draws(config.num_particles, 1 + s) for s in range(config.num_seeds)]
    table: dict[str, dict[str, list[float]]] = {}
    samples = {}
    for name in ("exact draws", *ARMS, EXCHANGE):
        start = time.perf_counter()
        if name == "exact draws":
            x = np.stack(
                [exact_draws(config.num_particles, 100 + s) for s in range(config.num_seeds)]
            )
            extra = {}
        else:
            # One key for all arms: they start from the same points.
            found = run_exchange(config, key) if name == EXCHANGE else run_arm(name, config, key)
            x, extra = found["x"], {}
            if name != EXCHANGE:
                extra["ancestors"] = found["ancestors"].tolist()
            if "FKC" in name or name == EXCHANGE:
                extra["log Z error"] = (found["log_evidence"] - log_z).tolist()
        rows = [distances(x[s], reference[s], config.num_compared) for s in range(len(x))]
        table[name] = {key: [row[key] for row in rows] for key in rows[0]}
        table[name] |= {"modes": [modes_found(points) for points in x]} | extra
        table[name]["seconds"] = [time.perf_counter() - start]
        samples[name] = x
    table["samples"] = samples  # pyright: ignore
    return table


# The two toys.

FOUR = np.array([[a, b] for a in (-1.5, 1.5) for b in (-1.5, 1.5)])
VP = diffusion.VP()
TOYS = {
    "four modes, annealed to 10": (
        lambda: inference.diffusion.fkc(
            diffusion.gaussian_mixture(VP, np.ones(4), FOUR, 0.16), np.linspace(1, 0, 1001), exponents=10.0
        ),
        FOUR,
    ),
    "upper modes times lower modes": (
        lambda: inference.diffusion.fkc(
            [diffusion.gaussian_mixture(VP, np.ones(2), FOUR[rows], 0.16) for rows in ([1, 3], [0, 2])],
            np.linspace(1, 0, 1001),
        ),
        np.array([[-1.5, 0.0], [1.5, 0.0]]),
    ),
}  # fmt: skip


def toy(name: str, key: jax.Array, num_particles: int = 10_000) -> tuple[np.ndarray, np.ndarray]:
    """Samples, and the share of the weight that is nearest to each mode."""
    make, modes = TOYS[name]
    model = make()
    result = jax.jit(
        functools.partial(inference.smc, model, num_particles=num_particles, history="none")
    )(key)
    nearest = lambda p: jax.nn.one_hot(jnp.argmin(((p.x - modes) ** 2).sum(-1)), len(modes))
    return np.asarray(result.sample(key, num_particles).x), np.asarray(result.mean(nearest))


def report(table: dict, toys: dict) -> str:
    columns = ["W1", "W2", "MMD^2", "TV", "energy W2", "modes", "log Z error", "ancestors"]
    lines = [f"{'40 modes annealed to 3':<29}" + "".join(f"{c:>19}" for c in columns)]
    for name, row in table.items():
        cells = [
            f"{np.mean(row[c]):8.3f} +-{np.std(row[c]):6.3f}" if c in row else "-" for c in columns
        ]
        lines.append(f"{name:<29}" + "".join(f"{cell:>19}" for cell in cells))
    for name, (_, shares) in toys.items():
        lines.append(f"{name}: shares of the modes {np.round(shares, 3).tolist()}")
    return "\n".join(lines)


def record(table: dict, config: Config) -> None:
    """The distances, for the page of figures."""
    rows = {f"{arm}, {c}": table[arm][c] for arm in (*ARMS, EXCHANGE) for c in ("W2", "TV")}
    errors = {arm: row["log Z error"] for arm, row in table.items() if "log Z error" in row}
    record_figure(
        "diffusion/annealing",
        what="40 modes annealed to a third of their temperature, W2 and total variation to exact draws; spread: standard "
        "deviation over seeds",
        value={name: np.mean(row) for name, row in rows.items()},
        spread={name: np.std(row, ddof=1) for name, row in rows.items()},
        seeds=config.num_seeds,
        claim={f"automatic zeta, FKC, {c}": np.mean(table["exact draws"][c]) for c in ("W2", "TV")},
        claimed_by="another set of exact draws",
        note="mean error of log Z, nats: " + "; ".join(f"{n} {np.mean(e):+.2f}" for n, e in errors.items())
        + "; of target score and tempered noise without a control its variance is infinite",
        measures=["inference/diffusion", "models/diffusion"],
    )  # fmt: skip


def draw(samples: dict, toys: dict, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(14, 7), layout="constrained")
    panels = ["target score", "tempered noise", "automatic zeta", "exact draws"]
    for axis, name in zip(axes[0], panels, strict=True):
        axis.set_title(name if name == "exact draws" else f"{name}, no weights", fontsize=10)
        axis.plot(
            *samples[name][0].T,
            ".",
            ms=1.5,
            color="C7" if name == "exact draws" else "C1",
            alpha=0.5,
        )
    for axis, name in zip(axes[1], panels[:3], strict=False):
        axis.set_title(f"{name}, FKC", fontsize=10)
        axis.plot(*samples[f"{name}, FKC"][0].T, ".", ms=1.5, color="C0", alpha=0.5)
    for axis in [*axes[0], *axes[1][:3]]:
        axis.plot(*MEANS.T, "k+", ms=4, mew=0.5)
        axis.set(xlim=(-0.95, 0.95), ylim=(-0.95, 0.95), xticks=[], yticks=[], aspect="equal")
    for i, (name, (x, _)) in enumerate(toys.items()):
        axes[1][3].plot(*x.T, ".", ms=2, alpha=0.5, label=name, color=f"C{i + 2}")
    axes[1][3].plot(*FOUR.T, "k+", ms=6)
    axes[1][3].set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xticks=[], yticks=[], aspect="equal")
    axes[1][3].legend(fontsize=7, frameon=False, loc="upper center")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Annealed mixtures with and without weights.")
    parser.add_argument("--smoke", action="store_true", help="few particles, steps and seeds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("annealing_output"))
    options = parsed(parser, arguments)
    config = Config(400, 150, 2, 300, 20, 60) if options.smoke else Config()
    key = jax.random.key(options.seed)
    table = run(config, key)
    samples = table.pop("samples")
    toys = {name: toy(name, jax.random.fold_in(key, 100 + i)) for i, name in enumerate(TOYS)}
    text = report(table, toys)
    print(text)
    (options.out / "report.txt").write_text(text + "\n")
    shares = {name: found.tolist() for name, (_, found) in toys.items()}
    (options.out / "metrics.json").write_text(json.dumps(table | {"shares": shares}, indent=1))
    best = {"x": samples["automatic zeta, FKC"]}
    tree = arviz.from_dict({"posterior": best}, sample_dims=["chain", "draw"])
    tree.to_netcdf(options.out / "samples.nc")
    draw(samples, toys, options.out / "annealing.png")
    if options.record:
        record(table, config)


if __name__ == "__main__":
    main()
