"""What functions of samples refuse, by its message."""

import sys

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from lapilli.inference import evaluation

X = np.random.default_rng(0).normal(size=(60, 3))
Y = X + 0.5
LABELS = np.arange(60) % 2
HITS = np.arange(60) < 40
IMAGES = np.random.default_rng(1).normal(size=(30, 8, 8))


def with_nan():
    x = X.copy()
    x[7, 1] = np.nan
    return x


CASES = {
    "shape": (lambda key: evaluation.kernel_distance(IMAGES, IMAGES), r"must be rows of numbers, \[n, d\]"),
    "features": (
        lambda key: evaluation.kernel_distance(X, Y, features=lambda x: x[:, 0]),
        r"got shape \(60,\) from features",
    ),
    "NaN": (lambda key: evaluation.fidelity_diversity(with_nan(), Y), "1 numbers that are not finite, the first in row 7"),
    "d": (lambda key: evaluation.sliced_wasserstein(X, Y[:, :2], key), "equally many numbers"),
    "few for k": (lambda key: evaluation.fidelity_diversity(X[:29], Y), "real has 29 rows .* needs 30"),
    "few for a covariance": (
        lambda key: evaluation.frechet_distance(X[:30], Y, key),
        "real has 30 rows of 3 numbers, and a quarter with a regular covariance needs 34",
    ),
    "few for a classifier": (lambda key: evaluation.classifier_test(X, Y[:20], key), "needs 40"),
    "other sizes": (
        lambda key: evaluation.compare_samples(X, {"a": Y, "b": Y[:50]}, key),
        "other sizes do not compare",
    ),
    "one model": (lambda key: evaluation.attribution({"real": X}, key), "Give two samples or more"),
    "floor of another size": (
        lambda key: evaluation.kernel_distance(X, Y, held_out=-X[:50]),
        "held_out has 50 rows and generated 60",
    ),
    "floor of the same rows": (lambda key: evaluation.kernel_distance(X, Y, held_out=X), "100% of held_out are rows of real"),
    "metric": (
        lambda key: evaluation.compare_samples(X, {"a": Y, "b": Y}, key, metrics=["inception"]),
        "there is no metric 'inception'.* Choose from",
    ),
    "neighbours of all rows": (
        lambda key: evaluation.expected_coverage(5, 5, 5),
        "k must be less than num_real = 5, got 5",
    ),
    "control": (
        lambda key: evaluation.sliced_wasserstein(X, Y, key, control="lowest"),
        "control must be .* Did you mean 'lower'",
    ),
    "directions": (
        lambda key: evaluation.sliced_wasserstein(X, Y, key, num_directions=7),
        "num_directions must be an integer >= 8",
    ),
    "probabilities": (
        lambda key: evaluation.classifier_test(X, Y, key, classifier=LinearSVC()),
        "LinearSVC has no predict_proba",
    ),
    "images": (lambda key: evaluation.spectral_gap(IMAGES, IMAGES[:, :4]), "images must be"),
    "NaN in images": (lambda key: evaluation.blur(IMAGES / 0.0 * 0.0, 1.0), "not finite"),
    "width": (lambda key: evaluation.blur(IMAGES, 0.0), "width is 0.0. Give a finite number above 0"),
    "factor": (lambda key: evaluation.rescale(IMAGES, 1.0), "above 1"),
    "range": (lambda key: evaluation.quantise(IMAGES, 4, low=1.0, high=0.0), "high is 0.0"),
    "cutoff": (lambda key: evaluation.high_pass(IMAGES, 0.5), "between 0 and 0.5"),
    "no power": (
        lambda key: evaluation.spectral_gap(IMAGES, evaluation.high_pass(IMAGES, 0.25)),
        "generated has 30 images and .* wave vectors without power",
    ),
    "labels": (
        lambda key: evaluation.intra_class_frechet(X, LABELS[:5], Y, LABELS, key),
        r"labels of real have shape \(5,\)",
    ),
    "one class": (
        lambda key: evaluation.classification_accuracy_score(X, LABELS, Y, 0 * LABELS, X, LABELS, key),
        "labels of generated have .* and 1 classes",
    ),
    "other classes": (
        lambda key: evaluation.intra_class_frechet(X, LABELS, Y, LABELS + 1, key),
        "Give rows of the same classes",
    ),
    "what is trained on": (
        lambda key: evaluation.classification_accuracy_score(X, LABELS, Y, LABELS, X, LABELS, key, train_on="real"),
        "train_on must be 'generated' or 'both', got 'real'",
    ),
    "two other models": (
        lambda key: evaluation.effective_robustness(HITS, HITS, [HITS] * 2, [HITS] * 2),
        r"others': \(2, 60\).* at least 3 others",
    ),
    "other rows": (
        lambda key: evaluation.effective_robustness(HITS, HITS, [HITS[:50]] * 3, [HITS] * 3),
        "on the same test rows",
    ),
    "shares": (
        lambda key: evaluation.effective_robustness(HITS, 0.9 * HITS, [HITS] * 3, [HITS] * 3),
        "right_shifted has values that are neither true nor false",
    ),
    "no line": (
        lambda key: evaluation.effective_robustness(HITS, HITS, [HITS] * 3, [~HITS] * 3),
        "all 3 other models have the accuracy 0.6667",
    ),
    "other models": (
        lambda key: evaluation.rank_stability({"a": evaluation.Estimate(0.0, 1.0)}, {}, key),
        "estimates of the same models, two or more",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("name", CASES)
def test_refusals(name, key):
    call, words = CASES[name]
    with pytest.raises(ValueError, match=words):
        call(key)


def test_discrete_rows_may_repeat(key):
    """Rows of a small alphabet are shared by two samples of one law, as often as within one."""
    draws = np.random.default_rng(0)
    x, y, other = draws.integers(0, 2, size=(3, 200, 3))
    assert evaluation.kernel_distance(x, y, held_out=other).floor is not None


def test_models_may_have_any_name(key):
    names = ["real", "held_out", "least"]
    found = evaluation.compare_samples(X, dict.fromkeys(names, Y), key, metrics=["kernel"])
    assert list(found.estimates["kernel"]) == names


def test_what_is_not_installed_is_named(key, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.kernel_approximation", None)
    with pytest.raises(ImportError, match=r"pip install 'lapilli\[data\]'"):
        evaluation.classifier_test(X, Y, key)


def test_columns_of_frames_are_compared_by_name():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X * [1.0, 2.0, 3.0], columns=["a", "b", "c"])
    other = pd.DataFrame(Y * [1.0, 2.0, 3.0], columns=["a", "b", "c"])
    ordered = evaluation.kernel_distance(frame, other)
    assert evaluation.kernel_distance(frame, other[["c", "a", "b"]]).value == ordered.value
    assert evaluation.kernel_distance(frame, other.to_numpy()).value == ordered.value
    with pytest.raises(
        ValueError, match=r"columns of real are \['a', 'b', 'c'\], of generated \['a', 'b', 'd'\]"
    ):
        evaluation.kernel_distance(frame, other.rename(columns={"c": "d"}))


@pytest.mark.parametrize("kind", [str, object])
def test_labels_of_two_kinds_are_refused(kind, key):
    """Text never equals numbers: the accuracy would be 0; kinds of numbers do compare."""
    text = LABELS.astype(str).astype(kind)
    of = evaluation.classification_accuracy_score
    for labels in ((LABELS, LABELS, text), (LABELS, text, LABELS)):
        with pytest.raises(
            TypeError, match=r"'real': \['numbers'\], .*\['str'\].*labels of one kind"
        ):
            of(X, labels[0], Y, labels[1], X, labels[2], key, train_on="both")
    same = of(X, LABELS, Y, LABELS, X, LABELS, key).value
    assert of(X, LABELS, Y, LABELS.astype(float), X, LABELS.astype(bool), key).value == same
    assert of(X, text, Y, LABELS.astype(str), X, text, key).value == same
