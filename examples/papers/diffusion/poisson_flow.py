"""Poisson flows: diffusion models whose noise has heavy tails, and what that is good for.

What it shows: PFGM++ embeds N coordinates in N + D dimensions and follows the electric field of the data there. In the
language of diffusion models that is one change, noise of Student's t with D degrees of freedom (`diffusion.PoissonNoise`) in
place of Normal noise, in training and in the draw that a sampler starts from; the flow, the network and the steps stay. First
how fast that noise becomes Normal. Then networks of digits for D = 16, 128 and Normal noise, sampled by EDM's Heun steps with
an error of standard deviation alpha added to every prediction of the noise.

Data: scikit-learn's digits, 1,797 images of 8 x 8 pixels. Source: Xu et al. 2023, arXiv:2302.04265, section 5 and figure 5 (D
between the ends is best on CIFAR-10, FID 1.92 and 1.91 at D = 128 and 2,048 beside 1.98; small D is more robust to errors of
the network).

Expected: Kolmogorov-Smirnov distances of |eps|^2 from chi^2 in 64 coordinates of 0.58 / 0.32 / 0.10 / 0.02 at D = 1 / 8 / 64 /
512. At the largest error of the network heavy tails are more robust, as the paper says; below it, and without errors, nothing can
be told apart by Frechet distances. Figures: docs/_data/figures, diffusion/poisson_flow. Run time: two minutes on 2 CPU cores.

    python examples/papers/diffusion/poisson_flow.py [--smoke] [--seed 0] [--out poisson_flow_output] [--record]
"""

from pathlib import Path
from typing import Any, NamedTuple

import _digit_models as digit_models
import jax
import jax.numpy as jnp
import numpy as np
from _digit_models import SIZE
from scipy import stats

from lapilli import inference
from lapilli.models import diffusion

EDM = diffusion.EDM()
NORMAL = "infinite"


class Config(NamedTuple):
    num_training_steps: int = 4_000
    width: int = 192
    num_samples: int = 1_000
    num_steps: int = 18
    dims: tuple[int | str, ...] = (16, 128, NORMAL)
    errors: tuple[float, ...] = (0.0, 0.4, 0.8, 1.2, 1.6)


def distance_to_normal(num_extra: int) -> float:
    """Kolmogorov-Smirnov distance between |eps|^2, N times an F variable, and chi^2, exactly."""
    grid = np.linspace(0.5, 10 * SIZE, 20_000)
    difference = stats.f(SIZE, num_extra).cdf(grid / SIZE) - stats.chi2(SIZE).cdf(grid)
    return float(np.abs(difference).max())


def disturbed(model: Any, error: float, key: jax.Array) -> Any:
    """The model with Normal(0, error^2) added to each coordinate of the noise that it predicts."""

    def score(x: jax.Array, t: jax.Array) -> jax.Array:
        bits = lambda v: jax.lax.bitcast_convert_type(v.astype(jnp.float32), jnp.int32)
        at = jax.random.fold_in(jax.random.fold_in(key, bits(t)), bits(x[0]))  # a draw of its own
        return model.score(x, t) - error * jax.random.normal(at, x.shape) / EDM.std(t)

    return inference.diffusion.Diffusion(EDM, score, model.shape, noise=model.noise)


def table(config: Config, key: jax.Array, seed: int) -> tuple[dict[str, dict[str, float]], dict]:
    x, _ = digit_models.load()
    judge = digit_models.Classifier(seed)
    rows: dict[str, dict[str, float]] = {
        "distance to Normal": {str(d): distance_to_normal(d) for d in (1, 8, 64, 512, 4096)},
    }
    real = judge.frechet(judge.held_out)
    rows["real"] = {"0": real.value}
    images, errors = {}, {"real": real.standard_error}
    keys = jax.random.split(key, 3)
    times = jnp.append(EDM.times(config.num_steps - 1), 0.0)
    for dim in config.dims:
        noise = None if isinstance(dim, str) else diffusion.PoissonNoise((SIZE,), dim)
        model = digit_models.train(
            x, None, keys[0], num_classes=0, width=config.width, num_steps=config.num_training_steps, noising=EDM, noise=noise
        )()  # fmt: skip
        run = jax.jit(
            lambda error, key, model=model: diffusion.heun(
                disturbed(model, error, key), keys[2], times, num_samples=config.num_samples
            )
        )
        rows[f"D = {dim}"] = {}
        for error in config.errors:
            found = np.asarray(run(error, keys[1]))
            distance = judge.frechet(found)
            rows[f"D = {dim}"][f"{error:g}"] = distance.value
            errors[f"D = {dim}, alpha = {error:g}"] = distance.standard_error
            images[f"D = {dim}, alpha = {error:g}"] = found
    rows["standard errors"] = errors
    return rows, images


def report(config: Config, rows: dict) -> str:
    cells = ", ".join(f"{d}: {value:.3f}" for d, value in rows["distance to Normal"].items())
    lines = [f"distance of |eps|^2 from chi^2, N = {SIZE}, by D: {cells}"]
    heads = "".join(f"{f'alpha {e:g}':>12}" for e in config.errors)
    lines.append(f"{'Frechet distance':<18}{heads}")
    for dim in config.dims:
        cells = "".join(f"{rows[f'D = {dim}'][f'{e:g}']:>12.2f}" for e in config.errors)
        lines.append(f"{f'D = {dim}':<18}{cells}")
    return "\n".join([*lines, f"{'real images':<18}{rows['real']['0']:>12.2f}"])


def record(rows: dict, seed: int) -> None:
    """The distances, for the page of figures."""
    errors = dict(rows["standard errors"])
    real = f"{rows['real']['0']:.2f} ± {errors.pop('real'):.2f}"
    cells = {name: name.split(", alpha = ") for name in errors}
    digit_models.record_figure(
        "diffusion/poisson_flow",
        what="Poisson flows of digits, Frechet distance without its bias, by dimensions D that are added (infinitely many: "
        "Normal noise) and the standard deviation alpha of an error in every step; spread: standard error",
        value={name: rows[dim][alpha] for name, (dim, alpha) in cells.items()},
        spread=errors,
        seeds=str(seed),
        claim=real,
        claimed_by="other real images",
        digits=2,
        measures=["models/diffusion", "inference/evaluation"],
    )


def draw(config: Config, rows: dict, images: dict, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for dim in config.dims:
        values = [rows[f"D = {dim}"][f"{e:g}"] for e in config.errors]
        left.plot(config.errors, values, "-o", label=f"D = {dim}")
    left.axhline(rows["real"]["0"], color="C7", ls=":", label="real images")
    left.set(yscale="log", xlabel="error alpha of the network", ylabel="Frechet distance")
    left.legend(frameon=False)
    frame = lambda image: np.pad(image.reshape(8, 8), 1, constant_values=-1)
    shown = [
        (f"D = {d}, alpha = {e:g}")
        for d in config.dims
        for e in (0.0, config.errors[len(config.errors) // 2])
    ]
    stripes = [np.concatenate([frame(i) for i in images[name][:10]], 1) for name in shown]
    right.imshow(np.concatenate(stripes), cmap="gray_r", vmin=-1, vmax=2)
    right.set(xticks=[], yticks=5 + 10 * np.arange(len(shown)))
    right.set_yticklabels(shown, fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    options = digit_models.options(
        "Poisson flows of digits.", "poisson_flow", "small networks, few images and errors"
    )
    config = Config(400, 64, 200, 12, (16, NORMAL), (0.0, 1.6)) if options.smoke else Config()
    rows, images = table(config, jax.random.key(options.seed), options.seed)
    digit_models.keep(options.out, report(config, rows), rows, images)
    draw(config, rows, images, options.out / "poisson_flow.png")
    if options.record:
        record(rows, options.seed)


if __name__ == "__main__":
    main()
