"""Poisson flows: diffusion models whose noise has heavy tails, and what that is good for.

What it shows: PFGM++ embeds N coordinates in N + D dimensions and follows the electric field of the data there. In the
language of diffusion models that is one change, noise of Student's t with D degrees of freedom (`diffusion.PoissonNoise`) in
place of Normal noise, in training and in the draw that a sampler starts from; the flow, the network and the steps stay. First
how fast that noise becomes Normal. Then networks of digits by D, with common noise and starts, sampled by EDM's Heun steps: of
fewer steps, and with an error of standard deviation alpha added to every prediction of the noise.

Data: scikit-learn's digits, 1,797 images of 8 x 8 pixels. Source: Xu et al. 2023, arXiv:2302.04265, section 5 and figure 5 (D
between the ends is best on CIFAR-10, FID 1.92 and 1.91 at D = 128 and 2,048 beside 1.98; small D is more robust to errors of
the network).

Expected: Kolmogorov-Smirnov distances of |eps|^2 from chi^2 in 64 coordinates of 0.58 / 0.32 / 0.10 / 0.02 at D = 1 / 8 / 64 /
512. Figures: docs/_data/figures, diffusion/poisson_flow. Run time: six minutes on 2 CPU cores.

    python examples/papers/diffusion/poisson_flow.py [--smoke] [--seed 0] [--seeds 3] [--out poisson_flow_output] [--record]
"""

from pathlib import Path
from typing import Any, NamedTuple

import _digit_models as digit_models
import jax
import jax.numpy as jnp
import numpy as np
from _digit_models import SIZE
from _over_seeds import Row, over_seeds
from scipy import stats

from lapilli import inference
from lapilli.models import diffusion

EDM = diffusion.EDM()
NORMAL = "infinite"


class Config(NamedTuple):
    num_training_steps: int = 4_000
    width: int = 192
    num_samples: int = 1_000
    num_steps: tuple[int, ...] = (18, 9, 6)
    dims: tuple[int | str, ...] = (16, 64, 128, 512, NORMAL)
    errors: tuple[float, ...] = (0.0, 0.8, 1.6)


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


def run(config: Config, seed: int) -> tuple[Row, Any]:
    x, _ = digit_models.load()
    judge, keys = digit_models.Classifier(seed), jax.random.split(jax.random.key(seed), 3)
    rows = {f"distance to Normal, D = {d}": distance_to_normal(d) for d in (1, 8, 64, 512)}
    rows["real images"] = judge.frechet(judge.held_out).value
    images = {}
    for dim in config.dims:
        noise = None if isinstance(dim, str) else diffusion.PoissonNoise((SIZE,), dim)
        model = digit_models.train(
            x, None, keys[0], num_classes=0, width=config.width, num_steps=config.num_training_steps, noising=EDM, noise=noise
        )()  # fmt: skip
        for steps in config.num_steps:
            times = jnp.append(EDM.times(steps - 1), 0.0)
            sample = lambda error, m=model, t=times: diffusion.heun(
                disturbed(m, error, keys[1]), keys[2], t, num_samples=config.num_samples
            )
            drawn = jax.jit(sample)
            for error in config.errors if steps == config.num_steps[0] else (0.0,):
                name = f"D = {dim}, {steps} steps, alpha = {error:g}"
                images[name] = np.asarray(drawn(error))
                rows[name] = judge.frechet(images[name]).value
    return rows, (rows, images)


def draw(found: Any, out: Path) -> None:
    import matplotlib.pyplot as plt

    rows, images = found
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    shown = [name for name in images if "alpha = 0" in name][::3] or list(images)[:2]
    for dim in dict.fromkeys(name.split(",")[0] for name in images):
        line = {n.split("= ")[-1]: rows[n] for n in images if n.startswith(f"{dim},")}
        left.plot([float(e) for e in line], list(line.values()), "-o", label=dim)
    left.set(yscale="log", xlabel="error alpha of the network", ylabel="Frechet distance")
    left.legend(frameon=False)
    frame = lambda image: np.pad(image.reshape(8, 8), 1, constant_values=-1)
    stripes = [np.concatenate([frame(i) for i in images[name][:10]], 1) for name in shown]
    right.imshow(np.concatenate(stripes), cmap="gray_r", vmin=-1, vmax=2)
    right.set(xticks=[], yticks=5 + 10 * np.arange(len(shown)), yticklabels=shown)
    figure.savefig(out / "poisson_flow.png", dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    over_seeds(
        "poisson_flow", run, Config(), Config(400, 64, 200, (12,), (16, NORMAL), (0.0, 1.6)), draw=draw, digits=2,
        what="Poisson flows of digits, Frechet distance without its bias, by dimensions D that are added (infinitely many: "
        "Normal noise), Heun steps and the standard deviation alpha of an error in every step",
        measures=["models/diffusion", "inference/evaluation"], arguments=arguments,
    )  # fmt: skip


if __name__ == "__main__":
    main()
