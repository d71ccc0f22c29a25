"""Inverse problems: images from half of their pixels, from a blur, from sums along lines.

What it shows: a measurement y = A x + noise with a known A tilts a diffusion prior to its posterior. Two methods sample it by
weighted particles: `inference.diffusion.twisted_diffusion`, whose steps follow the gradient of log p(y | denoised x), and
`inference.diffusion.fkc` with the likelihood as a reward that rises with time. Most samplers of images stop at the gradient:
the first method without weights. Here the prior is a Gaussian mixture of digits, so that the posterior is one too, and known:
its evidence, its mean, and how likely each component is, which is the hard part, for it is where modes are kept or lost. Each
method runs with the exact scores of that prior, and with those of a network that learned it from draws.

Data: scikit-learn's digits, 8 x 8 pixels, 40 principal components, three Gaussians for each class fitted to 1,500 images; the
images to be found are among the other 297. Three measurements, each with noise: the upper half; a blur of 3 x 3 pixels; sparse
views, that is sums along rows, columns and both diagonals. Source: Wu et al. 2023, arXiv:2306.17775, whose claim is that
weights make guidance exact as particles grow in number.

Expected: the rising reward meets the posterior mean nearest, to a tenth or so of a posterior standard deviation, and log p(y) to
a fraction of a nat; with the learned prior it is somewhat further off. Guidance alone is two or three times as far off, and its
weights (TDS) do not mend that here, a null result: they degenerate, and log p(y) is off by nats, for the gradient at the denoised
point pulls too hard at high noise. Figures: docs/_data/figures, diffusion/inverse. Run time: three minutes on 2 CPU cores.

    python examples/papers/diffusion/inverse.py [--smoke] [--seed 0] [--out inverse_output] [--record]
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import _digit_mixture as digit_mixture
import _digit_models as digit_models
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from _digit_mixture import SIDE, Mixture
from _digit_models import VP
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from lapilli import inference

NOISE = 0.5  # standard deviation of a measurement; pixels have variance 1 over all images


class Config(NamedTuple):
    num_images: int = 6
    num_particles: int = 512
    num_steps: int = 200
    per_class: int = 3
    num_axes: int = 40
    width: int = 256
    num_training_steps: int = 6_000


class Measurement(NamedTuple):
    """y = A z + NOISE eps in the rows where `used` is 1; the others are empty, so that all measurements have one shape."""

    matrix: Any  # [rows, axes]
    y: Any  # [rows]
    used: Any  # [rows]


def operators() -> dict[str, np.ndarray]:
    """Linear measurements of an image, [rows, pixels]."""
    eye = np.eye(SIDE**2)
    images = eye.reshape(-1, SIDE, SIDE)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    shifted = [padded[:, i : i + SIDE, j : j + SIDE] for i in range(3) for j in range(3)]
    row, column = np.divmod(np.arange(SIDE**2), SIDE)
    views = [row, column, row + column, row - column + SIDE - 1]
    sums = [(view == i).astype(float) for view in views for i in range(view.max() + 1)]
    return {
        "upper half": eye[: SIDE**2 // 2],
        "blur": np.mean(shifted, 0).reshape(SIDE**2, -1).T,
        "sparse views": np.stack(sums) / np.sqrt(SIDE),
    }


def measure(prior: Mixture, operator: np.ndarray, z: np.ndarray, rng: Any) -> Measurement:
    """A measurement of one image, with what the mean image contributes taken off."""
    rows = SIDE**2
    matrix = np.zeros((rows, prior.axes.shape[1]))
    matrix[: len(operator)] = operator @ prior.axes
    used = (np.arange(rows) < len(operator)).astype(float)
    return Measurement(matrix, used * (matrix @ z + NOISE * rng.normal(size=rows)), used)


class Posterior(NamedTuple):
    """The exact one: log p(y), and a mixture of Gaussians with full covariances."""

    log_evidence: float
    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def draws(self, num: int, rng: Any) -> np.ndarray:
        counts = rng.multinomial(num, self.weights)
        parts = [
            rng.multivariate_normal(m, c, n)
            for m, c, n in zip(self.means, self.covariances, counts, strict=True)
        ]
        return rng.permutation(np.concatenate(parts))

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance."""
        mean = self.weights @ self.means
        centred = self.means - mean
        inside = np.einsum("k,kij->ij", self.weights, self.covariances)
        return mean, inside + np.einsum("k,ki,kj->ij", self.weights, centred, centred)


def exact(prior: Mixture, measurement: Measurement) -> Posterior:
    rows = measurement.used > 0
    a, y = measurement.matrix[rows], measurement.y[rows]
    logs, means, covariances = [], [], []
    for weight, mean, variance in zip(prior.weights, prior.means, prior.variances, strict=True):
        covariance = np.linalg.inv(np.diag(1 / variance) + a.T @ a / NOISE**2)
        means.append(covariance @ (mean / variance + a.T @ y / NOISE**2))
        covariances.append(covariance)
        marginal = (a * variance) @ a.T + NOISE**2 * np.eye(len(y))
        logs.append(np.log(weight) + multivariate_normal.logpdf(y, a @ mean, marginal))
    log_evidence = logsumexp(logs)
    return Posterior(
        float(log_evidence), np.exp(logs - log_evidence), np.stack(means), np.stack(covariances)
    )


ARMS = ("guidance alone", "TDS", "reward tilt (FKC)")


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def run(config: Config, model: Any, arm: str, measurements: Measurement, key: jax.Array) -> Any:
    """Equally weighted particles [images, particles, axes] and log evidences [images]."""
    times = VP.times(config.num_steps)

    def one(inputs: Any) -> tuple[jax.Array, jax.Array]:
        measurement, key = inputs

        def log_likelihood(z: jax.Array) -> jax.Array:
            law = dist.Normal(measurement.matrix @ z, NOISE)
            return jnp.sum(measurement.used * law.log_prob(measurement.y))

        if arm == "reward tilt (FKC)":
            target: Any = inference.diffusion.fkc(
                model, times, reward=lambda z, t: (1 - t) ** 2 * log_likelihood(z)
            )
        else:
            target = inference.diffusion.twisted_diffusion(model, times, log_likelihood)
        policy = inference.particles.resampling.never() if arm == "guidance alone" else None
        run_key, draw_key = jax.random.split(key)
        result = inference.smc(
            target, run_key, num_particles=config.num_particles, policy=policy, history="none"
        )
        if arm == "guidance alone":
            return result.particles.x, result.log_evidence
        return result.sample(draw_key, config.num_particles).x, result.log_evidence

    keys = jax.random.split(key, len(measurements.y))
    return jax.lax.map(one, (measurements, keys))


def compare(prior: Mixture, posterior: Posterior, reference: np.ndarray, z: np.ndarray) -> dict:
    """Error of the mean in posterior standard deviations, ratio of spreads, total variation between components."""
    mean, covariance = posterior.moments()
    return {
        "error of the mean": float(np.sqrt(((z.mean(0) - mean) ** 2).sum() / np.trace(covariance))),
        "spread": float(np.sqrt(z.var(0).sum() / np.trace(covariance))),
        "components": float(np.abs(prior.shares(z) - reference).sum() / 2),
    }


def table(config: Config, key: jax.Array) -> tuple[dict, dict]:
    prior = digit_mixture.fitted(config.per_class, config.num_axes)
    learned = digit_mixture.learned(
        prior, jax.random.fold_in(key, 99), width=config.width, num_steps=config.num_training_steps
    )
    models = {"": prior.model(), ", learned": learned}
    rng = np.random.default_rng(0)
    rows: dict[str, dict[str, list]] = {}
    shown = {}
    for i, (problem, operator) in enumerate(operators().items()):
        truths = prior.held_out[: config.num_images]
        each = [measure(prior, operator, z, rng) for z in truths]
        posteriors = [exact(prior, m) for m in each]
        # Of many draws: overlapping components share what lies between them.
        references = [prior.shares(p.draws(20_000, rng)) for p in posteriors]
        measurements = Measurement(*(np.stack(parts) for parts in zip(*each, strict=True)))
        found = {
            "exact draws": (
                np.stack([p.draws(config.num_particles, rng) for p in posteriors]),
                None,
            )
        }
        for j, arm in enumerate(ARMS):
            arm_key = jax.random.fold_in(key, 10 * i + j)
            for kind, model in models.items():
                found[f"{arm}{kind}"] = run(config, model, arm, measurements, arm_key)
        for arm, (z, log_evidence) in found.items():
            cells = [
                compare(prior, p, r, np.asarray(points, float))
                for p, r, points in zip(posteriors, references, z, strict=True)
            ]
            row = {name: [c[name] for c in cells] for name in cells[0]}
            if log_evidence is not None and "guidance alone" not in arm:
                row["log p(y) error"] = [
                    float(e) - p.log_evidence for e, p in zip(log_evidence, posteriors, strict=True)
                ]
            rows[f"{problem}, {arm}"] = row
        shown[problem] = (
            truths,
            measurements,
            {arm: np.asarray(z) for arm, (z, _) in found.items()},
        )
    return rows, shown


def report(rows: dict) -> str:
    columns = ["error of the mean", "spread", "components", "log p(y) error"]
    lines = [f"{'mean over images':<42}" + "".join(f"{c:>20}" for c in columns)]
    for name, row in rows.items():
        size = lambda c, row=row: np.mean(np.abs(row[c]) if c == "log p(y) error" else row[c])
        cells = [f"{size(c):.3f}" if c in row else "-" for c in columns]
        lines.append(f"{name:<42}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def record(config: Config, rows: dict, seed: int) -> None:
    """Errors of the posterior mean, for the page of figures."""
    arms = [f"{arm}{kind}" for kind in ("", ", learned") for arm in ARMS]
    mean = lambda name: np.mean(rows[name]["error of the mean"])
    found = {f"{p}, {arm}": mean(f"{p}, {arm}") for arm in arms for p in operators()}
    exact_draws = {p: mean(f"{p}, exact draws") for p in operators()}
    digit_models.record_figure(
        "diffusion/inverse",
        what="digits from their upper half, a blur or sparse views, with exact and with learned scores: error of the posterior "
        f"mean in posterior standard deviations, mean over {config.num_images} images",
        value=found,
        seeds=str(seed),
        claim={f"{p}, {ARMS[-1]}": value for p, value in exact_draws.items()},
        claimed_by="exact draws",
        note="mean size of the error of log p(y), nats: "
        + "; ".join(
            f"{arm} " + " / ".join(f"{np.abs(rows[f'{p}, {arm}']['log p(y) error']).mean():.2f}" for p in operators())
            for arm in arms if "guidance alone" not in arm
        ),
        digits=2,
        measures=["inference/diffusion", "models/diffusion"],
    )  # fmt: skip


def draw(config: Config, shown: dict, path: Path) -> None:
    """For two images of each problem: truth, what is seen of it, means, three draws, standard deviations."""
    import matplotlib.pyplot as plt

    prior = digit_mixture.fitted(config.per_class, config.num_axes)
    image = prior.images
    titles = "truth,seen,exact mean,FKC mean,learned mean,guidance,exact draws,,FKC draws,,exact sd,FKC sd"  # fmt: skip
    titles = titles.split(",")
    picks = [(problem, i) for problem in shown for i in (0, 1)]
    figure, axes = plt.subplots(
        len(picks),
        len(titles),
        figsize=(1.15 * len(titles), 1.2 * len(picks)),
        layout="constrained",
    )
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8)
    for row, (problem, i) in zip(axes, picks, strict=True):
        truths, measurements, found = shown[problem]
        # What a measurement shows: A' y, as an image.
        back = operators()[problem]
        seen = measurements.y[i][: len(back)] + back @ prior.mean
        arms = ("exact draws", ARMS[2], f"{ARMS[2]}, learned", ARMS[0])
        exact_z, tilted, learned, guided = (found[arm][i] for arm in arms)
        panels = [image(truths[i]), (seen @ back).reshape(SIDE, SIDE)]
        panels += [image(z.mean(0)) for z in (exact_z, tilted, learned, guided)]
        panels += [*image(exact_z[[0, -1]]), *image(tilted[[0, -1]])]
        panels += [image(z).std(0) for z in (exact_z, tilted)]
        for axis, panel, title in zip(row, panels, titles, strict=True):
            is_spread, is_seen = title.endswith("sd"), title == "seen"
            low, high = (0, 1) if is_spread else (None, None) if is_seen else (-0.9, 1.8)
            axis.imshow(panel, cmap="magma" if is_spread else "gray_r", vmin=low, vmax=high)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(problem, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    options = digit_models.options(
        "Posteriors of measured digits, beside exact ones.", "inverse", "few images, particles and steps, a small network"
    )  # fmt: skip
    config = Config(2, 64, 60, 1, 20, 48, 300) if options.smoke else Config()
    rows, shown = table(config, jax.random.key(options.seed))
    draws = {name: np.moveaxis(found[ARMS[2]], 1, 0) for name, (_, _, found) in shown.items()}
    digit_models.keep(options.out, report(rows), rows, draws)
    draw(config, shown, options.out / "inverse.png")
    if options.record:
        record(config, rows, options.seed)


if __name__ == "__main__":
    main()
