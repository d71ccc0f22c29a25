"""Classifier tests: two normals one unit apart, equal laws, and which model rows come from."""

import jax
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from lapilli.inference import evaluation
from lapilli.inference.evaluation._inputs import generator


def js_by_quadrature():
    """Jensen-Shannon divergence of N(0, 1) and N(1, 1), nats."""
    p, q = norm(0, 1).pdf, norm(1, 1).pdf
    part = lambda p: (
        lambda t: 0.5 * p(t) * np.log(2 * p(t) / (norm(0, 1).pdf(t) + norm(1, 1).pdf(t)))
    )
    return sum(quad(part(f), -9, 10)[0] for f in (p, q))


@pytest.mark.parametrize("sizes", [(30_000, 30_000), (30_000, 6_000)], ids=["equal", "other"])
@pytest.mark.fast("seed0-equal", "seed1-other")
def test_two_normals_one_unit_apart(sizes, seed, key):
    """Phi(1/2) = 0.6915, the bound is the divergence itself, AUC Phi(1/sqrt 2): each within 4.5 errors."""
    draws = generator(seed)
    x, y = draws.normal(size=(sizes[0], 1)), 1 + draws.normal(size=(sizes[1], 1))
    found = evaluation.classifier_test(x, y, key, classifier=LogisticRegression())
    exact = norm.cdf(0.5), norm.cdf(0.5**0.5), js_by_quadrature()
    estimates = found.accuracy, found.auc, found.js_bound
    for estimate, truth in zip(estimates, exact, strict=True):
        assert abs(estimate.value - truth) < 4.5 * estimate.standard_error
        assert estimate.standard_error < 0.01
    assert found.p_value < 1e-10


@pytest.mark.fast("seed0")
def test_the_classifier_that_is_given_none_sees_a_spread(seed, key):
    """Laws of one mean: a linear classifier is blind."""
    draws = generator(seed)
    x, y, other = draws.normal(size=(3, 400, 2)) * np.array([1.0, 2.5, 1.0])[:, None, None]
    found = evaluation.classifier_test(x, y, key, held_out=other)
    assert found.accuracy.z > 6 and found.js_bound.value > 0.05
    assert abs(found.accuracy.floor.z) < 4.5
    blind = evaluation.classifier_test(x, y, key, classifier=LogisticRegression())
    assert found.accuracy.value > blind.accuracy.value + 0.1


@pytest.mark.slow  # 500 classifiers
def test_false_alarms_at_the_nominal_level(seed):
    """500 repeats under equality: rejections at 5% and 20% within 3 errors of it, the bound above 0 in mean never."""
    draws, found = generator(seed), []
    for number in range(500):
        x, y = draws.normal(size=(2, 80, 4))
        test = evaluation.classifier_test(x, y, jax.random.key(number), classifier=LogisticRegression())  # fmt: skip
        found.append((test.p_value, test.js_bound.value))
    p_value, bound = np.array(found).T
    for level in (0.05, 0.2):
        share = (p_value <= level).mean()
        assert abs(share - level) < 3 * (level * (1 - level) / 500) ** 0.5, (level, share)
    assert bound.mean() < 0


def test_a_classifier_that_says_one_thing_is_half_right(key):
    from sklearn.dummy import DummyClassifier

    x = np.arange(80.0).reshape(40, 2)
    found = evaluation.classifier_test(x, x + 0.5, key, classifier=DummyClassifier())
    assert (found.accuracy.value, found.p_value) == (0.5, 1.0)
    assert found.js_bound.value == pytest.approx(0.0, abs=1e-12)


@pytest.mark.fast("seed0")
def test_rows_are_attributed(seed, key):
    """Three samples, of which two have one law: a half of their rows is told apart, all of the third's."""
    draws = generator(seed)
    a, b, c = draws.normal(size=(3, 400, 2)) + np.array([0.0, 0.0, 8.0])[:, None, None]
    found = evaluation.attribution({"real": a, "one": b, "other": c}, key)
    assert found.names == ("real", "one", "other")
    np.testing.assert_allclose(found.confusion.sum(1), 1)
    assert found.confusion[2, 2] > 0.99
    assert found.accuracy.value == pytest.approx(2 / 3, abs=0.06)
    assert found.accuracy.exact == pytest.approx(1 / 3)
    assert len(repr(found).splitlines()) == 5


def test_learning_from_generated_rows(seed, key):
    """Labels of two thirds of the generated rows are wrong, and so are most classes; real rows make the floor."""
    draws = generator(seed)
    labels = np.arange(300) % 3
    make = lambda: 4 * np.eye(3)[labels] + draws.normal(size=(300, 3))
    wrong = np.where(np.arange(300) < 200, (labels + 1) % 3, labels)
    score = lambda of: evaluation.classification_accuracy_score(
        make(), labels, make(), of, make(), labels, key, classifier=LogisticRegression()
    )
    assert abs(score(labels).details["difference"]) < 0.05
    found = score(wrong)
    assert found.floor.value > 0.95 and found.value < 0.5
    gap = found.value - found.floor.value
    assert found.details["difference"] == pytest.approx(gap)


@pytest.mark.fast("seed0")
def test_generated_rows_beside_real_ones(seed, key):
    """Twelve real rows and 3,000 of the same law: all together are the better ones, by 9 paired errors."""
    draws = generator(seed)
    make = lambda labels: 1.5 * np.eye(3)[labels] + draws.normal(size=(len(labels), 3))
    few, many, test = (np.arange(n) % 3 for n in (12, 3_000, 10_000))
    real, generated, rows = make(few), make(many), make(test)
    score = lambda x, of, **how: evaluation.classification_accuracy_score(
        real, few, x, of, rows, test, key, classifier=LogisticRegression(), **how
    )
    both = score(generated, many, train_on="both")
    assert both.details["difference"] > 4.5 * both.details["difference_error"]
    assert both.floor.value == score(real, few).value  # of the real rows alone
    # Real rows twice are a training set of twice the weight, not the same one as alone.
    assert score(real, few, train_on="both").sizes == (10_000, 24)
