"""PV-RNN as an estimator of scikit-learn: an exact law, forms of X, files, refusals."""

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from lapilli.models.pv_rnn import SeriesForecaster

SMALL = {
    "layers": ((6, 1),), "num_steps": 20, "num_iterations": 2, "num_draws": 8, "window": 3, "check_every": 10, "random_state": 0,
}  # fmt: skip
RNG = np.random.default_rng(0)
X = np.cumsum(RNG.normal(size=(12, 9, 2)), 1) * [1.0, 50.0] + [3.0, 0.0]


@pytest.fixture(scope="module")
def model():
    return SeriesForecaster(**SMALL).fit(X)


@pytest.mark.slow  # compiles error regression
def test_what_follows_a_series_depends_on_it_alone(model):
    drawn = model.sample(X, 2)
    assert drawn.shape == (8, 12, 2, 2) and np.isfinite(drawn).all()
    np.testing.assert_allclose(model.predict(X, 2), drawn.mean(0))
    np.testing.assert_allclose(model.sample(X[3:5], 2), drawn[:, 3:5], rtol=1e-4, atol=1e-4)
    low, high = model.quantiles(X, [0.1, 0.9], 2)
    assert (low <= high).all() and low.shape == (12, 2, 2)


@pytest.mark.slow  # compiles for each form
def test_missing_cells_and_unequal_lengths(model):
    holes = X.copy()
    holes[::2, 3:6, 1] = np.nan
    found = model.predict(holes, 2)
    assert np.isfinite(found).all() and np.isfinite(model.score(holes))
    np.testing.assert_allclose(found[1::2], model.predict(X, 2)[1::2], rtol=1e-4, atol=1e-4)
    lengths = [9, 4, 9, 6]
    listed = model.predict([pd.DataFrame(x[:n]) for x, n in zip(X, lengths, strict=False)], 2)
    # What is behind the end of a series is no part of it.
    np.testing.assert_allclose(listed[::2], model.predict(X[:4:2], 2), rtol=1e-4, atol=1e-4)
    assert np.isfinite(listed).all()


@pytest.mark.slow
def test_files_and_pickles(model, tmp_path):
    model.save(tmp_path / "model.npz")
    want = model.predict(X, 2)
    for other in (SeriesForecaster.load(tmp_path / "model.npz"), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.predict(X, 2), want)
        assert clone(other).get_params() == model.get_params()
    assert model.n_iter_ == 20 and [step for step, _ in model.validation_] == [10, 20]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: SeriesForecaster(window=0, beta=0.0).fit(X), "window must be an integer >= 1.*beta must be positive"),
        (lambda: SeriesForecaster(**SMALL).fit(X[0]), r"X is a table of shape \(9, 2\), and series are needed"),
        (lambda: SeriesForecaster(**SMALL).fit(X * [1, np.nan]), r"nothing was observed of features \[1\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act()


@pytest.mark.slow  # of a fitted model
@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m: m.score(X[:, :1]), "no step after the first is seen in whole"),
        (lambda m: m.predict(X[..., :1]), "1 features"),
        (lambda m: m.predict(X, 0), "horizon must be >= 1"),
    ],
)
def test_what_does_not_fit_a_fitted_model_is_refused(model, act, message):
    with pytest.raises(ValueError, match=message):
        act(model)


@pytest.mark.slow  # two trainings
def test_the_bound_is_told_per_feature_whatever_beta():
    """At beta = 1 exactly it was that of all features together."""
    short = SMALL | {"num_steps": 2, "check_every": 1, "validation_fraction": 0.0}
    one, near = (SeriesForecaster(**short, beta=beta).fit(X) for beta in (1.0, 1.0 + 1e-6))
    np.testing.assert_allclose(one.history_[0], near.history_[0], rtol=1e-4)


@pytest.mark.slow  # training
def test_an_autoregression_is_learned():
    """x_t = 0.9 x_{t-1} + 0.4 e: of the 0.83 nats a step between the law of all steps and the exact predictive one, most."""
    rng, x = np.random.default_rng(1), np.zeros((400, 40, 1))
    sd = 0.4 / np.sqrt(1 - 0.81)
    x[:, 0] = sd * rng.normal(size=(400, 1))
    for t in range(1, 40):
        x[:, t] = 0.9 * x[:, t - 1] + 0.4 * rng.normal(size=(400, 1))
    fitted = SeriesForecaster(
        layers=((20, 2),), num_draws=50, learning_rate=1e-2, random_state=0
    ).fit(x[:300])
    exact, static = (-0.5 * np.log(2 * np.pi * np.e * s**2) for s in (0.4, sd))
    assert exact - static > 0.8
    assert fitted.score(x[300:]) > exact - 0.25 * (exact - static)
