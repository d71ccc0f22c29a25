"""What the scripts that alter a learned model of digits share: the model, what is made of it, rewards from examples."""

import sys
from collections.abc import Callable, Sequence
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

sys.path.append(str(Path(__file__).resolve().parents[1] / "diffusion"))
from _altered import Rows as Rows, options as options, told as told
from _digit_models import SIZE, VP, Classifier as Classifier, load as load

GRID = VP.log_snr_times(40)


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


def forgetting(log_p: Callable[[Any], Any], strength: float = 1.0) -> Callable[[Any], Any]:
    """The reward log(1 - p(class | x)), times a strength; finite: at 1 a thousandth is left of the surest."""
    return lambda x: strength * jnp.log1p(-0.999 * jnp.exp(log_p(x)))


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
