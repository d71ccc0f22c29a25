"""A diffusion model as an estimator of scikit-learn: a known law, classes, files, refusals."""

import pickle

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal

from lapilli.models.diffusion import DiffusionDensity

SMALL = {
    "width": 4, "depth": 1, "num_steps": 20, "num_sampling_steps": 3, "num_times": 4, "check_every": 10, "random_state": 0,
}  # fmt: skip
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 2)) * [1.0, 100.0] + [5.0, 0.0]
Y = np.repeat(["a", "b"], 30)


@pytest.fixture(scope="module")
def model():
    return DiffusionDensity(**SMALL).fit(X, Y)


@pytest.mark.slow
def test_rows_have_bounds_and_classes_have_draws(model, tmp_path):
    found = model.score_samples(X)
    assert found.shape == (60,) and np.isfinite(found).all()
    np.testing.assert_allclose(model.score_samples(X[7:9]), found[7:9], rtol=1e-5)
    assert np.isclose(model.score(X), found.mean())
    drawn = model.sample(5, label="a")
    assert drawn.shape == (5, 2) and (drawn != model.sample(5, label="b")).any()
    np.testing.assert_array_equal(drawn, model.sample(5, label="a"))
    model.save(tmp_path / "model.npz")
    for other in (DiffusionDensity.load(tmp_path / "model.npz"), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.sample(5, label="a"), drawn)
        np.testing.assert_array_equal(other.score_samples(X), found)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: DiffusionDensity(width=0).fit(X), "width must be an integer >= 1"),
        (lambda: DiffusionDensity(**SMALL).fit(X[:1]), "n_samples = 1|minimum of 2"),
        (lambda: DiffusionDensity(**SMALL).fit(pd.DataFrame(X).mask(X > 5)), "NaN"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act()


@pytest.mark.slow  # of a fitted model
@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m: m.sample(3, label="c"), r"no class 'c'; there are \['a', 'b'\]"),
        (lambda m: m.score_samples(X[:, :1]), "1 features"),
    ],
)
def test_what_does_not_fit_a_fitted_model_is_refused(model, act, message):
    with pytest.raises(ValueError, match=message):
        act(model)


@pytest.mark.slow  # training
def test_a_correlated_normal_law_is_learned():
    """4,000 rows: the bound below the exact log density of new rows and within 0.1 nats; moments of 4,000 draws within 10 %."""
    covariance = np.array([[1.0, 7.2], [7.2, 81.0]])
    rng = np.random.default_rng(1)
    train, new = (rng.multivariate_normal([5.0, -20.0], covariance, n) for n in (4000, 2000))
    fitted = DiffusionDensity(width=64, depth=2, random_state=0).fit(train)
    exact = multivariate_normal([5.0, -20.0], covariance).logpdf(new)
    gap = exact - fitted.score_samples(new)
    error = gap.std() / len(gap) ** 0.5
    assert -4.5 * error < gap.mean() < 0.1
    drawn = fitted.sample(4000)
    np.testing.assert_allclose(drawn.std(0), [1.0, 9.0], rtol=0.1)
    assert abs(np.corrcoef(drawn.T)[0, 1] - 0.8) < 0.05
