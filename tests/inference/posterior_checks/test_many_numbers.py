"""Checks of hundreds of observed numbers, whose squares and products are more than memory holds."""

import tracemalloc

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import PolynomialFeatures

from lapilli.inference.posterior_checks import _c2st


@pytest.mark.parametrize("columns", [4, 12, 40])
def test_classifiers_are_those_of_all_squares_and_products(columns):
    """Also where these are more than the rows, and are never held."""
    rng = np.random.default_rng(columns)
    inputs, there = rng.normal(size=(50, columns)), rng.normal(size=(20, columns))
    labels = (inputs[:, 0] + rng.normal(size=50) > 0).astype(int)
    powers = PolynomialFeatures(2, include_bias=False)
    plain, there_too = powers.fit_transform(inputs), powers.transform(there)
    mean, sd = plain.mean(0), plain.std(0)
    classifier = lambda: LogisticRegression(solver="newton-cholesky", tol=1e-9)
    want = classifier().fit((plain - mean) / sd, labels).predict_proba((there_too - mean) / sd)
    ours, at = _c2st._quadratic(inputs, there)
    assert ours.shape[1] <= max(50, columns)
    found = classifier().fit(ours, labels).predict_proba(at)
    np.testing.assert_allclose(found, want, atol=1e-6)


@pytest.mark.slow(reason="many numbers")
def test_memory_grows_with_rows_and_not_with_squares_of_columns():
    """442 numbers have 98,000 squares and products, and a classifier of these a matrix of 73 GiB."""
    rng = np.random.default_rng(0)
    inputs, there = rng.normal(size=(80, 442)), rng.normal(size=(50, 442))
    tracemalloc.start()
    _c2st._fit(None, inputs, there)(rng.integers(0, 2, 80))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
