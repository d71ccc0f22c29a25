"""Digits at half their temperature: q(x)^2 from a diffusion model of q, exact or learned.

What it shows: a colder law has fewer oddities, and other shares: classes that are spread out lose to those whose images are
alike. Doubling the score finds images of the right kind, but leaves the shares as they were; the weights of
`inference.diffusion.fkc` mend them. Here q is a Gaussian mixture of digits, whose square is a mixture again, so that shares,
energies and the normalising constant can be compared with exact ones; then the same from a network that learned q from draws.

Data: scikit-learn's digits, 8 x 8 pixels, 20 principal components, three Gaussians for each class. Source: Skreta et al. 2025,
arXiv:2503.02819, proposition 3.2 (annealing; there molecules and a mixture, no number for digits is published).

Expected, total variation between the shares of the classes: doubled scores are as far off as warm draws; weights at zeta = 1,
which lies on the bound of finite variance, mend a part of that, with a large error of log Z that differs from run to run; weights
under automatic noise mend nearly all, and log Z is right to a tenth of a nat. From the network it is the same, with log Z a nat
short. Figures: docs/_data/figures, diffusion/cold_digits. Run time: two minutes on 2 CPU cores.

    python examples/papers/diffusion/cold_digits.py [--smoke] [--seed 0] [--out cold_digits_output] [--record]
"""

import functools
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import _digit_mixture as digit_mixture
import _digit_models as digit_models
import jax
import numpy as np
from _digit_mixture import Mixture
from _digit_models import CLASSES, VP
from scipy.special import logsumexp
from scipy.stats import wasserstein_distance

from lapilli import inference


class Config(NamedTuple):
    num_particles: int = 2_000
    num_steps: int = 300
    num_seeds: int = 3
    num_axes: int = 20
    width: int = 192
    num_training_steps: int = 6_000


BETA = 2.0
ARMS = {  # noise scale, and whether the weights are used
    "scores doubled": (1.0, False),
    "FKC, zeta = 1": (1.0, True),
    "FKC, automatic zeta": ("auto", True),
}


def squared(warm: Mixture) -> tuple[float, Mixture]:
    """Log of the integral of q^2, and q^2: one Gaussian for each pair of q's."""
    a, b = np.divmod(np.arange(len(warm.weights) ** 2), len(warm.weights))
    variances = 1 / (1 / warm.variances[a] + 1 / warm.variances[b])
    means = variances * (warm.means[a] / warm.variances[a] + warm.means[b] / warm.variances[b])
    # Normal(x; m, v) Normal(x; m', v') integrates to Normal(m; m', v + v').
    both = warm.variances[a] + warm.variances[b]
    square = (warm.means[a] - warm.means[b]) ** 2 / both + np.log(2 * np.pi * both)
    logs = np.log(warm.weights[a] * warm.weights[b]) - 0.5 * square.sum(-1)
    log_z = float(logsumexp(logs))
    return log_z, warm._replace(weights=np.exp(logs - log_z), means=means, variances=variances)


def anneal(config: Config, model: Any, arm: str, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Equally weighted draws [seeds, particles, axes], and log evidences [seeds]."""
    zeta, is_weighted = ARMS[arm]
    with warnings.catch_warnings():
        # zeta = 1 lies at the bound of finite variance, which is what its row shows.
        warnings.filterwarnings("ignore", message="fkc: .* infinite variance")
        target = inference.diffusion.fkc(
            model, VP.times(config.num_steps), exponents=BETA, zeta=zeta
        )
    policy = None if is_weighted else inference.particles.resampling.never()
    smc = functools.partial(
        inference.smc, target, num_particles=config.num_particles, policy=policy, history="none"
    )

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        run_key, draw_key = jax.random.split(key)
        result = smc(run_key)
        drawn = result.sample(draw_key, config.num_particles) if is_weighted else result.particles
        return drawn.x, result.log_evidence

    keys = jax.random.split(key, config.num_seeds)
    x, log_evidence = jax.jit(lambda keys: jax.lax.map(one, keys))(keys)
    return np.asarray(x, float), np.asarray(log_evidence, float)


def table(config: Config, key: jax.Array) -> tuple[dict[str, dict[str, list[float]]], dict]:
    warm = digit_mixture.fitted(3, config.num_axes)
    log_z, cold = squared(warm)
    rng = np.random.default_rng(0)
    per_class = lambda z: warm.shares(z).reshape(CLASSES, -1).sum(1)
    log_q = lambda z: logsumexp(warm.log_parts(z), axis=-1)
    reference = cold.draws(20_000, rng)
    classes, energies = per_class(reference), -log_q(reference)

    def row(z: np.ndarray) -> dict[str, float]:
        spread = ((z - z.mean(0)) ** 2).sum(1).mean() / reference.var(0).sum()
        return {
            "classes": float(np.abs(per_class(z) - classes).sum() / 2),
            "energy W1": float(wasserstein_distance(-log_q(z), energies)),
            "spread": float(np.sqrt(spread)),
        }

    models = {
        "exact": warm.model(),
        "learned": digit_mixture.learned(
            warm,
            jax.random.fold_in(key, 0),
            width=config.width,
            num_steps=config.num_training_steps,
        ),
    }
    found: dict[str, tuple[np.ndarray, Any]] = {
        "warm draws": (warm.draws(config.num_particles, rng)[None], None),
        "exact draws": (cold.draws(config.num_particles, rng)[None], None),
    }
    for kind, model in models.items():
        for arm in ARMS:
            z, log_evidence = anneal(config, model, arm, jax.random.fold_in(key, 1))
            found[f"{kind}, {arm}"] = (z, log_evidence - log_z if ARMS[arm][1] else None)
    rows = {}
    for name, (z, error) in found.items():
        each = [row(points) for points in z]
        rows[name] = {c: [r[c] for r in each] for c in each[0]}
        if error is not None:
            rows[name]["log Z error"] = error.tolist()
    return rows, {name: z[0] for name, (z, _) in found.items()}


def report(rows: dict) -> str:
    columns = ["classes", "energy W1", "spread", "log Z error"]
    lines = [f"{'mean and sd over seeds':<32}" + "".join(f"{c:>18}" for c in columns)]
    for name, row in rows.items():
        cells = [
            f"{np.mean(row[c]):.3f} +- {np.std(row[c]):.3f}" if c in row else "-" for c in columns
        ]
        lines.append(f"{name:<32}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def record(rows: dict, config: Config) -> None:
    """Shares of the classes, for the page of figures."""
    arms = {f"{kind}, {arm}" for kind in ("exact", "learned") for arm in ARMS}
    found = {name: row["classes"] for name, row in rows.items() if name in arms}
    errors = {name: row["log Z error"] for name, row in rows.items() if "log Z error" in row}
    best = "exact, FKC, automatic zeta"
    digit_models.record_figure(
        "diffusion/cold_digits",
        what="digits at half their temperature, total variation between class shares, from exact and from learned scores; "
        "spread: standard deviation over seeds",
        value={name: np.mean(row) for name, row in found.items()},
        spread={name: np.std(row, ddof=1) for name, row in found.items()},
        seeds=config.num_seeds,
        claim={best: np.mean(rows["exact draws"]["classes"])},
        claimed_by="exact draws",
        note="error of log Z, nats: "
        + "; ".join(f"{n} {np.mean(e):+.2f} ± {np.std(e, ddof=1):.2f}" for n, e in errors.items()),
        digits=2,
        measures=["inference/diffusion", "models/diffusion"],
    )


def draw(config: Config, samples: dict, path: Path) -> None:
    """Ten images of each kind, and the shares of the classes."""
    import matplotlib.pyplot as plt

    warm = digit_mixture.fitted(3, config.num_axes)
    best, doubled = "FKC, automatic zeta", "scores doubled"
    shown = {
        "warm draws": "q",
        f"exact, {doubled}": "scores doubled",
        f"exact, {best}": "FKC",
        f"learned, {doubled}": "learned scores doubled",
        f"learned, {best}": "learned scores, FKC",
        "exact draws": "q^2, exact draws",
    }
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    frame = lambda image: np.pad(image, 1, constant_values=-1)
    rows = [
        np.concatenate([frame(i) for i in warm.images(samples[name][:11])], 1) for name in shown
    ]
    left.imshow(np.concatenate(rows), cmap="gray_r", vmin=-1, vmax=2)
    left.set(xticks=[], yticks=5 + 10 * np.arange(len(rows)))
    left.set_yticklabels(shown.values(), fontsize=9)
    lines = {
        "exact draws": "k",
        f"exact, {best}": "C0",
        f"learned, {best}": "C2",
        "exact, scores doubled": "C1",
        "warm draws": "C7",
    }
    for i, (name, color) in enumerate(lines.items()):
        share = warm.shares(samples[name]).reshape(CLASSES, -1).sum(1)
        place = np.arange(CLASSES) + 0.16 * (i - 2)
        right.bar(place, share, 0.16, color=color, label=shown[name])
    right.set(xticks=range(CLASSES), xlabel="class", ylabel="share of the samples")
    right.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    options = digit_models.options(
        "Digits annealed to half their temperature.", "cold_digits", "few particles, steps and axes, a small network"
    )  # fmt: skip
    config = Config(500, 80, 2, 8, 48, 300) if options.smoke else Config()
    rows, samples = table(config, jax.random.key(options.seed))
    digit_models.keep(options.out, report(rows), rows, samples)
    draw(config, samples, options.out / "cold_digits.png")
    if options.record:
        record(rows, config)


if __name__ == "__main__":
    main()
