"""Frechet distance: closed form, an intercept without the bias that the plain distance has."""

import jax
import numpy as np
import pytest
from scipy.linalg import sqrtm

from lapilli.inference import evaluation
from lapilli.inference.evaluation._inputs import generator


def test_moments_give_the_closed_form(seed):
    draws = generator(seed)
    (a, b), (m, o) = draws.normal(size=(2, 5, 5)), draws.normal(size=(2, 5))
    s, t = a @ a.T, b @ b.T
    exact = (m - o) @ (m - o) + np.trace(s + t - 2 * np.real(sqrtm(s @ t)))
    assert evaluation.frechet_of_moments(m, s, o, t) == pytest.approx(exact, rel=1e-10)


def test_normal_laws_in_closed_form(seed, key):
    draws = generator(seed)
    a = draws.normal(size=(4, 4))
    x, y = draws.normal(size=(5_000, 4)), 1 + draws.normal(size=(5_000, 4)) @ a.T
    found = evaluation.frechet_distance(x, y, key)
    exact = evaluation.frechet_of_moments(np.zeros(4), np.eye(4), np.ones(4), a @ a.T)
    assert abs(found.value - exact) < 4.5 * found.standard_error
    assert found.standard_error < 0.05 * exact


def null(num, draws, rows=1_000, d=10):
    found = []
    for number in range(num):
        x, y = draws.normal(size=(2, rows, d))
        e = evaluation.frechet_distance(x, y, jax.random.key(number))
        found.append((e.value, e.standard_error, e.details["plain"], e.details["plain_error"]))
    return np.array(found).T


@pytest.mark.fast("seed0")
def test_one_law_has_intercept_zero_where_the_plain_distance_has_not(seed):
    """Ten repeats: the mean intercept within 4.5 errors of 0, the mean plain distance beyond 10."""
    value, error, plain, plain_error = null(10, generator(seed), d=8)
    z = lambda v: v.mean() / (v.std(ddof=1) / len(v) ** 0.5)
    assert abs(z(value)) < 4.5 and z(plain) > 10
    assert (np.abs(value) < 3 * error).all()


@pytest.mark.slow  # 300 repeats
def test_intercepts_have_mean_zero_and_no_too_small_errors(seed):
    value, error, plain, plain_error = null(300, generator(seed))
    assert abs(value.mean()) < 3 * value.std() / 300**0.5
    assert (np.abs(value) < 3 * error).mean() > 0.99
    assert 1.0 < (error**2).mean() ** 0.5 / value.std() < 2.0  # too wide, never too narrow
    assert (plain > 2 * plain_error).mean() > 0.99


@pytest.mark.slow  # 100 repeats, each with a jackknife
def test_errors_of_different_laws_are_right(seed):
    draws, found = generator(seed), []
    for number in range(100):
        x, y = draws.normal(size=(300, 2)), 1 + draws.normal(size=(300, 2))
        e = evaluation.frechet_distance(x, y, jax.random.key(number))
        found.append((e.value, e.standard_error))
    value, error = np.array(found).T
    assert abs(value.mean() - 2) < 4.5 * value.std() / 10
    assert 0.75 < (error**2).mean() ** 0.5 / value.std() < 1.35


@pytest.mark.fast("seed0")
def test_classes_are_compared_one_by_one(seed, key):
    """Classes exchanged: no difference between the whole samples, 8 within each class."""
    draws = generator(seed)
    labels = np.repeat([0, 1], 300)
    centre = np.where(labels[:, None] == 1, 2.0, 0.0)
    x, y = draws.normal(size=(2, 600, 2)) + centre
    same = evaluation.intra_class_frechet(x, labels, y, labels, key)
    assert abs(same.value) < 4.5 * same.standard_error
    turned = evaluation.intra_class_frechet(x, labels, y, 1 - labels, key)
    assert turned.value == pytest.approx(8.0, abs=4.5 * turned.standard_error)
    assert set(turned.details) == {"class 0", "class 1", "plain"}
