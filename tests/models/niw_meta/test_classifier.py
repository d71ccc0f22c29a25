"""Few-shot classification as an estimator of scikit-learn: new classes, files, refusals, and where it should gain."""

import copy
import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import NearestCentroid

from lapilli.models.niw_meta import FewShotClassifier

SMALL = {
    "ways": 2, "shots": 2, "queries": 2, "num_hidden": 4, "num_outputs": 2, "rank": 2, "num_draws": 3, "num_episodes": 20,
    "num_steps": 10, "batch_size": 4, "check_every": 5, "random_state": 0,
}  # fmt: skip
RNG = np.random.default_rng(0)
Y = np.repeat(np.arange(14), 6)
X = RNG.normal(size=(14, 3))[Y] * [1, 10, 1] + 0.1 * RNG.normal(size=(84, 3))
NAMES = np.array(["a", "b", "c"])


@pytest.fixture(scope="module")
def learned():
    return FewShotClassifier(**SMALL).fit(X[Y < 10], Y[Y < 10])


@pytest.fixture(scope="module")
def adapted(learned):
    few = (Y >= 11) & (np.arange(84) % 6 < 2)
    return learned.adapt(X[few], NAMES[Y[few] - 11])


@pytest.mark.slow  # half a minute of compilation
def test_new_classes_have_probabilities_of_their_own(learned, adapted):
    found = adapted.predict_proba(X)
    assert found.shape == (84, 3) and np.allclose(found.sum(1), 1) and (found > 0).all()
    assert list(adapted.classes_) == ["a", "b", "c"]
    assert set(adapted.predict(X)) <= set(NAMES)
    np.testing.assert_allclose(adapted.predict_proba(X[5:7]), found[5:7], rtol=1e-5)
    assert adapted.score(X[Y > 10], NAMES[Y[Y > 10] - 11]) > 1 / 3
    assert learned._support is None and not hasattr(learned, "classes_")


@pytest.mark.slow
def test_files_and_pickles(learned, adapted, tmp_path):
    want = adapted.predict_proba(X[:4])
    adapted.save(tmp_path / "model.npz")
    for other in (
        FewShotClassifier.load(tmp_path / "model.npz"),
        pickle.loads(pickle.dumps(adapted)),
    ):
        np.testing.assert_array_equal(other.predict_proba(X[:4]), want)
        assert clone(other).get_params() == adapted.get_params()
    learned.save(tmp_path / "learned.npz")
    assert FewShotClassifier.load(tmp_path / "learned.npz").n_iter_ == 10
    assert [step for step, _ in learned.validation_] == [5, 10]


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda _: FewShotClassifier(**SMALL | {"ways": 1}).fit(X, Y), ValueError, "ways must be at least 2"),
        (lambda _: FewShotClassifier(**SMALL | {"shots": 0}).fit(X, Y), ValueError, "shots must be an integer >= 1"),
        (lambda _: FewShotClassifier(**SMALL | {"shots": 9}).fit(X, Y), ValueError, "0 of 14 classes have 11 rows"),
        (lambda _: FewShotClassifier().predict(X), NotFittedError, "not fitted"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(act, error, message):
    with pytest.raises(error, match=message):
        act(None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m: m.adapt(X[:3], Y[:3]), r"y has the class \[0\] alone"),
        (lambda m: m.predict(X), "no classes yet to choose from. Call adapt"),
        (lambda m: m.adapt(X[:, :2], Y), "2 features"),
    ],
)
def test_what_cannot_be_adapted_to_is_refused(learned, act, message):
    with pytest.raises(ValueError, match=message):
        act(learned)


@pytest.mark.slow  # compiles
def test_predictions_have_the_number_of_draws_that_is_asked_for(adapted):
    """What had been compiled was kept for another number of draws."""
    model = copy.copy(adapted)
    model.predict_proba(X[:4])
    found = model.set_params(num_draws=7).predict_proba(X[:4])
    np.testing.assert_allclose(found, copy.copy(model).predict_proba(X[:4]), rtol=1e-6)
    assert not np.array_equal(found, adapted.predict_proba(X[:4]))


@pytest.mark.slow  # compiles
def test_rows_of_which_nothing_is_known_have_no_class(adapted):
    """The first class was named for rows whose probabilities are NaN."""
    far = X[:3].copy()
    far[1, 0] = 1e39
    with (
        np.errstate(over="ignore"),
        pytest.raises(ValueError, match="1 of 3 rows .* row 1: 32 bits"),
    ):
        adapted.predict(far)


@pytest.mark.slow  # training
def test_what_tells_classes_apart_is_learned():
    """Two of thirty features tell classes apart, the others are noise of the same size: centroids of rows see little."""
    rng = np.random.default_rng(1)
    y = np.repeat(np.arange(80), 20)
    x = rng.normal(size=(1600, 30))
    x[:, :2] = 2 * rng.normal(size=(80, 2))[y] + 0.4 * rng.normal(size=(1600, 2))
    model = FewShotClassifier(num_hidden=32, num_outputs=8, num_steps=600, random_state=0).fit(
        x[y < 60], y[y < 60]
    )
    scores, plain = [], []
    for start in range(60, 80, 5):
        part, few = (y >= start) & (y < start + 5), np.arange(1600) % 20 < 5
        scores.append(
            model.adapt(x[part & few], y[part & few]).score(x[part & ~few], y[part & ~few])
        )
        plain.append(
            NearestCentroid()
            .fit(x[part & few], y[part & few])
            .score(x[part & ~few], y[part & ~few])
        )
    assert np.mean(scores) > np.mean(plain) + 0.1
