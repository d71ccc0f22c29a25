"""A VAE's image as the condition of a diffusion model: few steps, and a code of few numbers (DiffuseVAE).

What it shows: two stages. A VAE learns digits with a code of eight numbers and is frozen; a diffusion model learns them given
the VAE's image of a *drawn* code. Draws take a code from Normal(0, I), or from a mixture fitted to the codes of training
images, and refine its image. Beside them the VAE alone and the same diffusion network without a condition, at 5, 10 and 50
steps of DDIM: Frechet distance of an independent classifier's hidden layer (extrapolated to infinite samples), distance from
the nearest training image, noise added to the VAE's image at test time, and bounds on log p(image) of all three, in nats:

    log p(x) >= E_q [log p(z) - log q(z | x) + bound(x | xhat(z))]   for two stages.

The divergence of the code is all that the first stage adds; its reconstruction does not count, the second stage has its own.

Data: MNIST, 14 x 14 pixels in 8 grey levels, 3,000 images to learn from, 1,000 to compare with and 1,000 for floors and bounds.
Source: Pandey et al. 2022, arXiv:2201.00308 (DiffuseVAE): best at few steps, Frechet inception distance 16.5 of DiffuseVAE and
34.4 of DDIM at 10 steps on CelebA-HQ; robust to noise in the condition.

Expected, three seeds, mean (sd), Frechet distance at 5 / 10 / 50 steps (real images 0.28, error 0.28): diffusion alone 5.10
(0.54) / 2.41 (0.36) / 1.26 (0.20), two stages with the mixture of codes 1.86 (0.34) / 1.31 (0.26) / 1.04 (0.22): best at few
steps, and at 50 no more than the spread of seeds. With codes from Normal(0, I) 3.63 / 2.89 / 2.46 (0.04), worse than diffusion
alone from ten steps on; the VAE's images alone 11.07 (mixture) and 14.11. Noise in the VAE's image of 0.25, 0.5 and 1 standard
deviations of pixels does not hurt at 10 steps, 1.28 / 1.19 / 1.04: of codes that are drawn the image is off anyway. No row
copies: draws are farther from the training images (8 to 9.5) than real ones (7.2). In nats two stages gain nothing: VAE -115.0
(0.7), diffusion -108.7 (0.4), two stages -109.9 (0.5). Run time: just under four minutes of processor time.

    python examples/papers/images/two_stage.py [--smoke] [--seed 0] [--out two_stage_output]
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from _mnist import (
    GRID,
    Judge,
    compile_once,
    keep,
    nearest_levels,
    options,
    record_figure,
    split,
    spread,
    tiles,
)
from _two_stage import VAE, ImageDiffusion, Sizes, TwoStages, mixture_prior, normal_prior

NOISE = (0.25, 0.5, 1.0)


class Config(NamedTuple):
    sizes: Sizes = Sizes()
    num_seeds: int = 3
    steps: tuple[int, ...] = (5, 10, 50)
    num_real: int = 1_000
    num_components: int = 20
    num_bounded: int = 500  # held-out images
    num_times: int = 100


def samples(
    vae: VAE, plain: ImageDiffusion, both: TwoStages, priors: Any, config: Config, key: jax.Array
) -> dict[str, np.ndarray]:
    """Levels by row, [num_real, 196] each; rows with common codes and noise."""
    code_key, noise_key, test_key = jax.random.split(key, 3)
    n, rows = config.num_real, {}
    images = {name: vae.image(prior.sample(n, code_key)) for name, prior in priors.items()}
    for name, image in images.items():
        rows[f"VAE, {name}"] = nearest_levels(image)
    for num in config.steps:
        rows[f"DDIM, {num} steps"] = plain.samples(None, n, num, noise_key)
        for name, image in images.items():
            rows[f"DiffuseVAE, {name}, {num} steps"] = both.refiner.samples(image, n, num, noise_key)  # fmt: skip
    image = images["mixture"]
    eps = jax.random.normal(test_key, image.shape)
    for scale in NOISE:
        rows[f"DiffuseVAE, mixture, 10 steps, noise {scale:g}"] = both.refiner.samples(
            image + scale * eps, n, 10, noise_key
        )
    return rows


def run(config: Config, judge: Judge, seed: int) -> tuple[dict, dict, dict[str, np.ndarray]]:
    """Of one seed of networks and training: cells by row, mean bounds by name, samples."""
    data, sizes = judge.data, config.sizes
    keys = jax.random.split(jax.random.key(seed), 6)
    vae = VAE(data.train, sizes, keys[0])
    plain = ImageDiffusion(GRID[data.train], None, sizes, keys[1])
    both = TwoStages.trained(vae, data.train, sizes, keys[2])
    codes = vae.posterior(data.train).sample(keys[3])
    priors = {
        "N(0, I)": normal_prior(sizes.num_codes),
        "mixture": mixture_prior(codes, config.num_components, seed),
    }
    found = samples(vae, plain, both, priors, config, keys[4])
    cells = {}
    for name, levels in found.items():
        frechet, nearest = judge.frechet(levels), judge.nearest(levels)
        cells[name] = {
            "Frechet": frechet.value,
            "error": frechet.standard_error,
            "Frechet plain": frechet.details["plain"],
            "nearest": nearest.value,
        }
    frechet, nearest = frechet.floor, nearest.floor
    assert frechet is not None and nearest is not None
    cells["real images"] = {
        "Frechet": frechet.value, "error": frechet.standard_error,
        "Frechet plain": frechet.details["plain"], "nearest": nearest.value,
    }  # fmt: skip
    held_out = data.held_out[: config.num_bounded]
    bounds = {
        "VAE": vae.log_weights(held_out, keys[5]).mean(0),
        "diffusion": plain.bound(held_out, None, keys[5], config.num_times),
    }
    named = {f"two stages, {name}": prior for name, prior in priors.items()}
    bounds |= both.bounds(held_out, named, keys[5], config.num_times // 2)
    return cells, {name: float(b.mean()) for name, b in bounds.items()}, found


def report(cells: dict[str, list[dict]], bounds: dict[str, list[float]], accuracy: float) -> str:
    lines = [
        f"{'mean (sd) of seeds':<42}{'Frechet':>16}{'plain':>16}{'nearest training image':>26}"
    ]
    of = lambda rows, column: spread([row[column] for row in rows])
    for name, rows in cells.items():
        lines.append(
            f"{name:<42}{of(rows, 'Frechet'):>16}{of(rows, 'Frechet plain'):>16}{of(rows, 'nearest'):>26}"
        )
    error = max(row["error"] for row in cells["real images"])
    lines += [
        f"jackknife error of a distance of real images {error:.2f}; the classifier is right about {accuracy:.3f} of them",
        "",
        f"{'bound on log p, nats an image held out':<42}{'mean (sd)':>16}{'above diffusion':>20}",
    ]
    for name, values in bounds.items():
        gain = spread(np.array(values) - bounds["diffusion"])
        lines.append(f"{name:<42}{spread(values):>16}{gain:>20}")
    mean = lambda name: float(np.mean([r["Frechet"] for r in cells[name]]))
    lines += [
        "",
        "claim: DiffuseVAE is better than DDIM at 10 steps (paper 16.5 against 34.4): "
        f"{mean('DiffuseVAE, mixture, 10 steps'):.2f} against {mean('DDIM, 10 steps'):.2f} here",
        "claim: noise in the condition hurts little: "
        + ", ".join(f"{s:g}: {mean(f'DiffuseVAE, mixture, 10 steps, noise {s:g}'):.2f}" for s in NOISE),
    ]  # fmt: skip
    return "\n".join(lines)


def draw(cells: dict[str, list[dict]], found: dict[str, np.ndarray], config: Config, path: Path) -> None:  # fmt: skip
    """Images of common codes and noise, and distances over steps."""
    import matplotlib.pyplot as plt

    names = ["VAE, mixture"]
    names += [f"DiffuseVAE, mixture, {n} steps" for n in config.steps]
    names += [f"DDIM, {n} steps" for n in config.steps]
    figure, (images, axis) = plt.subplots(
        1, 2, figsize=(12, 3.6), layout="constrained", width_ratios=(2.2, 1)
    )
    images.imshow(np.concatenate([tiles(found[n][:16]) for n in names]), cmap="gray_r", vmin=0, vmax=7)  # fmt: skip
    images.set(xticks=[])
    images.set_yticks(8 + 16 * np.arange(len(names)), names)
    for start, label in (
        ("DDIM", "diffusion alone"),
        ("DiffuseVAE, mixture", "two stages, mixture of codes"),
        ("DiffuseVAE, N(0, I)", "two stages, codes N(0, I)"),
    ):
        values = np.array(
            [[r["Frechet"] for r in cells[f"{start}, {n} steps"]] for n in config.steps]
        )
        axis.errorbar(config.steps, values.mean(1), values.std(1), fmt="-o", ms=4, label=label)  # fmt: skip
    level = np.mean([r["Frechet"] for r in cells["VAE, mixture"]])
    axis.axhline(level, color="C7", ls=":", label="VAE, mixture of codes")
    axis.axhline(0, color="0.4", lw=0.8)
    axis.set(xscale="log", xlabel="steps of DDIM", ylabel="Frechet distance")
    axis.set_xticks(config.steps, labels=map(str, config.steps))
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def record(cells: dict[str, list[dict]], bounds: dict[str, list[float]], num_seeds: int) -> None:
    """The figures, for the page of figures."""
    helpers = ["examples/papers/images/_two_stage.py", "examples/papers/images/_mnist.py"]
    base = {"seeds": num_seeds, "digits": 2, "measures": helpers}
    column = lambda f, rows: {n: float(f([r["Frechet"] for r in row])) for n, row in rows.items()}
    few = {n: row for n, row in cells.items() if "noise" not in n}
    record_figure(
        "images/two_stage",
        what="MNIST of 14 x 14 pixels, Frechet distance of a classifier's hidden layer, extrapolated; spread: sd over seeds",
        value=column(np.mean, few),
        spread=column(np.std, few),
        note="claim: DiffuseVAE 16.5, DDIM 34.4 at 10 steps, CelebA-HQ (arXiv:2201.00308)",
        **base,
    )
    noisy = {n.rpartition(", ")[2]: row for n, row in cells.items() if "noise" in n}
    record_figure(
        "images/two_stage_noise",
        what="DiffuseVAE at 10 steps with noise in the VAE's image at test time, by its sd in those of pixels; the same distance",
        value=column(np.mean, noisy),
        spread=column(np.std, noisy),
        note="claim: hurts little (arXiv:2201.00308, abstract)",
        **base,
    )
    record_figure(
        "images/two_stage_bounds",
        what="the same models, bound on the log probability of a held-out image, nats",
        value={n: float(np.mean(v)) for n, v in bounds.items()},
        spread={n: float(np.std(v)) for n, v in bounds.items()},
        **base,
    )


def main() -> None:
    chosen = options("A VAE refined by diffusion.", "two_stage", "small networks, one seed")
    compile_once()
    config = Config()
    if chosen.smoke:
        config = Config(Sizes(300, 400, 4, 64, 64, 64, 2), 1, (5, 10), 400, 5, 20, 10)
    judge = Judge(split(num_real=config.num_real))
    cells: dict[str, list[dict]] = {}
    bounds: dict[str, list[float]] = {}
    found: dict[str, np.ndarray] = {}
    for seed in range(chosen.seed, chosen.seed + config.num_seeds):
        rows, nats, found = run(config, judge, seed)
        for name, row in rows.items():
            cells.setdefault(name, []).append(row)
        for name, value in nats.items():
            bounds.setdefault(name, []).append(value)
    metrics = {"cells": cells, "bounds": bounds, "accuracy": judge.accuracy}
    keep(chosen.out, report(cells, bounds, judge.accuracy), metrics, found)
    draw(cells, found, config, chosen.out / "two_stage.png")
    if chosen.record:
        record(cells, bounds, config.num_seeds)


if __name__ == "__main__":
    main()
