"""Sampling a density from its energy alone: a diffusion that learns to reach nine modes, under four losses.

What it shows: a continuous GFlowNet. Paths start at 0 and take 32 Gaussian steps, whose drift and width a network learns from
R alone (no draws of the target are ever seen); the path measure that it should match is Brownian motion reweighted at its end.
The same two programs are trained by the reverse KL, whose gradient passes through the paths (path integral sampler), by
trajectory balance (TB), for which paths are data, on and off the policy, and by sub-trajectory balance with forward-looking
flows (FL-SubTB), which learns a flow besides. However well a sampler is trained, its importance weights are exact, so that each
estimate of log Z (true value: 0) is known to be unbiased for Z.

- ELBO: mean log-weight, nats; log Z minus the KL of paths.
- log Z: of the mean weight of 4,000 paths.
- modes: of 9, how many get at least half of their share.
- W2: optimal transport between 1,000 draws and 1,000 exact ones (two exact sets are some way apart, too).

Source: Lahlou et al. 2023, "A theory of continuous generative flow networks", arXiv:2301.12594; Sendera et al. 2024, "Improved
off-policy training of diffusion samplers", arXiv:2402.05098, whose claim is that exploration makes samplers better.

Expected: all losses find the nine modes, which lie within reach of Brownian motion. TB on the policy comes closest (W2 as of
exact draws), then the pathwise KL by its ELBO, FL-SubTB by W2. The paper's claim does not show: wider paths bring TB nothing but
weights that vary most, since there is nothing left to find. log Z is near 0 by the weights of the others. Figures:
docs/_data/figures, gflownets/energy_sampler. Run time: 2 minutes on 2 CPU cores.

    python examples/papers/gflownet/energy_sampler.py [--smoke] [--seed 0] [--out energy_sampler_output] [--record]
"""

import argparse
import itertools
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

from lapilli import inference
from lapilli.models import gflownet

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure

MODES = jnp.array(list(itertools.product((-5.0, 0.0, 5.0), repeat=2)))
SD = 0.3**0.5


class Config(NamedTuple):
    """Sizes of a run."""

    num_steps: int = 2_000
    num_paths: int = 128
    num_times: int = 32
    num_draws: int = 4_000
    num_transported: int = 1_000


class Row(NamedTuple):
    """One loss: draws at the end of paths, their log-weights, seconds of training, the fit."""

    draws: np.ndarray
    log_weights: np.ndarray
    seconds: float
    fit: inference.Fit


def log_density(x):
    """Log of the mixture of nine equal modes; Z = 1."""
    return jax.nn.logsumexp(dist.Normal(MODES, SD).log_prob(x).sum(-1)) - np.log(len(MODES))


def exact(key, num_draws: int) -> np.ndarray:
    mode_key, key = jax.random.split(key)
    modes = MODES[jax.random.randint(mode_key, (num_draws,), 0, len(MODES))]
    return np.asarray(modes + SD * jax.random.normal(key, modes.shape))


METHODS = {
    "pathwise KL": ("total", None),
    "TB": ("total", lambda s, n: s.balance(gflownet.trajectory_balance("huber"), num_paths=n)),
    "TB, wider paths": (
        "total",
        lambda s, n: s.balance(gflownet.trajectory_balance("huber"), num_paths=n, noise=1.1),
    ),
    "FL-SubTB": ("network", lambda s, n: s.balance(gflownet.subtrajectory_balance(), num_paths=n)),
}


def run(name: str, config: Config, key) -> Row:
    net_key, fit_key, draw_key = jax.random.split(key, 3)
    flow, balance = METHODS[name]
    sampler = gflownet.diffusion_sampler(
        log_density, 2, num_steps=config.num_times, scale=4.5, flow=flow,
        forward_looking=flow == "network", key=net_key,
    )  # fmt: skip
    rate = optax.cosine_decay_schedule(2e-3, config.num_steps)
    rates = {"control": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))}
    if balance is None:
        objective = inference.elbo(sampler.target, sampler.forward, num_replicates=config.num_paths)
    else:
        objective = balance(sampler, config.num_paths)
    rates |= {"log_z": optax.adam(0.1)} if flow == "total" else {"flow": optax.adam(rate)}
    begin = time.perf_counter()
    fit = inference.fit(objective, rates, (), num_steps=config.num_steps, key=fit_key)
    seconds = time.perf_counter() - begin
    forward = sampler.forward.bind(fit.params)
    paths = jax.jit(jax.vmap(forward.simulate))(jax.random.split(draw_key, config.num_draws))
    process = jax.jit(sampler.log_weight_process)(fit.params, paths.choices["x"])
    return Row(np.asarray(paths.retval), np.asarray(process.log_weight), seconds, fit)


def num_modes(draws: np.ndarray) -> int:
    nearest = ((draws[:, None] - np.asarray(MODES)) ** 2).sum(-1).argmin(1)
    shares = np.bincount(nearest, minlength=len(MODES)) / len(draws)
    return int((shares > 0.5 / len(MODES)).sum())


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """W2."""
    import ot

    return float(np.sqrt(ot.emd2([], [], ot.dist(one, other))))


def evidence(row: Row) -> tuple[float, float]:
    """Log of the mean weight, and its standard error."""
    weights = np.exp(row.log_weights - row.log_weights.max())
    error = weights.std() / weights.mean() / np.sqrt(len(weights))
    return float(np.log(weights.mean()) + row.log_weights.max()), float(error)


def report(rows: dict[str, Row], config: Config, key) -> str:
    num = config.num_transported
    reference, again = (exact(k, num) for k in jax.random.split(key))
    lines = [f"{'':16} {'ELBO':>7} {'log Z':>7} {'error':>6} {'modes':>6} {'W2':>6} {'s':>5}"]
    for name, row in rows.items():
        log_z, error = evidence(row)
        lines.append(
            f"{name:16} {row.log_weights.mean():7.2f} {log_z:7.2f} {error:6.2f} {num_modes(row.draws):6d} "
            f"{distance(row.draws[:num], reference):6.2f} {row.seconds:5.0f}"
        )
    lines.append(
        f"{'exact draws':16} {0:7.2f} {0:7.2f} {'':6} {9:6d} {distance(again, reference):6.2f}"
    )
    return "\n".join(lines)


def record(rows: dict[str, Row], config: Config, seed: int) -> None:
    """Bounds and evidences, for the page of figures."""
    error = lambda row: row.log_weights.std() / np.sqrt(len(row.log_weights))
    evidences = {name: evidence(row) for name, row in rows.items()}
    record_figure(
        "gflownets/energy_sampler",
        what=f"nine modes in the plane from their energy alone, {config.num_steps:,} steps, ELBO in nats, by loss (log Z is 0); "
        "spread: standard error",
        value={name: row.log_weights.mean() for name, row in rows.items()},
        spread={name: error(row) for name, row in rows.items()},
        seeds=str(seed),
        note="log Z by their weights: "
        + "; ".join(f"{name} {value:+.2f} ± {e:.2f}" for name, (value, e) in evidences.items()),
        digits=2,
        measures=["models/gflownet"],
    )


def draw(rows: dict[str, Row], out: Path, key) -> None:
    from matplotlib import pyplot as plt

    panels = {name: row.draws for name, row in rows.items()} | {"exact": exact(key, 1_000)}
    figure, axes = plt.subplots(
        1, len(panels), figsize=(2.4 * len(panels), 3.2), sharex=True, sharey=True, layout="constrained"
    )  # fmt: skip
    for axis, (name, draws) in zip(axes, panels.items(), strict=True):
        axis.plot(*draws[:1_000].T, ".", ms=2, color="C0" if name != "exact" else "0.3")
        axis.plot(*np.asarray(MODES).T, "+", color="C3", ms=8)
        bound = (
            f"bound {rows[name].log_weights.mean():.2f} nats"
            if name in rows
            else "draws of the target"
        )
        axis.set_title(f"{name}\n{bound}", fontsize=10)
        axis.set(xlim=(-8, 8), ylim=(-8, 8), aspect="equal", xlabel="x")
    axes[0].set_ylabel("y")
    figure.suptitle(
        "Nine modes (red) found from their energy alone: 1,000 draws by each loss; the true log Z is 0"
    )
    figure.savefig(out / "energy_sampler.png", dpi=100)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A diffusion that samples nine modes.")
    parser.add_argument("--smoke", action="store_true", help="few steps, few paths")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("energy_sampler_output"))
    options = parsed(parser, arguments)
    config = Config(20, 8, 4, 200, 100) if options.smoke else Config()
    key, exact_key = jax.random.split(jax.random.key(options.seed))
    rows = {name: run(name, config, key) for name in METHODS}
    text = report(rows, config, exact_key)
    (options.out / "report.txt").write_text(text + "\n")
    print(text)
    draw(rows, options.out, exact_key)
    tree = inference.to_arviz(rows["TB"].fit, key=exact_key, num_samples=200)
    tree.to_netcdf(options.out / "posterior.nc")
    if options.record:
        record(rows, config, options.seed)


if __name__ == "__main__":
    main()
