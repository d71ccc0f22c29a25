"""Light peers: ways to fill missing cells, maps from (train, other) `Series` to filled values of both."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer

from lapilli.models.imputation import Series

Filler = Callable[[Series, Series], tuple[np.ndarray, np.ndarray]]


def by_zero(train: Series, other: Series) -> tuple[np.ndarray, np.ndarray]:
    """Zero: in standard units, the mean of the channel's observed cells."""
    return _each(train, other, lambda values, seen, times: np.where(seen, values, 0))


def by_last(train: Series, other: Series) -> tuple[np.ndarray, np.ndarray]:
    """The last observed value of the channel (LOCF); zero before the first."""

    def fill(values: np.ndarray, seen: np.ndarray, times: np.ndarray) -> np.ndarray:
        last = np.maximum.accumulate(np.where(seen, np.arange(len(values)), -1))
        return np.where(last < 0, 0, values[np.maximum(last, 0)])

    return _each(train, other, fill)


def by_interpolation(train: Series, other: Series) -> tuple[np.ndarray, np.ndarray]:
    """Linear interpolation in time within the channel, constant outside; zero without any observed cell."""

    def fill(values: np.ndarray, seen: np.ndarray, times: np.ndarray) -> np.ndarray:
        return np.interp(times, times[seen], values[seen]) if seen.any() else np.zeros(len(values))

    return _each(train, other, fill)


def by_neighbours(train: Series, other: Series) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the five nearest training series (scikit-learn's KNNImputer on flattened series)."""
    return _flat(train, other, KNNImputer(n_neighbors=5, keep_empty_features=True))


def by_chained_equations(train: Series, other: Series) -> tuple[np.ndarray, np.ndarray]:
    """MICE with Bayesian ridge regression on the ten most correlated cells, five rounds (scikit-learn's IterativeImputer)."""
    imputer = IterativeImputer(
        max_iter=5, n_nearest_features=10, keep_empty_features=True, random_state=0
    )
    return _flat(train, other, imputer)


FILLERS: dict[str, Filler] = {
    "zero": by_zero,
    "locf": by_last,
    "interp": by_interpolation,
    "knn": by_neighbours,
    "mice": by_chained_equations,
}


def _each(train: Series, other: Series, fill: Any) -> tuple[np.ndarray, np.ndarray]:
    def filled(data: Series) -> np.ndarray:
        out = np.zeros(np.shape(data.values))
        for n, (values, seen, times) in enumerate(
            zip(data.values, data.observed, data.times, strict=True)
        ):
            for d in range(values.shape[1]):
                out[n, :, d] = fill(
                    np.asarray(values[:, d], float), np.asarray(seen[:, d]), np.asarray(times)
                )
        return np.where(np.asarray(data.valid)[..., None], out, 0)

    return filled(train), filled(other)


def _flat(train: Series, other: Series, imputer: Any) -> tuple[np.ndarray, np.ndarray]:
    holed = [
        np.where(d.observed, d.values, np.nan).reshape(len(d.values), -1) for d in (train, other)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of rounds without convergence, of cells that are never seen
        imputer.fit(holed[0])
        filled = [imputer.transform(x) for x in holed]
    shaped = [x.reshape(np.shape(d.values)) for x, d in zip(filled, (train, other), strict=True)]
    shaped = [
        np.where(np.asarray(d.valid)[..., None], x, 0)
        for x, d in zip(shaped, (train, other), strict=True)
    ]
    return shaped[0], shaped[1]
