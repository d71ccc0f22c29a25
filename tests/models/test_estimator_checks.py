"""Scikit-learn's own checks of every estimator: what fails is named here, with the reason, and does fail."""

import inspect
import pkgutil
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.utils.estimator_checks import check_estimator

from lapilli import models
from lapilli.models.diffusion import DiffusionDensity
from lapilli.models.imputation import SeriesClassifier, SeriesImputer, TableImputer
from lapilli.models.mam import AnyOrderModel
from lapilli.models.niw_meta import FewShotClassifier
from lapilli.models.pv_rnn import SeriesForecaster

SERIES: dict[str, Any] = {
    "num_hidden": 4, "num_draws": 4, "num_particles": 2, "validation_fraction": 0.0, "random_state": 0
}  # fmt: skip


class TableForecaster(SeriesForecaster):
    """A forecaster of one series, since the checks have tables only: its rows are steps."""

    def _read(self, X, *, reset):
        return super()._read(X if np.ndim(X) != 2 else [X], reset=reset)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


class AdaptedClassifier(FewShotClassifier):
    """A classifier that has adapted to what it has learned from, since the checks predict after `fit`."""

    def fit(self, X, y):
        other = super().fit(X, y).adapt(X, y)
        self.classes_, self._support = other.classes_, other._support
        return self


STEPS = "rows are steps of one series here: their order counts, and there is one forecast for all"
ESTIMATORS = {
    "DiffusionDensity": (
        DiffusionDensity(width=4, depth=1, num_steps=10, num_sampling_steps=2, num_times=2), {},
    ),
    "AnyOrderModel": (AnyOrderModel(width=4, depth=1, num_steps=10, num_orders=2), {}),
    "SeriesImputer": (SeriesImputer(num_steps=4, **SERIES), {}),
    "SeriesClassifier": (SeriesClassifier(num_steps=80, learning_rate=3e-2, **SERIES), {}),
    "TableImputer": (TableImputer(num_draws=4, max_sweeps=800, random_state=0), {}),
    "FewShotClassifier": (
        AdaptedClassifier(
            ways=2, shots=2, queries=1, num_hidden=16, num_outputs=8, rank=2, num_draws=3, num_episodes=100, num_steps=100,
            batch_size=4, check_every=50, learning_rate=1e-2, validation_fraction=0.0, random_state=0,
        ),
        {},
    ),
    "SeriesForecaster": (
        TableForecaster(
            layers=((4, 1),), num_steps=4, num_iterations=1, num_draws=4, window=2, check_every=2,
            validation_fraction=0.0, random_state=0,
        ),
        {"check_methods_sample_order_invariance": STEPS, "check_methods_subset_invariance": STEPS},
    ),
}  # fmt: skip


def test_every_estimator_is_checked():
    found = set()
    for module in pkgutil.walk_packages(models.__path__, models.__name__ + "."):
        if not any(part.startswith("_") for part in module.name.split(".")):
            face = vars(import_module(module.name))
            found |= {
                n for n, x in face.items() if inspect.isclass(x) and issubclass(x, BaseEstimator)
            }
    assert found - {"StoredEstimator"} == set(ESTIMATORS)


def test_columns_of_equal_cells_keep_their_scale():
    """A rounded mean left a spread of 1e-17, and other values in new rows were 1e16 units away."""
    rng = np.random.default_rng(0)
    for dtype in (np.float64, np.float32):
        for value, size in zip(
            10.0 ** rng.uniform(-3, 3, 30), rng.integers(2, 200, 30), strict=True
        ):
            model = FewShotClassifier()
            X = np.stack([np.full(size, value), np.arange(size)], 1).astype(dtype)
            model._set_units(X)
            assert model._scale[0] == 1.0
            np.testing.assert_allclose(model._scale[1], np.arange(size).std(), rtol=1e-12)
            assert abs(model._in_units(X + dtype(1))[0, 0] - 1) < 1e-3


@pytest.mark.slow  # some sixty fits of as many shapes each, minutes
@pytest.mark.filterwarnings("ignore")  # the checks provoke scikit-learn's own
@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_checks_of_scikit_learn(name):
    estimator, expected = ESTIMATORS[name]
    found = check_estimator(estimator, expected_failed_checks=expected, on_skip=None, on_fail=None)
    assert len(found) >= 40
    failed = {r["check_name"]: r["exception"] for r in found if r["status"] == "failed"}
    assert not failed, failed
    passed = {r["check_name"] for r in found if r["status"] == "passed"}
    assert not passed & set(expected), "no longer fails"
