"""The any-order model as an estimator of scikit-learn: laws against enumeration, forms of X, files, refusals."""

import itertools
import pickle

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from lapilli.models.mam import AnyOrderModel

SMALL = {"width": 8, "depth": 1, "num_orders": 3, "num_steps": 20, "random_state": 0}
COLUMNS = ["wet", "sky", "wind"]
VALUES = [[False, True], ["blue", "grey"], [0, 1, 2]]
WHOLE = pd.DataFrame(list(itertools.product(*VALUES)), columns=COLUMNS)
P = np.random.default_rng(1).dirichlet(np.ones(len(WHOLE)))


def rows(size, seed=0):
    return WHOLE.iloc[np.random.default_rng(seed).choice(len(WHOLE), size, p=P)].reset_index(
        drop=True
    )


@pytest.fixture(scope="module")
def model():
    return AnyOrderModel(**SMALL).fit(rows(60))


def with_holes(table, **holes):
    table = table.astype(object)
    for name in holes:
        table[name] = None
    return table


def test_probabilities_are_normalised_for_every_set_of_known_cells(model):
    assert np.isclose(np.exp(model.score_samples(WHOLE)).sum(), 1, rtol=1e-5)
    part = with_holes(WHOLE, wet=0).drop_duplicates()
    assert len(part) == 6 and np.isclose(np.exp(model.score_samples(part)).sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(
        model.score_samples(with_holes(WHOLE, wet=0, sky=0, wind=0)), 0, atol=1e-6
    )
    found = model.conditional(WHOLE, "wind")
    assert found.shape == (12, 3) and np.allclose(found.sum(1), 1)
    np.testing.assert_array_equal(found[0], found[1])  # what stands there is not read
    # Values that other columns have more of are impossible.
    assert np.allclose(model.conditional(WHOLE, "wet").sum(1), 1)
    assert model.conditional(WHOLE, 0).shape == (12, 2)


def test_draws_keep_what_is_known(model):
    drawn = model.sample(50)
    assert list(drawn.columns) == COLUMNS and set(drawn["wind"]) <= {0, 1, 2}
    given = with_holes(WHOLE[:2], wind=0)
    filled = model.sample(5, given=given)
    assert filled.shape == (2, 5, 3)
    assert all(
        list(row[:2]) == list(known[:2])
        for known, part in zip(given.to_numpy(), filled, strict=True)
        for row in part
    )
    np.testing.assert_array_equal(model.sample(5, given=given), filled)
    assert (model.sample(50, random_state=1).to_numpy() != drawn.to_numpy()).any()


def test_files_pickles_and_arrays(model, tmp_path):
    model.save(tmp_path / "model.npz")
    want = model.score_samples(WHOLE)
    for other in (AnyOrderModel.load(tmp_path / "model.npz"), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.score_samples(WHOLE), want)
        assert other.n_iter_ == 20 and other.validation_ == model.validation_
    plain = AnyOrderModel(**SMALL).fit(rows(60).to_numpy())
    np.testing.assert_array_equal(plain.score_samples(WHOLE.to_numpy()), want)
    assert isinstance(plain.sample(2), np.ndarray)


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda m: AnyOrderModel(width=0).fit(rows(9)), ValueError, "width must be an integer >= 1"),
        (lambda m: AnyOrderModel(**SMALL).fit(with_holes(rows(9), sky=0)), ValueError, "observed of the columns.*sky"),
        (lambda m: AnyOrderModel(**SMALL).fit(rows(1)), ValueError, "n_samples=1"),
        (lambda m: AnyOrderModel(**SMALL).fit([1, 2]), ValueError, r"shape \(2,\); it must be a table"),
        (lambda m: AnyOrderModel(**SMALL).fit(np.zeros((3, 0))), ValueError, "0 feature"),
        (lambda m: m.score_samples(WHOLE[:0]), ValueError, "0 sample"),
        (lambda m: AnyOrderModel(**SMALL).fit(np.ones((3, 1), complex)), ValueError, "Complex data"),
        (lambda m: AnyOrderModel(**SMALL).fit(pd.DataFrame({"a": [[1], [2]]})), TypeError, "of type list"),
        (lambda m: AnyOrderModel(**SMALL).fit(csr_matrix(np.ones((3, 1)))), TypeError, "Sparse data"),
        (lambda m: m.score(WHOLE.assign(sky="red")), ValueError, "'sky' has the value 'red', which no row of fit had"),
        (lambda m: m.conditional(WHOLE, "rain"), ValueError, "no column 'rain'. Give one of"),
        (lambda m: m.score(WHOLE[["wet", "sky"]]), ValueError, "feature names"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(model, act, error, message):
    with pytest.raises(error, match=message):
        act(model)


@pytest.mark.slow
def test_a_file_holds_plain_values_only(tmp_path):
    dates = pd.DataFrame({"day": pd.to_datetime(["2020-01-01", "2020-01-02"] * 5), "n": [0, 1] * 5})
    fitted = AnyOrderModel(**SMALL).fit(dates)
    with pytest.raises(ValueError, match="column 'day' has values of type Timestamp"):
        fitted.save(tmp_path / "model.npz")


@pytest.mark.slow  # training
def test_the_law_of_many_rows_is_learned():
    """Of 20,000 rows over 12 values: no more than three times as far from the law as their counts; conditionals within 0.03."""
    seen = rows(20_000)
    counts = np.array([(seen.to_numpy() == row).all(1).mean() for row in WHOLE.to_numpy()])
    fitted = AnyOrderModel(
        width=64, num_steps=2000, batch_size=2000, weight_decay=0.0, learning_rate=3e-3, num_orders=6, random_state=0
    ).fit(seen)  # fmt: skip
    q = np.exp(fitted.score_samples(WHOLE))
    assert np.abs(P - q).sum() < 3 * np.abs(P - counts).sum()
    cube = P.reshape(2, 2, 3)
    want = (cube / cube.sum(2, keepdims=True)).reshape(4, 3)
    found = fitted.conditional(WHOLE[::3], "wind")
    is_usual = cube.sum(2).ravel() > 0.05
    assert np.abs(found - want)[is_usual].max() < 0.03


@pytest.mark.slow  # training
def test_missing_cells_that_tell_nothing_do_no_harm():
    """A third of the cells lost at random: the law within 0.05 of total variation, 12 values, 20,000 rows."""
    table = rows(20_000).astype(object)
    lost = np.random.default_rng(3).random(table.shape) < 1 / 3
    fitted = AnyOrderModel(
        width=64, num_steps=2000, batch_size=2000, weight_decay=0.0, learning_rate=3e-3, num_orders=6, random_state=0
    ).fit(table.mask(lost, None))  # fmt: skip
    assert 0.5 * np.abs(P - np.exp(fitted.score_samples(WHOLE))).sum() < 0.05
