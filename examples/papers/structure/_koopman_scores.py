"""Scores of drawn series [series, steps, channels] against held-out ones, for koopman.py."""

import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lapilli.inference import evaluation

LAGS = 8


class Score(NamedTuple):
    """Two discriminative scores, the predictive error, and the bound, nats per observed cell."""

    gru: float
    minirocket: float
    predictive: float
    nats: float


def score(
    draws: np.ndarray, nats: float, test: np.ndarray, features: Any, num_steps: int, key: jax.Array
) -> Score:
    """Scores of draws.

    Args:
        draws: of a model.
        nats: its bound.
        test: held-out series.
        features: of `rocket`.
        num_steps: to train the small classifier.
        key: of halves, and of classifiers.
    """
    small = Recurrent(test.shape[1], num_steps)
    # All rows span less than the features: the rotation changes nothing but the time it takes.
    strong = make_pipeline(StandardScaler(), PCA(), LogisticRegression(C=0.01, max_iter=500))
    flat = lambda x: np.asarray(x).reshape(len(x), -1)
    told = evaluation.classifier_test(test, draws, key, classifier=small, features=flat)
    told_strongly = evaluation.classifier_test(
        test, draws, key, classifier=strong, features=features
    )
    inputs, targets = lagged(draws)
    ahead = Ridge(1e-3).fit(inputs, targets)
    inputs, targets = lagged(test)
    error = float(np.abs(ahead.predict(inputs) - targets).mean())
    accuracies = told.accuracy.value, told_strongly.accuracy.value
    return Score(*(abs(a - 0.5) for a in accuracies), error, nats)


def lagged(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight steps, flat, and the one after them."""
    starts = range(x.shape[1] - LAGS)
    inputs = np.concatenate([x[:, t : t + LAGS].reshape(len(x), -1) for t in starts])
    return inputs, np.concatenate([x[:, t + LAGS] for t in starts])


def rocket(x: np.ndarray) -> Any:
    """Some 2,000 of MiniRocket's features, fitted on series: a function of series."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of aeon's imports
        from aeon.transformations.collection.convolution_based import MiniRocket

        fitted = MiniRocket(2000, random_state=0).fit(x.transpose(0, 2, 1))
    return lambda series: fitted.transform(np.asarray(series).transpose(0, 2, 1))


class Recurrent:
    """The published classifier, a GRU of two units, with scikit-learn's methods."""

    def __init__(self, length: int, num_steps: int, random_state: int = 0) -> None:
        self.length, self.num_steps, self.random_state = length, num_steps, random_state

    def get_params(self, deep: bool = True) -> dict[str, int]:
        names = ("length", "num_steps", "random_state")
        return {name: getattr(self, name) for name in names}

    def set_params(self, **params: int) -> "Recurrent":
        vars(self).update(params)
        return self

    def fit(self, x: np.ndarray, y: np.ndarray) -> "Recurrent":
        self.classes_ = np.unique(y)
        series = jnp.asarray(x, jnp.float32).reshape(len(x), self.length, -1)
        key, batches = jax.random.split(jax.random.key(self.random_state))
        cell_key, last_key = jax.random.split(key)
        start = eqx.nn.GRUCell(series.shape[2], 2, key=cell_key), eqx.nn.Linear(2, 1, key=last_key)
        keys = jax.random.split(batches, self.num_steps)
        self.nets = trained(start, series, jnp.asarray(y == self.classes_[1]), keys)
        return self

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        series = jnp.asarray(x, jnp.float32).reshape(len(x), self.length, -1)
        p = np.asarray(jax.nn.sigmoid(logits(self.nets, series)))
        return np.stack([1 - p, p], 1)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.classes_[self.predict_proba(x).argmax(1)]


@eqx.filter_jit
def logits(nets: Any, series: Any) -> Any:
    cell, last = nets
    over = lambda h, rows: (jax.vmap(cell)(rows, h), None)
    h, _ = jax.lax.scan(over, jnp.zeros((len(series), 2)), jnp.swapaxes(series, 0, 1))
    return jax.vmap(last)(h)[:, 0]


@eqx.filter_jit
def trained(nets: Any, series: Any, labels: Any, keys: Any) -> Any:
    """By Adam, with 128 rows a step."""
    weights, static = eqx.partition(nets, eqx.is_inexact_array)
    optimizer = optax.adam(1e-2)

    def loss(weights: Any, rows: Any) -> Any:
        found = logits(eqx.combine(weights, static), series[rows])
        return optax.sigmoid_binary_cross_entropy(found, labels[rows]).mean()

    def step(carry: Any, key: Any) -> Any:
        weights, state = carry
        rows = jax.random.randint(key, (min(128, len(series)),), 0, len(series))
        updates, state = optimizer.update(jax.grad(loss)(weights, rows), state)
        return (optax.apply_updates(weights, updates), state), None

    weights, _ = jax.lax.scan(step, (weights, optimizer.init(weights)), keys)[0]
    return eqx.combine(weights, static)
