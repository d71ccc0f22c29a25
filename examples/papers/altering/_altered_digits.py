"""What the scripts that alter a learned model of digits share: the model, what is made of it, rewards from examples, tables."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.preprocessing import PolynomialFeatures

from lapilli import inference
from lapilli.inference import evaluation
from lapilli.models import diffusion

sys.path.append(str(Path(__file__).resolve().parents[2]))
sys.path.append(str(Path(__file__).resolve().parents[1] / "diffusion"))
from _digit_models import SIZE, VP, Classifier as Classifier, load as load
from _record import keep, parsed, record_figure

GRID = VP.log_snr_times(40)
SEEDS = (0, 1, 2)
Rows = dict[str, dict[str, float]]


def fitted(network: Any, x: Any, key: jax.Array, num_steps: int, rate: float = 2e-3) -> Any:
    """The network, or its adapters, trained on images by denoising, from where it is; averaged weights."""
    fit = inference.fit(
        diffusion.score_matching(network, VP),
        optax.adam(optax.cosine_decay_schedule(rate, num_steps)),
        (jnp.asarray(x), None),
        num_steps=num_steps, key=key, subsample={"rows": min(128, len(x))}, average=0.995, progress=False,
    )  # fmt: skip
    return with_values(network, fit.params["network"])


def with_values(network: Any, values: Any) -> Any:
    """The network with the numbers that a fit has found for it."""
    return eqx.combine(values, eqx.filter(network, eqx.is_inexact_array, inverse=True))


def new_network(width: int, key: jax.Array) -> Any:
    return diffusion.MLP((SIZE,), width=width, depth=3, key=key)


def model_of(network: Any) -> Any:
    return diffusion.from_network(network, VP, (SIZE,))


def draws(network: Any, key: jax.Array, number: int) -> np.ndarray:
    """Images of the model's chain, [number, 64]."""
    run = jax.jit(lambda k: diffusion.ancestral(model_of(network), k, GRID, num_samples=number))
    return np.asarray(run(key))


def log_share(
    examples: np.ndarray, drawn: np.ndarray, axes: Sequence[int] | None
) -> Callable[[Any], Any]:
    """X -> log p(class | x), at most 0, from examples of the class and draws of the model.

    S(x) tells them apart, in some principal axes of the draws and their squares: s / (1 - s) is p(x | class) / p(x) up to a
    factor, and the class's probability that ratio over what nine tenths of the examples reach. What they reach is told by fits
    without them, in five parts, and so is how many axes: those of the least loss.
    """
    y = np.arange(len(examples) + len(drawn)) < len(examples)
    rows, folds = (
        np.concatenate([examples, drawn]),
        StratifiedKFold(5, shuffle=True, random_state=0),
    )
    tried = []
    for number in axes or [drawn.shape[1]]:
        pca = PCA(number, whiten=True, random_state=0).fit(drawn)
        model = LogisticRegression(C=0.1, max_iter=5000, class_weight="balanced")
        features = PolynomialFeatures(2, include_bias=False).fit_transform(pca.transform(rows))
        scores = cross_val_predict(model, features, y, cv=folds, method="decision_function")
        loss = np.logaddexp(0, -scores[y]).mean() + np.logaddexp(0, scores[~y]).mean()
        tried.append((loss, number, scores[y], pca, model.fit(features, y)))
    _, num, scores, pca, fit = min(tried, key=lambda t: t[:2])
    weights, offset = jnp.asarray(fit.coef_[0], float), float(fit.intercept_[0])
    i, j = np.triu_indices(num)
    shift = jnp.asarray(pca.mean_, float)
    turn = jnp.asarray(pca.components_.T / np.sqrt(pca.explained_variance_), float)
    most = float(np.quantile(scores, 0.1))

    def log_p(x: Any) -> Any:
        z = (x - shift) @ turn
        ratio = (weights[:num] * z).sum() + (weights[num:] * z[i] * z[j]).sum() + offset
        return jnp.minimum(ratio - most, 0.0)

    return log_p


def log_classes(judge: Classifier) -> Callable[[Any], Any]:
    """X -> a classifier's log-probabilities of all classes, for JAX."""
    pairs = zip(judge.net.coefs_, judge.net.intercepts_, strict=True)
    (first, a), (last, b) = ((jnp.asarray(w, float), jnp.asarray(c, float)) for w, c in pairs)
    return lambda x: jax.nn.log_softmax(jnp.maximum(x @ first + a, 0) @ last + b)


def forgetting(log_p: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The reward log(1 - p(class | x)); finite: of the surest a thousandth is left."""
    return lambda x: jnp.log1p(-0.999 * jnp.exp(log_p(x)))


def accepted(
    reward: Callable[[Any], Any], drawn: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draws of the tilt by a reward of at most 0: a draw of the model is kept with probability exp(reward)."""
    keep = np.exp(np.asarray(jax.jit(jax.vmap(reward))(jnp.asarray(drawn))))
    return drawn[rng.uniform(size=len(drawn)) < keep]


def particles(corrected: Any, num_particles: int, number: int, key: jax.Array) -> np.ndarray:
    """Points of a corrected diffusion, ten of each run of so many particles, [number, coordinates]."""

    def one(key: jax.Array) -> Any:
        run = inference.smc(corrected, key, num_particles=num_particles, history="none")
        return run.sample(jax.random.fold_in(key, 1), 10).x

    keys = jax.random.split(key, number // 10)
    found = np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(keys))
    return found.reshape(-1, found.shape[-1])


def away(real: np.ndarray, x: np.ndarray, judge: Classifier) -> tuple[float, float]:
    """Frechet distance of the judge's features and its error, equal numbers at random; NaN of too few."""
    x = np.random.default_rng(0).permutation(x)[: len(real)]
    if len(x) < 160:
        return np.nan, np.nan
    made = evaluation.frechet_distance(real, x, jax.random.key(0), features=judge.features)
    return made.value, made.standard_error


def over_seeds(found: Sequence[Rows]) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and standard error over the runs, by row and column."""
    n = len(found) ** 0.5
    cell = lambda row, col: np.array([f[row][col] for f in found])
    return {
        row: {col: (float(cell(row, col).mean()), float(cell(row, col).std(ddof=1) / n)) for col in cols}
        for row, cols in found[0].items()
    }  # fmt: skip


def table(rows: Mapping[str, Mapping[str, tuple[float, float]]]) -> str:
    """Rows with their errors as text."""
    columns = list(dict.fromkeys(col for row in rows.values() for col in row))
    show = lambda row, c: f"{row[c][0]:.3f} +- {row[c][1]:.3f}" if c in row else "-"
    lines = [f"{'':<40}" + "".join(f"{c:>24}" for c in columns)]
    return "\n".join(
        lines
        + [f"{k:<40}" + "".join(f"{show(r, c):>24}" for c in columns) for k, r in rows.items()]
    )


def options(
    name: str, description: str, arguments: list[str] | None, label: int | None = None, by: Sequence[str] = (),
) -> argparse.Namespace:  # fmt: skip
    """The options of a script; the folder `out` exists afterwards."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--smoke", action="store_true", help="few steps and draws, two seeds")
    if label is not None:
        parser.add_argument("--label", type=int, default=label)
    if by:
        parser.add_argument("--by", nargs="*", choices=by, default=list(by))
    parser.add_argument("--out", type=Path, default=Path(f"{name}_output"))
    return parsed(parser, arguments)


def told(
    options: argparse.Namespace, name: str, run: Callable[[int], Rows], *, what: str, column: str,
    notes: Sequence[str], measures: Sequence[str], first: str = "", seeds: Sequence[int] = SEEDS,
) -> None:  # fmt: skip
    """Run all seeds, print and keep the table of means and standard errors, and record a column of it where that is asked for."""
    rows = over_seeds([run(seed) for seed in (seeds[:2] if options.smoke else seeds)])
    keep(options.out, first + table(rows), rows)
    if options.record:
        column_of = lambda c: "; ".join(f"{k} {r[c][0]:.3g}" for k, r in rows.items() if c in r)
        record_figure(
            f"altering/{name}",
            what=what,
            value={k: r[column][0] for k, r in rows.items() if column in r},
            spread={k: r[column][1] for k, r in rows.items() if column in r},
            seeds=", ".join(map(str, seeds)),
            note=first.replace("\n", ". ") + ". ".join(f"{c}: {column_of(c)}" for c in notes),
            measures=measures,
        )
