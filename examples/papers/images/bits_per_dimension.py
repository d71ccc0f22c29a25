"""Bits per dimension of four families of models on the same images: VAE, diffusion, two stages, any-order.

What it shows: likelihoods that compare. Pixels have eight levels, and each model is a law on the same 8^196 images, so that
-log2 p(image) / 196 is one number for all: exact for an any-order model (`models.mam`, given a random order), and at most what
is printed for the others, whose log p is a lower bound: the ELBO and the IWELBO of a VAE with categorical pixels, the diffusion
bound whose last step draws a level (`diffusion.bound(levels=)`), and the bound of two stages (`two_stage.py`). A density does
not compare with these: it bounds the law of levels only after uniform noise of a level's width,

    log P(level) >= E log p(level + u) + log width.

Two rows are of a plain network, which knows nothing of levels, with that noise and without. Beside it Frechet distance,
precision and recall of samples: a better bound is not a better picture.

Data: MNIST, 14 x 14 pixels in 8 grey levels, 3,000 images to learn from; bits on held-out images, the same for all, with the
standard error over images of the mean over seeds. Source: Theis et al. 2016, arXiv:1511.01844 (likelihood and quality of
samples are largely independent; uniform noise), Kingma et al. 2021, arXiv:2107.00630 (levels in a diffusion bound), Hoogeboom
et al. 2022, arXiv:2110.02037 (any order). No number for these images is published.

Expected, two seeds, +- errors over 300 images: independent pixels 1.013 +- 0.012 exactly, VAE at most 0.839 (ELBO) and 0.827
(IWELBO), two stages at most 0.803, diffusion at most 0.790, any-order model 0.796 exactly given an order, all +- 0.012; paired
with the latter diffusion is better by 0.006 +- 0.003 or more, two stages have 0.007 +- 0.003 more at most. A plain network of
the same width loses 2 bits to one that knows of levels: 2.86, and 1.95 with uniform noise, where it need not resolve them.
Frechet distance, precision, recall: diffusion 1.13, 0.90, 0.91; any order 1.09, 0.85, 0.90; two stages 1.30, 0.94, 0.88; VAE
5.1, 0.88, 0.78; its means 13.7, 1.00, 0.21; real images 0.16, 0.94, 0.97. So the VAE is last by both, and the other three
differ by neither beyond noise: that likelihood and quality part is not seen here. Run time: four minutes of processor
time.

    python examples/papers/images/bits_per_dimension.py [--smoke] [--seed 0] [--out bits_per_dimension_output]
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _mnist import (
    GRID,
    LEVELS,
    SIZE,
    Judge,
    Split,
    compile_once,
    keep,
    nearest_levels,
    options,
    record_figure,
    split,
    tiles,
)
from _two_stage import VAE, ImageDiffusion, Sizes, TwoStages, mixture_prior

from lapilli import inference
from lapilli.inference import evaluation
from lapilli.models import mam

WIDTH = float(GRID[1] - GRID[0])
METRICS = ("frechet", "precision", "recall")
# Row -> which side of its bits the model's own lie on.
SIDES = {
    "independent pixels": "exact",
    "VAE, ELBO": "at most",
    "VAE, IWELBO": "at most",
    "diffusion": "at most",
    "diffusion, plain network": "at most",
    "plain, uniform noise": "at most",
    "two stages": "at most",
    "any order": "exact",
}


class Config(NamedTuple):
    sizes: Sizes = Sizes()
    num_seeds: int = 2
    order_steps: int = 2_000
    order_width: int = 192
    num_components: int = 20
    num_real: int = 1_000
    num_bounded: int = 300
    num_samples: int = 500
    num_times: int = 100
    num_weights: int = 100


def independent(train: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Log probabilities by the counts of each pixel, one added to all."""
    counts = np.stack([(train == v).sum(0) for v in range(LEVELS)]) + 1.0
    log_p = np.log(counts / counts.sum(0))
    return log_p[levels, np.arange(SIZE)].sum(1)


def any_order(data: Split, config: Config, key: jax.Array) -> mam.MaM:
    """The first stage of a marginalization model: its chain of conditionals."""
    keys = jax.random.split(key)
    pair = mam.residual_mlps(SIZE, LEVELS, width=config.order_width, key=keys[0])
    rate = optax.cosine_decay_schedule(1e-3, config.order_steps)
    fit = inference.fit(
        mam.any_order(pair), optax.adamw(rate, weight_decay=1.0), (jnp.asarray(data.train),),
        num_steps=config.order_steps, key=keys[1], subsample={"rows": config.sizes.batch}, progress=False,
    )  # fmt: skip
    return mam.MaM(pair.with_params(fit.params))


def run(
    config: Config, data: Split, seed: int, *, is_first: bool
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Log probabilities or bounds by row, nats of each held-out image; samples by model, levels."""
    sizes, held_out = config.sizes, data.held_out[: config.num_bounded]
    keys = jax.random.split(jax.random.key(seed), 9)
    vae = VAE(data.train, sizes, keys[0])
    weights = vae.log_weights(held_out, keys[1], config.num_weights)
    iwelbo = np.logaddexp.reduce(weights, 0) - np.log(len(weights))
    nats = {"VAE, ELBO": weights.mean(0), "VAE, IWELBO": iwelbo}
    single = ImageDiffusion(GRID[data.train], None, sizes, keys[2])
    nats["diffusion"] = single.bound(held_out, None, keys[3], config.num_times)
    if is_first:
        plain = ImageDiffusion(GRID[data.train], None, sizes, keys[2], kind="plain")
        nats["diffusion, plain network"] = plain.bound(held_out, None, keys[3], config.num_times)
        nats["plain, uniform noise"] = with_noise(data, config, keys[4])
    both = TwoStages.trained(vae, data.train, sizes, keys[5])
    prior = mixture_prior(vae.posterior(data.train).sample(keys[6]), config.num_components, seed)
    nats |= both.bounds(held_out, {"two stages": prior}, keys[3], config.num_times // 2)
    ordered = any_order(data, config, keys[7])
    orders = mam.UniformOrder(SIZE).sample(keys[1], (len(held_out),))
    nats["any order"] = np.asarray(ordered.log_steps(jnp.asarray(held_out), orders).sum(-1))

    n, key = config.num_samples, keys[8]
    z = jax.random.normal(key, (n, sizes.num_codes))
    samples = {
        "VAE, means": nearest_levels(vae.image(z)),
        "VAE": np.asarray(jax.random.categorical(key, vae.logits(z))),
        "diffusion": single.samples(None, n, 50, key),
        "two stages": both.refiner.samples(vae.image(prior.sample(n, key)), n, 50, key),
        "any order": np.asarray(ordered.sample(key, (n,))),
    }
    return nats, samples


def with_noise(data: Split, config: Config, key: jax.Array) -> np.ndarray:
    """The bound on log P(levels) of a density of points with uniform noise of a level's width."""
    keys = jax.random.split(key, 4)
    spread = lambda levels, key: (
        GRID[levels]
        + WIDTH * np.asarray(jax.random.uniform(key, levels.shape, minval=-0.5, maxval=0.5))
    )
    train = np.concatenate([spread(data.train, k) for k in jax.random.split(keys[0], 5)])
    model = ImageDiffusion(train, None, config.sizes, keys[1], kind="plain")
    points = spread(data.held_out[: config.num_bounded], keys[2])
    return model.density_bound(points, keys[3], config.num_times) + SIZE * np.log(WIDTH)


def bits(nats: Any) -> np.ndarray:
    """Per dimension, of mean log probabilities over seeds, of each image."""
    return -np.mean(nats, 0) / SIZE / np.log(2)


def report(nats: dict[str, list[np.ndarray]], judged: dict[str, dict[str, list[float]]]) -> str:
    lines = [f"{'held-out images':<28}{'bits per dimension':>34}{'nats an image':>16}{'sd of seeds':>14}"]  # fmt: skip
    for name, side in SIDES.items():
        each = bits(nats[name])
        error = each.std(ddof=1) / len(each) ** 0.5
        seeds = [-v.mean() / SIZE / np.log(2) for v in nats[name]]
        sd = f"{np.std(seeds):.4f}" if len(seeds) > 1 else "one seed"
        nat = np.mean([v.mean() for v in nats[name]])
        lines.append(
            f"{name:<28}{f'{side} {each.mean():.4f} +- {error:.4f}':>34}{nat:>16.2f}{sd:>14}"
        )
    lines += ["", "paired difference from the any-order model, bits per dimension"]
    for name in SIDES:
        gap = bits(nats[name]) - bits(nats["any order"])
        lines.append(f"{name:<28}{f'{gap.mean():+.4f} +- {gap.std(ddof=1) / len(gap) ** 0.5:.4f}':>34}")  # fmt: skip
    lines += ["", f"{'samples, mean (sd) of seeds':<28}" + "".join(f"{m:>18}" for m in METRICS)]
    for name, row in judged.items():
        cells = [f"{np.mean(row[m]):.2f} ({np.std(row[m]):.2f})" for m in METRICS]
        lines.append(f"{name:<28}" + "".join(f"{c:>18}" for c in cells))
    order = ("VAE, ELBO", "diffusion", "two stages", "any order")
    by_bits = sorted(order, key=lambda n: bits(nats[n]).mean())
    distance = {n: np.mean(judged[n]["frechet"]) for n in judged if n not in ("real", "VAE, means")}
    by_frechet = sorted(distance, key=distance.__getitem__)
    lines += [
        "",
        f"order by bits: {', '.join(by_bits)}; by Frechet distance: {', '.join(by_frechet)}",
        "claim: likelihood and quality of samples are largely independent (arXiv:1511.01844)",
    ]
    return "\n".join(lines)


def judge_all(judge: Judge, samples: dict[str, np.ndarray], data: Split) -> dict[str, dict[str, float]]:  # fmt: skip
    """Metrics by model, and those of held-out images."""
    n = len(next(iter(samples.values())))
    found = evaluation.compare_samples(
        data.real, samples, jax.random.key(0), metrics=METRICS, features=judge.features,
        held_out=data.held_out[-n:],
    ).estimates  # fmt: skip
    rows = {name: {m: found[m][name].value for m in METRICS} for name in samples}
    floors = {m: next(iter(found[m].values())).floor for m in METRICS}
    return rows | {"real": {m: f.value for m, f in floors.items() if f is not None}}


def draw(
    found: dict[str, tuple[float, float]], samples: dict[str, np.ndarray], real: np.ndarray, path: Path
) -> None:  # fmt: skip
    """Samples of each model, and bits per dimension with their errors; networks far beyond the others are left out."""
    import matplotlib.pyplot as plt

    shown = samples | {"real": real}
    figure, (images, axis) = plt.subplots(
        1, 2, figsize=(12, 2.6), layout="constrained", width_ratios=(2.6, 1)
    )
    picture = np.concatenate([tiles(x[:20]) for x in shown.values()])
    images.imshow(picture, cmap="gray_r", vmin=0, vmax=LEVELS - 1)
    images.set(xticks=[])
    images.set_yticks(8 + 16 * np.arange(len(shown)), list(shown))
    names = [n for n in SIDES if found[n][0] < 1.5 * found["any order"][0]]
    for row, name in enumerate(names):
        marker, color = ("o", "C0") if SIDES[name] == "exact" else ("<", "C1")
        axis.errorbar(found[name][0], row, xerr=2 * found[name][1], fmt=marker, color=color, ms=5)
    axis.set_yticks(range(len(names)), names)
    axis.set(ylim=(len(names) - 0.5, -0.5), xlabel="bits per dimension")
    axis.set_title("dots: exact; arrows: at most; two errors", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def record(nats: dict, judged: dict, config: Config) -> None:
    """The figures, for the page of figures."""
    helpers = ["examples/papers/images/_two_stage.py", "examples/papers/images/_mnist.py"]
    base = {"seeds": config.num_seeds, "measures": [*helpers, "models/mam", "models/diffusion"]}
    each = {f"{n} ({s})": bits(nats[n]) for n, s in SIDES.items()}
    record_figure(
        "images/bits_per_dimension",
        what=f"MNIST of 14 x 14 pixels in 8 levels, bits per dimension of {config.num_bounded} held-out images; spread: error "
        "over images",
        value={n: float(v.mean()) for n, v in each.items()},
        spread={n: float(v.std(ddof=1) / len(v) ** 0.5) for n, v in each.items()},
        note="all are laws on the same discrete images; plain networks: one seed",
        digits=4,
        **base,
    )
    record_figure(
        "images/bits_and_samples",
        what=f"the same models, {config.num_samples} samples each: Frechet distance (extrapolated) / precision / recall in a "
        "classifier's hidden layer",
        value={n: " / ".join(f"{np.mean(row[m]):.2f}" for m in METRICS) for n, row in judged.items()},
        note="claim: likelihood and quality of samples are largely independent (arXiv:1511.01844)",
        **base,
    )  # fmt: skip


def main() -> None:
    chosen = options(
        "Bits per dimension of four families.", "bits_per_dimension", "small networks, one seed"
    )
    compile_once()
    config = Config()
    if chosen.smoke:
        config = Config(Sizes(300, 300, 4, 64, 64, 64, 2), 1, 300, 64, 5, 300, 20, 200, 10, 10)
    data = split(num_real=config.num_real)
    judge = Judge(data)
    nats: dict[str, list[np.ndarray]] = {}
    judged: dict[str, dict[str, list[float]]] = {}
    samples: dict[str, np.ndarray] = {}
    for number in range(config.num_seeds):
        found, samples = run(config, data, chosen.seed + number, is_first=number == 0)
        for name, values in found.items():
            nats.setdefault(name, []).append(values)
        for name, row in judge_all(judge, samples, data).items():
            for metric, value in row.items():
                judged.setdefault(name, {}).setdefault(metric, []).append(value)
    nats["independent pixels"] = [independent(data.train, data.held_out[: config.num_bounded])]
    means = {name: [float(v.mean()) for v in values] for name, values in nats.items()}
    text = report(nats, judged)
    keep(chosen.out, text, {"nats": means, "samples": judged}, samples)
    each = {name: bits(nats[name]) for name in SIDES}
    bars = {n: (float(v.mean()), float(v.std(ddof=1) / len(v) ** 0.5)) for n, v in each.items()}
    draw(bars, samples, data.held_out, chosen.out / "bits_per_dimension.png")
    if chosen.record:
        record(nats, judged, config)


if __name__ == "__main__":
    main()
