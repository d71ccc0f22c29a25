"""Imputation and classification as scikit-learn estimators: forms of X, rows by themselves, files, refusals, the checks."""

import copy
import importlib
import pickle
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from _compilations import compilations
from sklearn.base import clone

from lapilli.models.imputation import SeriesClassifier, SeriesImputer, series

# Networks that compile fastest.
TINY: dict[str, Any] = {
    "encoder": "linear", "decoder": "linear", "num_hidden": 2, "num_latents": 2, "num_particles": 2, "num_draws": 20,
    "num_steps": 40, "check_every": 20, "batch_size": 16, "random_state": 0,
}  # fmt: skip
RNG = np.random.default_rng(0)
TRUTH = RNG.normal(size=(60, 1)) + 0.3 * RNG.normal(size=(60, 3))
HOLES = RNG.random(TRUTH.shape) < 0.3
TABLE = np.where(HOLES, np.nan, 5.0 + 2.0 * TRUTH)
LENGTHS = [4, 2, 5, 3, 5, 4]
LIST = [RNG.normal(size=(steps, 2)) for steps in LENGTHS]
for one in LIST:
    one[1, 0] = np.nan


@pytest.fixture(scope="module")
def imputer():
    return SeriesImputer(**TINY).fit(pd.DataFrame(TABLE, columns=list("abc")))


def frame(rows=slice(None)):
    return pd.DataFrame(TABLE[rows], columns=list("abc"))


def test_holes_are_filled_and_what_is_observed_stays(imputer):
    found = imputer.transform(frame())
    np.testing.assert_array_equal(found[~HOLES], TABLE[~HOLES])
    low, high = imputer.quantiles(frame(), [0.05, 0.95])
    assert (low < high)[HOLES].all() and np.array_equal(low[~HOLES], TABLE[~HOLES])
    # In the unit of X, from a law with its mean and spread.
    assert abs(found[HOLES].mean() - 5.0) < 2.0 and 1.0 < (high - low)[HOLES].mean() < 20.0
    assert list(imputer.get_feature_names_out()) == list("abc")
    framed = copy.copy(imputer).set_output(transform="pandas").transform(frame())
    pd.testing.assert_frame_equal(framed, pd.DataFrame(found, columns=list("abc")))


def test_any_number_of_new_rows_compiles_nothing(imputer):
    imputer.transform(frame())
    imputer.score(frame())
    with compilations() as count:
        for rows in (slice(0, 1), slice(3, 20), slice(0, 60)):
            imputer.transform(frame(rows))
            imputer.quantiles(frame(rows))
            imputer.score(frame(rows))
    assert count() == 0


def test_what_is_found_for_a_row_depends_on_the_row_alone(imputer):
    rows = np.array([40, 3, 17, 59, 3])
    np.testing.assert_allclose(
        imputer.transform(frame(rows)), imputer.transform(frame())[rows], rtol=1e-6
    )
    np.testing.assert_allclose(
        imputer.score_samples(frame(rows)), imputer.score_samples(frame())[rows], rtol=1e-5
    )


@pytest.mark.filterwarnings("ignore:SeriesImputer.sample")
def test_samples_of_rows_are_independent_and_have_the_means(imputer):
    """Of one row, many copies: all have draws of their own. The law of 1,200 draws is that of the bands, which are of 100."""
    (row,) = np.flatnonzero(HOLES.sum(1) == 1)[:1]
    copies = frame(np.full(400, row))
    drawn = imputer.sample(copies, 3, random_state=1)
    again = imputer.sample(copies, 3, random_state=1)
    np.testing.assert_array_equal(drawn, again)
    assert drawn.shape == (3, 400, 3)
    cells = drawn[..., HOLES[row]][..., 0]
    assert np.unique(cells).size > 390  # draws of a row may repeat, those of two rows do not
    low, mid, high = imputer.quantiles(frame([row]), [0.05, 0.5, 0.95])[:, 0, HOLES[row]][:, 0]
    assert abs(np.median(cells) - mid) < high - low
    share = ((low < cells) & (cells < high)).mean()
    assert 0.6 < share <= 1.0  # bands are of 100 draws


def test_samples_of_a_table_are_said_to_be_no_multiple_imputation(imputer):
    with pytest.warns(UserWarning, match="weakens relations between columns.*Use TableImputer"):
        imputer.sample(frame(), 2)


def test_the_score_is_in_the_unit_of_x(imputer):
    other = copy.deepcopy(imputer)
    mean, scale = other._standard
    other._standard = type(other._standard)(10 * mean, 10 * scale)
    shift = other.score_samples(10 * frame()) - imputer.score_samples(frame())
    # The digits of the row are others, so that its draws are.
    np.testing.assert_allclose(shift, -np.log(10) * (~HOLES).sum(1), atol=1.5)
    assert abs((shift + np.log(10) * (~HOLES).sum(1)).mean()) < 0.2


def test_files_and_copies_give_the_same(imputer, tmp_path):
    imputer.save(tmp_path / "imputer.npz")
    found = imputer.transform(frame())
    for other in (
        SeriesImputer.load(tmp_path / "imputer.npz"),
        pickle.loads(pickle.dumps(imputer)),
    ):
        np.testing.assert_array_equal(other.transform(frame()), found)
        assert other.get_params() == imputer.get_params() and other.n_iter_ == imputer.n_iter_
        assert list(other.feature_names_in_) == list("abc") and other.validation_
    with pytest.raises(ValueError, match="holds a SeriesImputer. Load it with SeriesImputer.load"):
        SeriesClassifier.load(tmp_path / "imputer.npz")
    moving = copy.copy(imputer).set_params(random_state=np.random.RandomState(0))
    with pytest.raises(ValueError, match="random_state is a RandomState, .* Set an integer"):
        moving.save(tmp_path / "other.npz")


def test_what_does_not_fit_is_refused(imputer):
    with pytest.raises(ValueError, match="feature names should match"):
        imputer.transform(frame()[["b", "a", "c"]])
    with pytest.raises(ValueError, match="X is a series, but the estimator was fitted on a table"):
        with pytest.warns(UserWarning, match="feature names"):
            imputer.transform(TABLE[:, None])
    with pytest.raises(ValueError, match=r"levels must lie in \(0, 1\), got \[0.0\]"):
        imputer.quantiles(frame(), [0.0])
    with pytest.raises(ValueError, match="num_samples must be an integer >= 1, got 0"):
        imputer.sample(frame(), 0)
    for seed in (None, -1, 0.5):
        with pytest.raises(ValueError, match=f"SeriesImputer.sample: random_state .*, got {seed}"):
            imputer.sample(frame(), random_state=seed)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"num_draws": 0}, "num_draws must be an integer >= 1, got 0"),
        ({"validation_fraction": 1.0}, r"validation_fraction must lie in \[0, 1\), got 1.0"),
        ({"patience": 0}, "patience must be an integer >= 1 or None, got 0"),
        ({"method": "mcmc"}, "method must be 'auto', 'importance' or 'smc', got 'mcmc'"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
    ],
)
def test_impossible_parameters_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        SeriesImputer(**options).fit(TABLE)


def test_data_that_nothing_can_be_learned_from_are_refused():
    table = TABLE.copy()
    table[:, 1] = np.nan
    with pytest.raises(ValueError, match=r"nothing was observed of features \[1\] of X"):
        SeriesImputer().fit(table)
    with pytest.raises(ValueError, match="infinity"):
        SeriesImputer().fit(np.where(HOLES, np.inf, TRUTH))
    with pytest.raises(ValueError, match=r"y has one class only, \['a'\]"):
        SeriesClassifier().fit(TABLE, np.full(60, "a"))
    with pytest.raises(ValueError, match="requires y to be passed"):
        SeriesClassifier().fit(TABLE, None)


def test_rows_far_out_have_no_quantiles(imputer):
    """A code of nothing measured, 1e20, in an observed cell: bands of that row were its smallest draws."""
    table = TABLE[:3].copy()
    table[1] = [1e20, np.nan, 5.0]
    for ask in (imputer.quantiles, imputer.transform):
        with pytest.raises(ValueError, match="series have no weights, log_weights being"):
            ask(pd.DataFrame(table, columns=list("abc")))


@pytest.mark.slow  # fits anew
def test_equal_seeds_give_equal_fits(imputer):
    again = clone(imputer).fit(frame())
    np.testing.assert_array_equal(again.transform(frame()), imputer.transform(frame()))
    other = clone(imputer).set_params(random_state=1).fit(frame())
    assert not np.allclose(other.transform(frame()), imputer.transform(frame()))


@pytest.mark.slow  # compiles particles over time
def test_series_of_unequal_lengths_come_back_as_they_are():
    estimator = SeriesImputer(**TINY).fit(LIST)
    found = estimator.transform(LIST)
    assert [x.shape for x in found] == [x.shape for x in LIST]
    for x, y in zip(LIST, found, strict=True):
        assert np.isfinite(y).all() and np.array_equal(y[~np.isnan(x)], x[~np.isnan(x)])
    assert estimator.quantiles(LIST, [0.1, 0.9])[2].shape == (2, 5, 2)
    # Shorter series alone are filled up, to the shape that is compiled.
    with compilations() as count:
        short = estimator.transform([LIST[1]])
    assert count() == 0
    np.testing.assert_allclose(short[0], found[1], rtol=1e-5)
    # The same as an array with lengths, and as an array without.
    cells = np.full((6, 5, 2), np.nan)
    for row, x in enumerate(LIST):
        cells[row, : len(x)] = x
    whole = estimator.transform(series(cells, lengths=LENGTHS))
    np.testing.assert_allclose(whole[1, :2], found[1], rtol=1e-5)
    assert np.isnan(whole[1, 2:]).all()
    assert np.isfinite(estimator.transform(cells)).all()
    with pytest.raises(ValueError, match="X is a table, but the estimator was fitted on a series"):
        estimator.transform(LIST[0])


@pytest.mark.slow  # compiles
def test_a_classifier_of_frames_of_series():
    y = np.array(["no", "yes"] * 10)
    X = [
        pd.DataFrame(
            RNG.normal(2.0 * (label == "yes"), 0.5, (RNG.integers(2, 5), 1)), columns=["a"]
        )
        for label in y
    ]
    model = SeriesClassifier(**TINY | {"num_steps": 150}, classifier="linear").fit(X, y)
    probs = model.predict_proba(X)
    assert model.score(X, y) > 0.9 and np.allclose(probs.sum(1), 1)
    assert list(model.classes_) == ["no", "yes"] and list(model.feature_names_in_) == ["a"]


@pytest.mark.slow  # trains in earnest
def test_imputed_cells_are_near_the_conditional_mean():
    """Of a Normal law: beyond its own error, less than a fifth of what lies between mean imputation and the best."""
    rng = np.random.default_rng(1)
    covariance = np.full((4, 4), 0.9) + 0.19 * np.eye(4) / 1.9
    x = rng.multivariate_normal(np.zeros(4), covariance, 1200)
    holes = rng.random(x.shape) < 0.25
    seen = np.where(holes, np.nan, x)
    train, test = slice(0, 1000), slice(1000, None)
    estimator = SeriesImputer(num_hidden=16, num_steps=1500, random_state=0).fit(seen[train])
    exact = np.zeros((200, 4))
    for row, (values, hidden) in enumerate(zip(x[test], holes[test], strict=True)):
        own = covariance[np.ix_(~hidden, ~hidden)]
        exact[row, hidden] = covariance[np.ix_(hidden, ~hidden)] @ np.linalg.solve(
            own, values[~hidden]
        )
    hidden, truth = holes[test], x[test]
    error = lambda found: float(((found - truth)[hidden] ** 2).mean())
    least, most = error(exact), error(np.zeros_like(truth))
    assert error(estimator.transform(seen[test])) < least + 0.2 * (most - least)
    low, high = estimator.quantiles(seen[test], [0.05, 0.95])
    covered = ((low <= truth) & (truth <= high))[hidden].mean()
    assert 0.8 < covered < 0.98


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    ours = ("lapilli.models._estimator", "lapilli.models.imputation.estimators")
    for name in [n for n in sys.modules if n.startswith(ours)]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"pip install 'lapilli\[data\]'"):
        importlib.import_module("lapilli.models.imputation.estimators")
