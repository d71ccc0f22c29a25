"""Quality for compute: samplers of one conditional diffusion model at few and at many network evaluations.

What it shows: the same network, sampled by ancestral steps (DDPM), by the deterministic DDIM and by Heun's second-order steps
of the probability flow, with a number of function evaluations (NFE) from 5 to 200, and guided by w = 0, 1 and 3, which is the
scale b = 1 + w of `diffusion.guided`. Beside it, without guidance, a network of the cosine schedule in place of the linear one,
times even in either, and one of the code of a VAE (eight numbers, frozen decoder). Judged by an independent classifier: whether
an image is of the class that was asked for, and the Frechet distance of its features from those of real images that it was not
trained on.

Data: scikit-learn's digits, 1,797 images of 8 x 8 pixels. Source: Song, Meng and Ermon 2021, arXiv:2010.02502, table 1 (DDIM
is better than DDPM at few steps, CIFAR-10 and CelebA); Ho and Salimans 2022, arXiv:2207.12598 (guidance trades diversity for
fidelity); Nichol and Dhariwal 2021, arXiv:2102.09672 (cosine schedule); Rombach et al. 2022, arXiv:2112.10752 (codes). No number
for digits is published. A guided model is the score of no law: see guidance.py for what weights do.

Expected, one seed: of five evaluations DDIM and Heun are better than DDPM; from twenty on none can be told from real images by
the Frechet distance extrapolated to infinite samples. Guidance brings the accuracy from 0.97 to 1.00 and the distance to 0.7 to
1.9 at w = 1, 6 to 9 at w = 3; few of Heun's steps do not bear it. The cosine schedule has 0.77 / 0.09 of DDPM / DDIM at five
evaluations, the linear one 1.18 / 0.68 with errors of 0.4, and from ten on they do not differ beyond errors; but Heun's first
step is too long for a rate of noise that grows without bound, 695 at 5 and 24 at 10 evaluations. The code loses, as was
expected: 1.6 to 2.4 at five evaluations and 0.5 to 0.7 at 200 of a floor of -0.4, whatever the sampler. That is the decoder's
share, not the diffusion's: decoded codes of real images have 0.75 (error 0.3). Figures: docs/_data/figures, diffusion/samplers,
samplers_cosine and samplers_code. Run time: a little more than four minutes of processor time.

    python examples/papers/diffusion/samplers.py [--smoke] [--seed 0] [--out samplers_output] [--record]
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import _digit_models as digit_models
import equinox as eqx
import jax
import jax.numpy as jnp
import latent_prior
import numpy as np
from _digit_models import CLASSES, SIZE, VP

from lapilli.models import diffusion


class Config(NamedTuple):
    num_training_steps: int = 4_000
    width: int = 192
    per_class: int = 100
    evaluations: tuple[int, ...] = (5, 10, 20, 50, 200)
    guidance: tuple[float, ...] = (0.0, 1.0, 3.0)
    code: latent_prior.Config = latent_prior.Config()


class Source(NamedTuple):
    """A diffusion model of a label, or of none; and images [..., 64] from its points."""

    model: Callable[..., Any]
    image: Callable[[np.ndarray], np.ndarray] = lambda x: x


NUM_CODES = 5  # drawn of each image, for the training

# Name -> sampler, and its steps for a number of evaluations: Heun's takes two a step, and one for the last.
SAMPLERS: dict[str, tuple[Callable[..., jax.Array], Callable[[int], int]]] = {
    "DDPM": (diffusion.ancestral, lambda n: n),
    "DDIM": (diffusion.ddim, lambda n: n),
    "Heun": (diffusion.heun, lambda n: (n + 1) // 2),
}


def sample(
    source: Source, name: str, num: int, w: float, per_class: int, key: jax.Array
) -> np.ndarray:
    """Images [classes, per class, 64] after `num` evaluations; the last step ends without noise."""
    sampler, steps = SAMPLERS[name]
    model = source.model
    times = jnp.append(model().noising.times(steps(num))[:-1], 0.0)

    def one(inputs: Any) -> jax.Array:
        key, label = inputs
        guided = diffusion.guided(model(), model(context=label), 1 + w)
        chosen = model(context=label) if w == 0 else guided
        return sampler(chosen, key, times, num_samples=per_class)

    run = jax.jit(lambda keys: jax.lax.map(one, (keys, jnp.arange(CLASSES))))
    return source.image(np.asarray(run(jax.random.split(key, CLASSES))))


def of_code(
    config: Config, x: np.ndarray, labels: np.ndarray, key: jax.Array
) -> tuple[Source, np.ndarray]:
    """Diffusion of the code of a VAE, which is frozen; and the images of drawn codes of `x`.

    Codes of the training are drawn, several for each image, and scaled to variance 1. Images are the decoder's means.
    """
    keys = jax.random.split(key, 4)
    nets = latent_prior.Networks.make(config.code, keys[0])
    params = latent_prior.fitted(config.code, nets, jnp.asarray(x), keys[1], is_diffusion=False)
    with_params = lambda net, p: eqx.combine(p, eqx.filter(net, eqx.is_inexact_array, inverse=True))
    encode = with_params(nets.encoder, params["encoder"])
    decode = with_params(nets.decoder, params["decoder"])
    mean, log_scale = jnp.split(jax.vmap(encode)(jnp.asarray(x)), 2, axis=-1)
    noise = jax.random.normal(keys[2], (NUM_CODES, *mean.shape))
    z = np.asarray(mean + jnp.exp(log_scale - 1) * noise)
    shift, scale = z.mean((0, 1)), z.std((0, 1))
    image = lambda u: np.asarray(
        jax.vmap(decode)(jnp.asarray(u * scale + shift).reshape(-1, config.code.num_codes))
    ).reshape(*u.shape[:-1], SIZE)
    codes = (z - shift) / scale
    model = digit_models.train(
        codes.reshape(-1, config.code.num_codes), np.tile(labels, NUM_CODES), keys[3],
        num_classes=CLASSES, width=config.width, num_steps=config.num_training_steps,
    )  # fmt: skip
    return Source(model, image), image(codes[0])


def table(config: Config, key: jax.Array, seed: int) -> tuple[dict[str, dict[str, float]], dict]:
    x, labels = digit_models.load()
    train_key, key = jax.random.split(key)
    trained = lambda noising: digit_models.train(
        x, labels, train_key, num_classes=CLASSES, width=config.width, num_steps=config.num_training_steps, noising=noising
    )  # fmt: skip
    pixels = Source(trained(VP))
    code, decoded = of_code(config, x, labels, train_key)
    sources = {f"w = {w:g}": (pixels, w) for w in config.guidance} | {
        "cosine": (Source(trained(diffusion.Cosine())), 0.0),
        "code": (code, 0.0),
    }
    judge = digit_models.Classifier(seed)
    # Real images that are not among those that distances are taken from.
    floor = digit_models.cells(judge.frechet(judge.held_out))
    rows = {"real": floor | {"accuracy": judge.accuracy}}
    share = float((judge.classes(decoded) == labels).mean())
    rows["decoded"] = digit_models.cells(judge.frechet(decoded)) | {"accuracy": share}
    images = {}
    for start, (source, w) in sources.items():
        for name in SAMPLERS:
            for num in config.evaluations:  # all from the same noise
                found = sample(source, name, num, w, config.per_class, key)
                is_right = judge.classes(found) == np.arange(CLASSES)[:, None]
                cell = digit_models.cells(judge.frechet(found))
                rows[f"{start}, {name}, {num}"] = cell | {"accuracy": float(is_right.mean())}
                images[f"{start}, {name}, {num}"] = found.reshape(-1, SIZE)
    return rows, images


def report(config: Config, rows: dict) -> str:
    heads = "".join(f"{f'NFE {n}':>16}" for n in config.evaluations)
    lines = [f"{'Frechet / accuracy':<20}{heads}"]
    cell = lambda name: f"{rows[name]['Frechet']:.2f} / {rows[name]['accuracy']:.3f}"
    for row in [*(f"w = {w:g}" for w in config.guidance), "cosine", "code"]:
        for name in SAMPLERS:
            start = f"{row}, {name}"
            cells = [cell(f"{start}, {num}") for num in config.evaluations]
            lines.append(f"{start:<20}" + "".join(f"{c:>16}" for c in cells))
    lines += [
        f"{'real images':<20}{cell('real'):>16}",
        f"{'decoded codes':<20}{cell('decoded'):>16}",
    ]
    error = max(row["error"] for name, row in rows.items() if name.startswith("w = 0"))
    lines += [
        f"w: linear schedule; its standard errors without guidance are at most {error:.2f}",
        "expected: that the code loses at 8 x 8 pixels; decoded codes are those of real images",
    ]
    return "\n".join(lines)


def record(config: Config, rows: dict, seed: int) -> None:
    """Distances and accuracies without guidance, for the page of figures."""
    found = {name.removeprefix("w = 0, "): row for name, row in rows.items() if "w = 0" in name}
    digit_models.record_figure(
        "diffusion/samplers",
        what="digits, Frechet distance without its bias, by evaluations of the network; spread: standard error",
        value={name: row["Frechet"] for name, row in found.items()},
        spread={name: row["error"] for name, row in found.items()},
        seeds=str(seed),
        claim=f"{rows['real']['Frechet']:.2f} ± {rows['real']['error']:.2f}",
        claimed_by="other real images",
        note="share of the class asked for at the fewest and most evaluations: "
        + "; ".join(
            f"{name} {found[f'{name}, {config.evaluations[0]}']['accuracy']:.3f}, "
            f"{found[f'{name}, {config.evaluations[-1]}']['accuracy']:.3f}"
            for name in SAMPLERS
        ),
        digits=2,
        measures=["models/diffusion", "inference/evaluation"],
    )
    for row, what in (
        ("cosine", "by the cosine schedule in place of the linear one"),
        ("code", "diffusion of a VAE's code of eight numbers in place of pixels"),
    ):
        found = {n.removeprefix(f"{row}, "): c for n, c in rows.items() if n.startswith(row)}
        digit_models.record_figure(
            f"diffusion/samplers_{row}",
            what=f"the same, {what}",
            value={name: cell["Frechet"] for name, cell in found.items()},
            spread={name: cell["error"] for name, cell in found.items()},
            seeds=str(seed),
            claim=None if row == "cosine" else f"{rows['decoded']['Frechet']:.2f} ± {rows['decoded']['error']:.2f}",
            claimed_by=None if row == "cosine" else "decoded codes of real images",
            digits=2,
            measures=["examples/papers/diffusion/latent_prior.py", "models/diffusion", "inference/evaluation"],
        )  # fmt: skip


def draw(config: Config, rows: dict, path: Path) -> None:
    import matplotlib.pyplot as plt

    titles = {f"w = {w:g}": f"linear schedule, w = {w:g}" for w in config.guidance}
    titles |= {"cosine": "cosine schedule", "code": "code of a VAE"}
    figure, axes = plt.subplots(
        1, len(titles), figsize=(2.8 * len(titles), 3.6), layout="constrained", sharey=True, squeeze=False
    )  # fmt: skip
    for axis, (row, title) in zip(axes[0], titles.items(), strict=True):
        for name in SAMPLERS:
            values = [rows[f"{row}, {name}, {n}"]["Frechet"] for n in config.evaluations]
            axis.plot(config.evaluations, values, "-o", label=name)
        axis.axhline(rows["real"]["Frechet"], color="C7", ls=":", label="real images")
        axis.set(xscale="log", yscale="symlog", xlabel="evaluations for one sample", title=title)
        axis.set_xticks(config.evaluations, labels=map(str, config.evaluations))
        axis.minorticks_off()
    axes[0, 0].set_ylabel("Frechet distance")
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    options = digit_models.options(
        "Samplers at few and many evaluations.", "samplers", "a small network, few images and evaluations"
    )  # fmt: skip
    code = latent_prior.Config(300, num_codes=4, width=32)
    config = Config(400, 64, 20, (5, 40), (0.0,), code) if options.smoke else Config()
    rows, images = table(config, jax.random.key(options.seed), options.seed)
    digit_models.keep(options.out, report(config, rows), rows, images)
    draw(config, rows, options.out / "samplers.png")
    if options.record:
        record(config, rows, options.seed)


if __name__ == "__main__":
    main()
