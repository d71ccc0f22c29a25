"""Diffusion of digits given their nearest neighbours in a database, which is swapped for one of classes never seen.

What it shows: a set as the context. The network learns digits 0 to 4 given the four nearest others of a database; afterwards
the database is one of digits 5 to 9. As a program: index ~ Categorical(database), x ~ diffusion(neighbours of that image). Two
ways of reading the set, both indifferent to its order: an encoder (`diffusion.SetEncoder`), and beside it the neighbours' mean,
around which the pixels' levels are then looked for. Compared with a network without retrieval, and with a neighbour with noise
added. Copying is told from generating by the distance to the nearest image of the database, beside that of images which are
held out. Of the digits learned: what width of the network neighbours stand for. The bound on log p(x) takes even weights on the
eight indices nearest to x,

    log sum_i p(x | i) / N >= mean_i bound(x | i) + log(8 / N).

Neighbours are taken in 32 principal components of the digits 0 to 4, which are all that is learned about features.

Data: MNIST, 14 x 14 pixels in 8 grey levels, 3,000 images to learn from and as databases, 1,000 to compare with. Source:
Blattmann et al. 2022, arXiv:2204.11824 (retrieval-augmented diffusion; the database may be swapped after training), whose
figures are for ImageNet. Expected before the run: a share of at least 0.7 classified as 5 to 9, without retrieval 0.

Expected, two seeds, mean (sd), images of 5 to 9: share of draws classified so 0.09 by the set encoder alone, a null, 0.98
around the mean, 0.09 without retrieval, 0.96 of real images. Frechet distance 31.6, 0.94 (0.16), 35.1; a neighbour with noise
1.71 (0.31), real images 0.39. Distance to the nearest image of the database 7.06 (0.02) around the mean, 7.50 of held-out
images, 3.51 of a neighbour with noise: draws are a little nearer than new images are, and no copies. Bound, nats an image: set
encoder -152.0 (0.8), around the mean -125.2 (0.2), without retrieval -130.4 (0.1). Images of unseen classes are found in the
code of a set that was learned on others only where the pixels themselves are handed on.

Draws of 0 to 4, which were learned, by networks of width 48 / 96 / 192 / 384: Frechet distance 0.49 / 0.33 / 0.30 / 0.27 (0.4)
around the mean of neighbours, 3.4 / 2.4 / 1.8 / 1.6 (0.4 to 0.6) without retrieval, real images 0.33. So the narrowest network
with neighbours is better than the widest without, as is claimed; those draws are a little nearer to the database, 6.7 to 7.0,
than held-out images, 7.07. Run time: ten minutes of processor time on busy cores, networks of width 384 among them.

    python examples/papers/images/retrieval.py [--smoke] [--seed 0] [--out retrieval_output]
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from _mnist import (
    GRID,
    LEVELS,
    SIZE,
    Judge,
    compile_once,
    keep,
    nearest_levels,
    options,
    record_figure,
    split as split_images,
    spread,
    tiles,
)
from _two_stage import ImageDiffusion, Sizes
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from lapilli.inference import evaluation
from lapilli.models import diffusion

NUM_NEIGHBOURS, NUM_PROPOSALS = 4, 8
NOISE = 0.3  # of the copied neighbour, in standard deviations of pixels
ROWS = ("set encoder", "and around the mean", "without retrieval", "neighbour and noise")


class Config(NamedTuple):
    sizes: Sizes = Sizes(diffusion_steps=1_000)
    num_seeds: int = 2
    num_real: int = 1_000
    num_steps: int = 20
    num_bounded: int = 100
    num_times: int = 50
    widths: tuple[int, ...] = (48, 96, 192, 384)  # of networks that draw the digits they learned


class Database:
    """Images, and their neighbours among them."""

    def __init__(self, levels: np.ndarray, features: Any) -> None:
        self.levels, self.features = levels, features
        self.index = NearestNeighbors(n_neighbors=NUM_NEIGHBOURS + 1).fit(features(levels))

    def around(self, numbers: np.ndarray) -> np.ndarray:
        """Points of the neighbours of its own images, those excluded, [n, 4, 196]."""
        found = self.index.kneighbors(self.features(self.levels[numbers]), return_distance=False)
        rest = np.stack(
            [row[row != i][:NUM_NEIGHBOURS] for row, i in zip(found, numbers, strict=True)]
        )
        return GRID[self.levels[rest]]  # fmt: skip

    def nearest(self, levels: np.ndarray, num: int) -> np.ndarray:
        """Numbers of its images that are nearest to others, [n, num]."""
        return self.index.kneighbors(self.features(levels), num, return_distance=False)


class Data(NamedTuple):
    """Databases of both groups of classes; real and held-out images of the second, and of the first."""

    seen: Database
    unseen: Database
    real: np.ndarray
    held_out: np.ndarray
    real_seen: np.ndarray
    held_out_seen: np.ndarray


def load(config: Config) -> tuple[Data, Judge]:
    images = split_images(num_real=config.num_real)
    seen = images.train[images.train_labels < 5]
    pca = PCA(32, random_state=0).fit(GRID[seen])
    features = lambda levels: pca.transform(GRID[levels])
    data = Data(
        Database(seen, features),
        Database(images.train[images.train_labels >= 5], features),
        images.real[images.real_labels >= 5],
        images.held_out[images.held_out_labels >= 5],
        images.real[images.real_labels < 5],
        images.held_out[images.held_out_labels < 5],
    )
    return data, Judge(images)


def bound(model: ImageDiffusion, base: Database, levels: np.ndarray, config: Config, key: jax.Array) -> float:  # fmt: skip
    """On log p(levels), mean of images that are not in the database, nats."""
    found = base.nearest(levels, NUM_PROPOSALS)
    contexts = base.around(found.ravel())
    each = model.bound(np.repeat(levels, NUM_PROPOSALS, 0), contexts, key, config.num_times)
    return float(each.mean() + np.log(NUM_PROPOSALS / len(base.levels)))


def model_of(name: str, data: Data, sizes: Sizes, key: jax.Array) -> ImageDiffusion:
    """The row `name`, learned from the images of the first group."""
    points = GRID[data.seen.levels]
    if name == "without retrieval":
        return ImageDiffusion(points, None, sizes, key)
    encoder = diffusion.SetEncoder(SIZE, width=sizes.width, key=jax.random.fold_in(key, 1))
    return ImageDiffusion(
        points, data.seen.around(np.arange(len(points))), sizes, key, encoder=encoder,
        kind="around" if name == "and around the mean" else "levels",
    )  # fmt: skip


def run(config: Config, data: Data, judge: Judge, seed: int) -> tuple[dict, dict, dict]:
    """Columns by row; samples; distances of draws of the digits learned, by row and width."""
    keys = jax.random.split(jax.random.key(seed), 4)
    n = min(len(data.real), len(data.held_out))
    models = {name: model_of(name, data, config.sizes, keys[0]) for name in ROWS[:3]}
    rng = np.random.default_rng(seed)
    swapped = data.unseen.around(rng.choice(len(data.unseen.levels), n))
    samples, columns = {}, {}
    for name, model in models.items():
        given = None if name == "without retrieval" else swapped
        samples[name] = model.samples(given, n, config.num_steps, keys[1])
    noisy = swapped[:, 0] + NOISE * rng.normal(size=(n, SIZE))
    samples["neighbour and noise"] = nearest_levels(noisy)
    held_out = data.held_out[: config.num_bounded]
    for name, levels in samples.items():
        frechet, near = distances(levels, data.real, data.held_out, data.unseen, judge)
        assert frechet.floor is not None and near.floor is not None
        columns[name] = {
            "share 5 to 9": float((judge.classes(levels) >= 5).mean()),
            "Frechet": frechet.value,
            "nearest": near.value,
        }
        if name == "without retrieval":
            columns[name]["bound"] = float(models[name].bound(held_out, None, keys[2], config.num_times).mean())  # fmt: skip
        elif name in models:
            columns[name]["bound"] = bound(models[name], data.unseen, held_out, config, keys[2])
    columns["held-out images"] = {
        "share 5 to 9": float((judge.classes(data.held_out) >= 5).mean()),
        "Frechet": frechet.floor.value,
        "nearest": near.floor.value,
    }
    return columns, samples, by_width(config, data, judge, models, keys[0], keys[3], seed)


def by_width(
    config: Config, data: Data, judge: Judge, models: dict[str, ImageDiffusion], train_key: jax.Array, key: jax.Array, seed: int,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Of networks of each width with and without retrieval from the database that they learned from, "row, width"."""
    n, found = min(len(data.real_seen), len(data.held_out_seen)), {}
    rng = np.random.default_rng(seed)
    contexts = data.seen.around(rng.choice(len(data.seen.levels), n))
    for width in config.widths:
        for name in ROWS[1:3]:
            sizes = config.sizes._replace(width=width)
            known = width == config.sizes.width
            model = models[name] if known else model_of(name, data, sizes, train_key)
            given = None if name == "without retrieval" else contexts
            levels = model.samples(given, n, config.num_steps, key)
            frechet, near = distances(levels, data.real_seen, data.held_out_seen, data.seen, judge)
            found[f"{name}, {width}"] = {"Frechet": frechet.value, "nearest": near.value}
    assert frechet.floor is not None and near.floor is not None
    found["held-out images"] = {"Frechet": frechet.floor.value, "nearest": near.floor.value}
    return found


def distances(
    levels: np.ndarray, real: np.ndarray, held_out: np.ndarray, base: Database, judge: Judge
) -> tuple[evaluation.Estimate, evaluation.Estimate]:
    """Frechet distance from real images, and distance from the nearest image of the database; floors by held-out images."""
    n = len(levels)
    frechet = evaluation.frechet_distance(
        real[:n], levels, jax.random.key(0), features=judge.features, held_out=held_out[:n]
    )
    near = evaluation.nearest_distance(
        levels, base.levels, features=lambda l: GRID[l], held_out=held_out[:n]
    )
    return frechet, near


def report(
    rows: dict[str, dict[str, list[float]]], widths: dict[str, dict[str, list[float]]]
) -> str:
    names = ("share 5 to 9", "Frechet", "nearest", "bound")
    lines = [
        "trained on digits 0 to 4, database of 5 to 9; mean (sd) of seeds",
        f"{'':<24}" + "".join(f"{n:>20}" for n in names),
    ]
    for name, row in rows.items():
        cells = (spread(row[n]) if n in row else "-" for n in names)
        lines.append(f"{name:<24}" + "".join(f"{c:>20}" for c in cells))
    share = {name: float(np.mean(row["share 5 to 9"])) for name, row in rows.items()}
    lines += [
        "nearest: distance to the nearest image of the database; bound: nats of held-out images of 5 to 9",
        "",
        "claim: the database may be swapped after training; expected a share of at least 0.7, without retrieval 0: "
        f"{share['set encoder']:.2f} and {share['and around the mean']:.2f}, without {share['without retrieval']:.2f}",
        "",
        f"{'draws of 0 to 4, by width':<32}{'Frechet':>20}{'nearest':>20}",
    ]
    lines += [
        f"{name:<32}{spread(row['Frechet']):>20}{spread(row['nearest']):>20}"
        for name, row in widths.items()
    ]
    mean = {name: float(np.mean(row["Frechet"])) for name, row in widths.items()}
    of = lambda name: {int(n.split(", ")[1]): v for n, v in mean.items() if n.startswith(name)}
    without = of("without retrieval")
    for width, value in of("and around the mean").items():
        wide = [w for w, v in without.items() if v <= value]
        lines.append(
            f"claim: retrieval takes the place of parameters; with it a width of {width} has {value:.2f}, without it "
            + (f"{wide[0]} suffices" if wide else f"none up to {max(without)} does")
        )
    return "\n".join(lines)


def draw(
    samples: dict[str, np.ndarray], widths: dict[str, dict[str, list[float]]], data: Data, path: Path
) -> None:  # fmt: skip
    """What each model makes of the same neighbours; distances by width."""
    import matplotlib.pyplot as plt

    figure, (axis, other) = plt.subplots(1, 2, figsize=(12, 3.2), layout="constrained", width_ratios=(2.6, 1))  # fmt: skip
    shown = samples | {"held-out images": data.held_out}
    picture = np.concatenate([tiles(x[:20]) for x in shown.values()])
    axis.imshow(picture, cmap="gray_r", vmin=0, vmax=LEVELS - 1)
    axis.set(xticks=[], title="digits 0 to 4 learned, neighbours from a database of 5 to 9")
    axis.set_yticks(8 + 16 * np.arange(len(shown)), list(shown))
    for name in ROWS[1:3]:
        row = {int(n.split(", ")[1]): r["Frechet"] for n, r in widths.items() if n.startswith(name)}
        values = np.array(list(row.values()))
        label = "with neighbours" if name == ROWS[1] else name
        other.errorbar(list(row), values.mean(1), values.std(1), fmt="-o", ms=4, label=label)
    other.axhline(np.mean(widths["held-out images"]["Frechet"]), color="C7", ls=":", label="held-out images")  # fmt: skip
    other.set(xscale="log", xlabel="width of the network", title="Frechet distance of draws of 0 to 4")  # fmt: skip
    other.set_xticks(list(row), labels=map(str, row))
    other.minorticks_off()
    other.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def record(
    rows: dict[str, dict[str, list[float]]], widths: dict[str, dict[str, list[float]]], num_seeds: int
) -> None:  # fmt: skip
    """The figures, for the page of figures."""
    short = lambda name: name.replace("and around the mean", "retrieval")
    helpers = ["examples/papers/images/_two_stage.py", "examples/papers/images/_mnist.py"]
    for column, what, note in (
        (
            "share 5 to 9",
            "share of draws classified 5 to 9",
            "claim: 0.7 expected, without retrieval 0",
        ),
        ("Frechet", "Frechet distance from real images of 5 to 9, extrapolated", None),
        ("nearest", "distance to the nearest image of the database", None),
    ):
        record_figure(
            f"images/retrieval_{column.split()[0].lower()}",
            what=f"diffusion of digits 0 to 4 given neighbours, database of 5 to 9: {what}; spread: sd over seeds",
            value={n: float(np.mean(row[column])) for n, row in rows.items()},
            spread={n: float(np.std(row[column])) for n, row in rows.items()},
            note=note,
            digits=2,
            seeds=num_seeds,
            measures=helpers,
        )
    record_figure(
        "images/retrieval_width",
        what="draws of digits 0 to 4 by networks of several widths that learned these, with neighbours (around their mean) and "
        "without: Frechet distance, extrapolated; spread: sd over seeds",
        value={short(n): float(np.mean(row["Frechet"])) for n, row in widths.items()},
        spread={short(n): float(np.std(row["Frechet"])) for n, row in widths.items()},
        note="distance to the nearest training image: "
        + "; ".join(f"{short(n)} {np.mean(row['nearest']):.2f}" for n, row in widths.items()),
        claim="fewer parameters at equal distance",
        claimed_by="arXiv:2204.11824",
        digits=2,
        seeds=num_seeds,
        measures=helpers,
    )


def main() -> None:
    chosen = options("Diffusion given neighbours.", "retrieval", "small networks, one seed")
    compile_once()
    config = Config()
    if chosen.smoke:
        config = Config(Sizes(0, 400, width=64, batch=64), 1, 1_000, 5, 10, 10, (16, 64))
    data, judge = load(config)
    rows: dict[str, dict[str, list[float]]] = {}
    widths: dict[str, dict[str, list[float]]] = {}
    samples: dict[str, np.ndarray] = {}
    for seed in range(chosen.seed, chosen.seed + config.num_seeds):
        columns, samples, found = run(config, data, judge, seed)
        for table, part in ((rows, columns), (widths, found)):
            for name, row in part.items():
                for column, value in row.items():
                    table.setdefault(name, {}).setdefault(column, []).append(value)
    keep(chosen.out, report(rows, widths), {"swapped": rows, "widths": widths}, samples)
    draw(samples, widths, data, chosen.out / "retrieval.png")
    if chosen.record:
        record(rows, widths, config.num_seeds)


if __name__ == "__main__":
    main()
