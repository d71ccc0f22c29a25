"""Training sets with generated rows: do classifiers become better, or more robust?

What it shows: first a law of which all is known, x | y ~ Normal(y mu, sigma^2 I) with y = +-1. A classifier is the mean theta of
y x over m real rows and gamma m rows of a generator, which has the class means and the pooled variances of the real ones. Error
and negative log-likelihood of theta are exact,

    risk = Phi(-theta'mu / (sigma |theta|)),   nll - nll of mu = |theta - mu|^2 / (2 sigma^2),

and so is the mean of the latter, d / (2 m) (1 + gamma / (1 + gamma)^2): the generator knows no more than the rows that it was
fitted to, and its noise is added. Then digits: few labelled images, with images of the classes' normals and of a conditional
variational autoencoder. Last, robustness: networks on rotated and noisy images, beside the line of networks that were trained on
real images, of several widths and amounts.

Data: scikit-learn's digits, 1,797 images of 8 x 8 pixels, over 16. Source: Zheng, Wu and Li 2023, arXiv:2305.17476 (augmentation
helps at a constant level where rows are few: a bound), Bansal and Grover 2023, arXiv:2302.02503 (generated images raise
robustness under natural shifts of ImageNet); no number for digits is published.

Expected, seed 0. Ten rows in ten dimensions: nll rises from 0.501 to 0.626 at gamma = 1 and is 0.524 at 20 (exact: 0.500,
0.625, 0.523), the excess error from 0.0284 to 0.0356 and 0.0297. In 1 to 50 dimensions, with 10 to 200 rows, generated rows
help nowhere; in one dimension the error is the same for all theta > 0. Digits, change of accuracy in points by 1 / 5 / 20
generated images for a real one: of 50 real ones (86.7%) -1.3 / -1.5 / -2.2 by class normals and 0.0 / -1.0 / -1.0 by the
autoencoder, of 200 (92.7%) -1.2 / -2.3 / -2.9 and -0.8 / -1.1 / -1.5, +- 0.2 to 0.7: a null result, and a harm. Robustness,
points above the line, rotated / noisy: real and generated images +3.6 / +0.7, generated ones alone +6.3 / +5.6 (+- 0.5 to 1.0
over three seeds), at an accuracy of 92% in place of 95%; copies of real images with the noise of the generator's pixels +1.3 /
-1.5, so that it is not the noise. But usual networks lie 3 to 6 points (sd) beside the line. Run time: three minutes on 2 CPU
cores.

    python examples/papers/evaluation/augment.py [--smoke] [--seed 0] [--out augment_output]
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import _conditional_vae as conditional_vae
import _normal_law
import _scripts
import jax
import numpy as np
from scipy.ndimage import rotate
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from lapilli.inference import evaluation

CLASSES = 10
GENERATORS = ("class normals", "conditional VAE")


class Config(NamedTuple):
    repeats: int = 20_000  # of the normal law
    amounts: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 5.0, 20.0)  # gamma
    num_real: tuple[int, ...] = (50, 200)
    folds: tuple[int, ...] = (0, 1, 5, 20)  # gamma for digits
    seeds: int = 5
    vae_steps: int = 1_500
    robust_rows: int = 600
    robust_seeds: int = 3
    widths: tuple[int, ...] = (4, 8, 16, 32, 64)
    shares: tuple[float, ...] = (0.2, 0.5, 1.0)


def normal_law(config: Config, seed: int) -> list[dict[str, Any]]:
    rng, rows = np.random.default_rng(seed), []
    error = lambda x: float(x.std(ddof=1) / len(x) ** 0.5)
    best = _normal_law.mean_risk(1, 0.0)
    for d in (1, 2, 10, 50):
        for m in (10, 40, 200):
            mu, found = np.eye(d)[0], _normal_law.thetas(d, m, config.amounts, config.repeats, rng)
            risks = _normal_law.risk(found, mu)
            alone = _normal_law.mean_risk(d, _normal_law.SIGMA**2 / m) - best
            for gamma, theta, each in zip(config.amounts, found, risks, strict=True):
                nll = _normal_law.excess_nll(theta, mu)
                gain = each - risks[0]
                rows.append({
                    "d": d, "m": m, "gamma": gamma, "risk": float(np.maximum(each - best, 0).mean()), "risk error": error(each),
                    "alone, exact": alone, "change": float(gain.mean()), "change error": error(gain),
                    "nll": float(nll.mean()), "nll error": error(nll), "nll, exact": _normal_law.mean_excess_nll(d, m, gamma),
                })  # fmt: skip
    return rows


# Digits.


class Digits(NamedTuple):
    """Images [n, 64] and labels, to train on and to test on."""

    x: np.ndarray
    labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def split(num: int, seed: int) -> Digits:
    """As many training images, equally many of each class if their number allows it, and 597 others to test on."""
    x, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    pool, test = order[:1_200], order[1_200:]
    by_class = np.argsort(labels[pool], kind="stable")
    place = np.empty(len(pool), int)  # within its class
    for c in range(CLASSES):
        mine = by_class[labels[pool][by_class] == c]
        place[mine] = np.arange(len(mine))
    train = pool[np.argsort(place, kind="stable")[:num]]
    return Digits(x[train] / 16, labels[train], x[test] / 16, labels[test])


def normals(x: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray, jax.Array], np.ndarray]:
    """Class means and pooled variances by pixel, as a function that draws."""
    means = np.stack([x[labels == c].mean(0) for c in range(CLASSES)])
    spread = np.sqrt(((x - means[labels]) ** 2).sum(0) / (len(x) - CLASSES))
    noise = lambda key, shape: np.asarray(jax.random.normal(key, shape), float)
    return lambda asked, key: means[asked] + spread * noise(key, (len(asked), x.shape[1]))


def generators(data: Digits, config: Config, key: jax.Array) -> dict[str, Callable]:
    vae, _ = vae_of(data, config, key)
    return dict(zip(GENERATORS, (normals(data.x, data.labels), vae), strict=True))


def vae_of(data: Digits, config: Config, key: jax.Array) -> tuple[Callable, float]:
    return conditional_vae.trained(
        data.x, data.labels, key, classes=CLASSES, steps=config.vae_steps
    )


def few_labels(config: Config, seed: int) -> dict[str, list[float]]:
    """Accuracy of a logistic regression, [seeds], by number of real images, generator and amount."""
    rows: dict[str, list[float]] = {}
    for m in config.num_real:
        for number in range(config.seeds):
            data = split(m, seed + number)
            key = jax.random.fold_in(jax.random.key(seed), number)
            for name, draw in generators(data, config, key).items():
                asked = np.tile(data.labels, max(config.folds))
                made = draw(asked, key)
                for fold in config.folds[1:]:
                    score = evaluation.classification_accuracy_score(
                        data.x, data.labels, made[: fold * m], asked[: fold * m], data.test, data.test_labels, key,
                        train_on="both", classifier=LogisticRegression(max_iter=2_000),
                    )  # fmt: skip
                    rows.setdefault(f"{m} {name} {fold}", []).append(score.value)
                    assert score.floor is not None
                rows.setdefault(f"{m} {name} 0", []).append(score.floor.value)
    return rows


def shifts(x: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The same images, rotated by 20 degrees to either side, and with noise on each pixel."""
    rng = np.random.default_rng(seed)
    images, side = x.reshape(-1, 8, 8), rng.choice([-20.0, 20.0], len(x))
    turned = [rotate(i, a, reshape=False, order=1) for i, a in zip(images, side, strict=True)]
    return {
        "rotated": np.reshape(turned, x.shape),
        "noisy": x + 0.25 * rng.normal(size=x.shape),
    }


def robustness(config: Config, seed: int) -> tuple[list[dict[str, Any]], dict[str, list[list[float]]]]:  # fmt: skip
    """Effective robustness of classifiers by training set and shift, seed by seed; and points (accuracy, shifted) by kind."""
    found: list[dict[str, Any]] = []
    points: dict[str, list[list[float]]] = {}
    for number in range(config.robust_seeds):
        data = split(config.robust_rows, seed + number)
        key = jax.random.fold_in(jax.random.key(seed), 100 + number)
        draw, scale = vae_of(data, config, key)
        asked = np.tile(data.labels, 3)
        made = draw(asked, key)
        # What the noise of the generator's pixels does by itself.
        copies = np.tile(data.x, (3, 1)) + scale * np.random.default_rng(number).normal(size=made.shape)  # fmt: skip
        tests = {"test": data.test, **shifts(data.test, seed + number)}

        def hits(x: np.ndarray, labels: np.ndarray, width: int) -> dict[str, np.ndarray]:
            net = MLPClassifier((width,), max_iter=2_000, alpha=1e-2, tol=1e-3, random_state=number)  # noqa: B023
            net.fit(x, labels)
            return {n: net.predict(t) == data.test_labels for n, t in tests.items()}  # noqa: B023

        kinds = {
            "real": (data.x, data.labels),
            "real and generated": (np.concatenate([data.x, made]), np.concatenate([data.labels, asked])),
            "generated": (made, asked),
            "copies with noise": (copies, asked),
        }  # fmt: skip
        width = config.widths[-2]
        rest = lambda k, share: (k[0][: int(share * len(k[0]))], k[1][: int(share * len(k[0]))])
        others = [hits(*rest(kinds["real"], s), w) for s in config.shares for w in config.widths]
        judged = {name: hits(*kind, width) for name, kind in kinds.items() if name != "real"}
        for shift in list(tests)[1:]:
            plain, shifted = (np.stack([o[n] for o in others]) for n in ("test", shift))
            pair = lambda h, s=shift: [float(h["test"].mean()), float(h[s].mean())]
            points.setdefault(f"real, {shift}", []).extend(map(pair, others))
            for name, h in judged.items():
                e = evaluation.effective_robustness(h["test"], h[shift], plain, shifted)
                points.setdefault(f"{name}, {shift}", []).append(pair(h))
                assert e.floor is not None
                found.append({
                    "kind": name, "shift": shift, "value": e.value, "error": e.standard_error,
                    "usual": e.floor.standard_error, **e.details,
                })  # fmt: skip
    return found, points


def report(law: list, digits: dict, robust: list, config: Config) -> str:
    lines = ["normal law, excess over the best: risk (alone: quadrature) and negative log-likelihood"]  # fmt: skip
    lines += [f"{'d':>3}{'m':>5}{'gamma':>7}{'risk':>18}{'alone':>9}{'change of it':>20}{'nll':>18}{'exact':>9}"]  # fmt: skip
    for r in law:
        lines.append(
            f"{r['d']:>3}{r['m']:>5}{r['gamma']:>7g}{r['risk']:>9.4f} +- {r['risk error']:.4f}{r['alone, exact']:>9.4f}"
            f"{r['change']:>10.5f} +- {r['change error']:.5f}{r['nll']:>9.4f} +- {r['nll error']:.4f}{r['nll, exact']:>9.4f}"
        )
    lines += [
        f"digits, accuracy of a logistic regression, change by generated images; points, {config.seeds} seeds"
    ]
    for m in config.num_real:
        for name in GENERATORS:
            alone = np.array(digits[f"{m} {name} 0"])
            cells = [f"{m} real: {100 * alone.mean():.1f}"]
            for fold in config.folds[1:]:
                mean, error = gain(digits, m, name, fold)
                cells.append(f"{fold}-fold {mean:+.1f} +- {error:.1f}")
            lines.append(f"  {name:<16} " + ", ".join(cells))
    lines += [
        "robustness, points: accuracy, shifted, above the line of real images +- rows (usual spread)"
    ]
    for r in robust:
        lines.append(
            f"  {r['kind']:<19}{r['shift']:<8} {100 * r['accuracy']:.1f} {100 * r['shifted']:.1f} {100 * r['value']:+.1f} "
            f"+- {100 * r['error']:.1f} ({100 * r['usual']:.1f})"
        )
    for kind, shift in dict.fromkeys((r["kind"], r["shift"]) for r in robust):
        mean, error = above(robust, kind, shift)
        lines.append(f"  {kind}, {shift}: mean of {config.robust_seeds} seeds {mean:+.1f} +- {error:.1f}")  # fmt: skip
    return "\n".join(lines)


def gain(digits: dict, m: int, name: str, fold: int) -> tuple[float, float]:
    """Points that generated images add, and the error from seeds."""
    change = 100 * (np.array(digits[f"{m} {name} {fold}"]) - digits[f"{m} {name} 0"])
    return float(change.mean()), float(change.std(ddof=1) / len(change) ** 0.5)


def above(robust: list, kind: str, shift: str) -> tuple[float, float]:
    """Points above the line, and the error from seeds."""
    each = 100 * np.array([r["value"] for r in robust if (r["kind"], r["shift"]) == (kind, shift)])
    return float(each.mean()), float(each.std(ddof=1) / len(each) ** 0.5)


def draw(law: list, digits: dict, points: dict, config: Config, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(15, 3.8), layout="constrained")
    normal, few, *shifted = axes
    some = [r for r in law if r["d"] == 10 and r["m"] == 10]
    column = lambda name: np.array([r[name] for r in some])
    gammas = np.append(0, np.geomspace(0.01, max(config.amounts), 200))
    nll = [_normal_law.mean_excess_nll(10, 10, g) for g in gammas]
    normal.plot(gammas, nll, "C0-", lw=1, label="nll, exact")
    for name, style in (("nll", "C0o"), ("risk", "C1s")):
        error = 2 * column(f"{name} error")
        normal.errorbar(column("gamma"), column(name), error, fmt=style, ms=4, label=name)
    normal.axhline(some[0]["alone, exact"], color="C1", ls=":", label="risk, gamma = 0, exact")
    normal.set(xlabel="gamma, generated rows for a real one", ylabel="excess over the best")
    normal.set_title("normal law, d = 10, 10 real rows", fontsize=10)
    for i, m in enumerate(config.num_real):
        for name, style in zip(GENERATORS, ("--s", "-o"), strict=True):
            mean, error = np.array([gain(digits, m, name, f) for f in config.folds]).T
            label = f"{m} real, {name}"
            few.errorbar(config.folds, mean, 2 * error, fmt=f"C{i}{style}", ms=4, lw=1, label=label)
    few.axhline(0.0, color="0.5", lw=1)
    few.set(xlabel="generated images for a real one", ylabel="change of accuracy, points")
    few.set_title("digits, logistic regression", fontsize=10)
    for axis in (normal, few):
        axis.set_xscale("symlog")
        axis.set_xticks([0, 1, 5, 20], labels=["0", "1", "5", "20"])
        axis.minorticks_off()
    kinds = {"real": "o", "real and generated": "C0o", "generated": "C1s", "copies with noise": "C2^"}  # fmt: skip
    for axis, shift in zip(shifted, ("rotated", "noisy"), strict=True):
        for kind, style in kinds.items():
            x, y = np.array(points[f"{kind}, {shift}"]).T
            color = {"color": "0.7", "ms": 3} if kind == "real" else {"ms": 6}
            axis.plot(x, y, style, label=kind, **color)
        axis.set(xlabel="accuracy", ylabel=f"accuracy, {shift}")
        axis.set_title(f"digits, {shift}: a point a network", fontsize=10)
    for axis in axes:
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def record(law: list, digits: dict, robust: list, config: Config, seed: int) -> None:
    """The figures, for the page of figures."""
    helpers = ("_conditional_vae", "_normal_law")
    measures = [
        "inference/evaluation",
        *(f"examples/papers/evaluation/{name}.py" for name in helpers),
    ]
    some = {r["gamma"]: r for r in law if r["d"] == 10 and r["m"] == 10}
    _scripts.record_figure(
        "evaluation/augment_normal",
        what="classifier sign(theta'x) of a normal law in 10 dimensions, theta from 10 real rows and gamma generated ones for "
        f"each: excess negative log-likelihood in nats, spread: standard error over {config.repeats:,} repeats",
        value={f"gamma {g:g}": r["nll"] for g, r in some.items()},
        spread={f"gamma {g:g}": r["nll error"] for g, r in some.items()},
        claim={f"gamma {g:g}": r["nll, exact"] for g, r in some.items()},
        claimed_by="exact",
        note="the generator was fitted to the same rows: it adds noise and no knowledge",
        digits=4, seeds=str(seed), measures=measures,
    )  # fmt: skip
    gains = {
        f"{m} real, {name}, {f}-fold": gain(digits, m, name, f)
        for m in config.num_real for name in GENERATORS for f in config.folds[1:]
    }  # fmt: skip
    _scripts.record_figure(
        "evaluation/augment_digits",
        what="digits, logistic regression on real and generated images, points of accuracy gained over the real ones alone; "
        "spread: standard error over seeds",
        value={name: mean for name, (mean, _) in gains.items()},
        spread={name: error for name, (_, error) in gains.items()},
        digits=1, seeds=config.seeds, measures=measures,
    )  # fmt: skip
    lifts = {f"{k}, {s}": above(robust, k, s) for k, s in dict.fromkeys((r["kind"], r["shift"]) for r in robust)}  # fmt: skip
    _scripts.record_figure(
        "evaluation/robustness",
        what="digits rotated by 20 degrees or with noise, effective robustness of a network trained with generated images, "
        "points above the line of networks trained on real ones; spread: standard error over seeds",
        value={name: mean for name, (mean, _) in lifts.items()},
        spread={name: error for name, (_, error) in lifts.items()},
        note=f"usual networks lie {100 * np.mean([r['usual'] for r in robust]):.1f} points (sd) beside the line",
        digits=1, seeds=config.robust_seeds, measures=measures,
    )  # fmt: skip


def main() -> None:
    options = _scripts.options(
        "Training sets with generated rows.", "augment", "few repeats and seeds, short training"
    )
    config = (
        Config(2_000, (0.0, 1.0, 20.0), (50,), (0, 5), 2, 100, 300, 2, (8, 16, 32), (0.3, 1.0))
        if options.smoke
        else Config()
    )
    law = normal_law(config, options.seed)
    digits = few_labels(config, options.seed)
    robust, points = robustness(config, options.seed)
    metrics = {"law": law, "digits": digits, "robust": robust, "points": points}
    _scripts.keep(options.out, report(law, digits, robust, config), metrics)
    draw(law, digits, points, config, options.out / "augment.png")
    if options.record:
        record(law, digits, robust, config, options.seed)


if __name__ == "__main__":
    main()
