"""Two conditional models composed: a digit's class and its ink, learned apart, asked for together.

What it shows: from q(x | class), q(x | ink) and q(x) the law of both conditions is, if they are independent given x, the
product at b = 1 of

    q(x | class)^b q(x | ink)^b q(x)^(1 - 2b),

in which larger b guide more strongly. Adding scores up does not sample it; the same steps with the weights of
`inference.diffusion.fkc` do. First where all is known: digits in two principal components, one Gaussian for each class and ink,
whose product is compared on a grid. Then with two networks, one that has seen classes and one that has seen amounts of ink,
neither of which knows of the other.

Data: scikit-learn's digits, 1,797 images of 8 x 8 pixels; ink is the third of all images, by sum of pixels, that an image
belongs to. Source: Skreta et al. 2025, arXiv:2503.02819, propositions 3.3 and D.5 (there molecules for two targets); Du et al.
2023, arXiv:2302.11552, for the composition. No number for digits is published.

Expected: in the plane added scores are 0.095 (b = 1) and 0.169 (b = 2) away from the product in total variation, with weights
0.098 and 0.100 at noise 1, 0.099 and 0.100 at the automatic noise; exact draws come to 0.094 and 0.076. With networks, at b = 1,
0.725 of the images have both class and ink (0.34 from the class alone), with weights 0.716, a null result: there is little to
correct. Run time: three minutes on 2 CPU cores.

    python examples/papers/diffusion/composition.py [--smoke] [--seed 0] [--out composition_output]
"""

import functools
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import _digit_models as digit_models
import jax
import jax.numpy as jnp
import numpy as np
from _digit_models import CLASSES, VP
from sklearn.decomposition import PCA

from lapilli import inference
from lapilli.models import diffusion

INKS = 3
NAMES = ("light", "medium", "heavy")
POWERS = (1.0, 2.0)
# Noise scale, and whether particles have weights.
ARMS = {"scores added": (1.0, False), "FKC, noise 1": (1.0, True), "FKC": ("auto", True)}


class Config(NamedTuple):
    num_training_steps: int = 3_000
    width: int = 192
    num_steps: int = 100
    num_particles: int = 32  # of a pair of conditions
    plane_particles: int = 1_000
    until: float = 0.2  # where weights of learned scores end


def ink() -> tuple[np.ndarray, np.ndarray]:
    """Of all images, and the bounds between light, medium and heavy."""
    sums = digit_models.load()[0].sum(1)
    bounds = np.quantile(sums, [1 / 3, 2 / 3])
    return np.digitize(sums, bounds), bounds


def particles(
    models: Any, times: Any, num: int, arm: str, key: jax.Array, power: float = 1.0
) -> jax.Array:
    """Equally weighted draws from (models[0] models[1])^b models[2]^(1 - 2b); without weights scores are only added."""
    run_key, draw_key = jax.random.split(key)
    zeta, is_weighted = ARMS[arm]
    with warnings.catch_warnings():
        # What noise 1 does to the weights is what its row shows, and networks are run in as few steps as they can.
        warnings.filterwarnings("ignore", message="fkc: .* infinite variance")
        target = inference.diffusion.fkc(
            models, times, exponents=[power, power, 1 - 2 * power], zeta=zeta
        )
    policy = None if is_weighted else inference.particles.resampling.never()
    result = inference.smc(target, run_key, num_particles=num, policy=policy, history="none")
    return result.sample(draw_key, num).x if is_weighted else result.particles.x


# In the plane, where the product is known.

EDGES = np.linspace(-3.5, 3.5, 21)


@functools.cache
def cells() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights [classes, inks], means and variances [classes, inks, 2] of two principal components of variance 1."""
    (x, labels), (inks, _) = digit_models.load(), ink()
    z = PCA(2, random_state=0).fit_transform(x)
    z = z / z.std(0)
    weights = np.zeros((CLASSES, INKS))
    means, variances = np.zeros((2, CLASSES, INKS, 2))
    for c in range(CLASSES):
        for a in range(INKS):
            part = z[(labels == c) & (inks == a)]
            # Pseudo-counts: a pair may have few images.
            weights[c, a] = len(part) + 1
            means[c, a] = (part.sum(0) + z[labels == c].mean(0)) / (len(part) + 1)
            variances[c, a] = part.var(0) * len(part) / (len(part) + 5) + 0.05
    return weights / weights.sum(), means, variances


def plane_models(c: Any, a: Any) -> list[Any]:
    """The models q(x | class), q(x | ink), q(x): one mixture of all cells with three sets of weights."""
    weights, means, variances = (jnp.asarray(part, jnp.float32) for part in cells())
    of_class = jnp.zeros_like(weights).at[c].set(weights[c])
    of_ink = jnp.zeros_like(weights).at[:, a].set(weights[:, a])
    return [
        diffusion.gaussian_mixture(VP, w.ravel(), means.reshape(-1, 2), variances.reshape(-1, 2))
        for w in (of_class, of_ink, weights)
    ]


def plane_exact(power: float, edges: np.ndarray = EDGES) -> np.ndarray:
    """Mass of the product in the cells of a grid, [classes, inks, cells, cells], by 4 x 4 points a cell."""
    weights, means, variances = cells()
    size = len(edges) - 1
    fine = np.linspace(edges[0], edges[-1], 8 * size + 1)[1::2]
    x = np.stack(np.meshgrid(fine, fine, indexing="ij"), -1)[:, :, None, None]
    square = (x - means) ** 2 / variances + np.log(2 * np.pi * variances)
    joint = weights * np.exp(-0.5 * square.sum(-1)) + 1e-300  # [fine, fine, classes, inks]
    product = power * np.log(joint.sum(3)[..., :, None] * joint.sum(2)[..., None, :])
    product += (1 - 2 * power) * np.log(joint.sum((2, 3)))[..., None, None]
    product = np.exp(product - product.max((0, 1)))
    product /= product.sum((0, 1))
    return np.moveaxis(product.reshape(size, 4, size, 4, CLASSES, INKS).sum((1, 3)), (0, 1), (2, 3))


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def plane_run(config: Config, arm: str, key: jax.Array, power: float) -> jax.Array:
    """Draws for all pairs, [classes, inks, particles, 2]."""
    times = np.linspace(1.0, 0.0, 2 * config.num_steps + 1)
    one = lambda key, c, a: particles(
        plane_models(c, a), times, config.plane_particles, arm, key, power
    )
    over_inks = jax.vmap(one, (0, None, 0))
    keys = jax.random.split(key, (CLASSES, INKS))
    return jax.lax.map(lambda i: over_inks(i[0], i[1], jnp.arange(INKS)), (keys, jnp.arange(CLASSES)))  # fmt: skip


def plane_table(config: Config, key: jax.Array) -> tuple[dict[str, dict[str, float]], dict]:
    """Total variation to the exact product over cells, mean of the pairs, and the same for exact draws."""
    rng = np.random.default_rng(0)
    count = lambda points: np.histogram2d(*np.clip(points, -3.49, 3.49).T, bins=[EDGES, EDGES])[0]
    num, size = config.plane_particles, len(EDGES) - 1
    table: dict[str, dict[str, float]] = {}
    shown: dict[str, Any] = {}
    for power in POWERS:
        exact = plane_exact(power)
        share = lambda counts, e=exact: np.reshape(counts, e.shape) / num
        distance = lambda counts, e=exact, s=share: float(
            np.mean(np.abs(s(counts) - e).sum((2, 3)) / 2)
        )
        fair = [rng.multinomial(num, e.ravel()) for e in exact.reshape(-1, size, size)]
        row = {"exact draws": distance(fair)}
        for name, (_, is_weighted) in ARMS.items():
            x = np.asarray(plane_run(config, name, jax.random.fold_in(key, is_weighted), power))
            row[name] = distance([count(points) for points in x.reshape(-1, num, 2)])
            shown[name] = x
        table[f"{power:g}"] = row
    return table, shown


# Two networks for all pixels.


def digits_run(
    config: Config, by_class: Any, by_ink: Any, arm: str, until: float, key: jax.Array
) -> np.ndarray:
    """Images [classes, inks, particles, 64]; weighted up to the time `until`, then scores are only added."""
    times, num = np.asarray(VP.times(config.num_steps)), config.num_particles
    split = round(config.num_steps * (1 - until))

    def one(inputs: Any) -> jax.Array:
        key, c, a = inputs
        models = [by_class(context=c), by_ink(context=a), by_class()]
        run_key, rest_key = jax.random.split(key)
        x = particles(models, times[: split + 1], num, arm, run_key)
        if split == config.num_steps:
            return x
        score = lambda x, t: models[0].score(x, t) + models[1].score(x, t) - models[2].score(x, t)
        rest = inference.diffusion.Diffusion(VP, score, (64,))
        return diffusion.euler_maruyama(rest, rest_key, times[split:], num_samples=num, start=x)

    keys = jax.random.split(key, CLASSES * INKS)
    pairs = np.divmod(np.arange(CLASSES * INKS), INKS)
    x = jax.jit(lambda keys: jax.lax.map(one, (keys, *map(jnp.asarray, pairs))))(keys)
    return np.asarray(x).reshape(CLASSES, INKS, num, 64)


def shares(judge: digit_models.Classifier, x: np.ndarray) -> dict[str, float]:
    """Of images [classes, inks, particles, 64]: those with the class, the ink, and both that were asked for."""
    has_class = judge.classes(x) == np.arange(CLASSES)[:, None, None]
    has_ink = np.digitize(x.sum(-1), ink()[1]) == np.arange(INKS)[:, None]
    found = {"class": has_class, "ink": has_ink, "both": has_class & has_ink}
    distinct = np.mean([len(np.unique(p.round(5), axis=0)) for p in x.reshape(-1, *x.shape[2:])])
    return {n: float(share.mean()) for n, share in found.items()} | {"distinct": float(distinct)}


def digits_table(config: Config, key: jax.Array, seed: int) -> tuple[dict, dict]:
    x, labels = digit_models.load()
    learn = functools.partial(
        digit_models.train, x, width=config.width, num_steps=config.num_training_steps
    )
    keys = jax.random.split(key, 2)
    by_class = learn(labels, keys[0], num_classes=CLASSES)
    by_ink = learn(ink()[0], keys[1], num_classes=INKS)
    judge = digit_models.Classifier(seed)
    table: dict[str, dict[str, float]] = {"real": {"class": judge.accuracy}}
    images = {}
    nothing = lambda context=None: by_class()
    arms = {
        "class alone": (by_class, nothing, "scores added", 0.0),
        "scores added": (by_class, by_ink, "scores added", 0.0),
        "FKC": (by_class, by_ink, "FKC", 0.0),
        f"FKC until t = {config.until:g}": (by_class, by_ink, "FKC", config.until),
    }
    for i, (name, arm) in enumerate(arms.items()):
        images[name] = digits_run(config, *arm, jax.random.fold_in(key, 2 + i))
        table[name] = shares(judge, images[name])
    return table, images


def report(plane: dict, digits: dict) -> str:
    lines = ["two principal components: total variation to the product, mean of 30 pairs"]
    for power, row in plane.items():
        cells = ", ".join(f"{name} {value:.3f}" for name, value in row.items())
        lines.append(f"  b = {power}: {cells}")
    columns = ["class", "ink", "both", "distinct"]
    lines.append(f"{'64 pixels, shares as asked':<28}" + "".join(f"{c:>10}" for c in columns))
    for name, row in digits.items():
        cells = [f"{row[c]:.3f}" if c in row else "-" for c in columns]
        lines.append(f"{name:<28}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


def draw(shown: dict, images: dict, out: Path) -> None:
    import matplotlib.pyplot as plt

    edges = np.linspace(EDGES[0], EDGES[-1], 61)
    exact, middle = plane_exact(POWERS[-1], edges), (edges[1:] + edges[:-1]) / 2
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.4), layout="constrained", sharex=True, sharey=True)  # fmt: skip
    for axis, name in zip(axes, ("scores added", "FKC"), strict=True):
        for i, (c, a) in enumerate([(0, 2), (1, 0), (4, 1), (3, 2), (7, 0)]):
            axis.plot(*shown[name][c, a, :400].T, ".", ms=2, alpha=0.5, color=f"C{i}")
            mass = exact[c, a]
            levels = mass.max() * np.array([0.1, 0.5])
            axis.contour(middle, middle, mass.T, levels=levels, colors=f"C{i}", linewidths=0.9)
        axis.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2))
        axis.set_title(f"{name}; lines: exact, b = {POWERS[-1]:g}", fontsize=10)
    figure.savefig(out / "plane.png", dpi=120)
    plt.close(figure)

    figure, axes = plt.subplots(
        len(images), 1, figsize=(10, 1.75 * len(images)), layout="constrained"
    )
    for axis, (name, x) in zip(axes, images.items(), strict=True):
        frame = lambda image: np.pad(image.reshape(8, 8), 1, constant_values=-1)
        rows = [
            np.concatenate([frame(x[c, a, i]) for c in range(CLASSES) for i in (0, 7)], 1)
            for a in range(INKS)
        ]
        axis.imshow(np.concatenate(rows), cmap="gray_r", vmin=-1, vmax=2)
        axis.set(xticks=[], yticks=[5, 15, 25], yticklabels=NAMES)
        axis.set_title(name, fontsize=9, loc="left", pad=2)
    figure.savefig(out / "digits.png", dpi=120)
    plt.close(figure)


def record(plane: dict[str, dict[str, float]], seed: int) -> None:
    """The figures of the plane, for the page of figures."""
    digit_models.record_figure(
        "diffusion/composition",
        what="class and ink of digits composed, total variation to the product: scores added; with weights at noise 1; with "
        "weights at the automatic noise",
        value={f"{arm}, b = {b}": row[arm] for arm in ARMS for b, row in plane.items()},
        seeds=str(seed),
        claim={f"FKC, b = {b}": row["exact draws"] for b, row in plane.items()},
        claimed_by="exact draws",
        measures=["inference/diffusion", "models/diffusion"],
    )


def main() -> None:
    options = digit_models.options(
        "Classes and inks of digits, composed.", "composition", "small networks, few particles and steps"
    )  # fmt: skip
    config = Config(400, 64, 40, 8, 400) if options.smoke else Config()
    key = jax.random.key(options.seed)
    plane, shown = plane_table(config, jax.random.fold_in(key, 0))
    digits, images = digits_table(config, jax.random.fold_in(key, 1), options.seed)
    kept = {name: x.reshape(-1, 8, 8) for name, x in images.items()}
    digit_models.keep(options.out, report(plane, digits), {"plane": plane, "digits": digits}, kept)
    draw(shown, images, options.out)
    if options.record:
        record(plane, options.seed)


if __name__ == "__main__":
    main()
