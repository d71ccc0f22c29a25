"""Kernel distance: a closed form in moments, mean 0 under equality, the variance of U-statistics; an exact test from it."""

import jax
import numpy as np
import pytest

from lapilli.inference import evaluation
from lapilli.inference.evaluation import _kernel
from lapilli.inference.evaluation._inputs import generator


def by_hand(x, y, degree):
    k = lambda a, b: (a @ b.T / a.shape[1] + 1) ** degree
    n, m = len(x), len(y)
    one, two = k(x, x), k(y, y)
    within = (one.sum() - np.trace(one)) / (n * (n - 1)) + (two.sum() - np.trace(two)) / (
        m * (m - 1)
    )
    return within - 2 * k(x, y).mean()


@pytest.mark.parametrize("at_once", [1, 2**24])
def test_blocks_sum_to_the_whole_matrix(at_once, monkeypatch, seed):
    monkeypatch.setattr(_kernel, "_AT_ONCE", at_once)
    draws = generator(seed)
    x, y = draws.normal(size=(13, 3)), 1 + draws.normal(size=(9, 3))
    for degree in (1, 2, 3):
        found = evaluation.kernel_distance(x, y, degree=degree)
        assert found.value == pytest.approx(by_hand(x, y, degree), rel=1e-10)
    assert found.standard_error > 0


def test_a_sample_beside_itself_is_two_samples(seed):
    x = generator(seed).normal(size=(13, 3))
    found = evaluation.kernel_distance(x, x)
    assert found == evaluation.kernel_distance(x, x.copy())
    assert found.value == pytest.approx(by_hand(x, x, 3), rel=1e-10)


def test_closed_form_in_moments(seed):
    """One dimension, k = (xy + 1)^3: MMD^2 = 3 (m1 - m1')^2 + 3 (m2 - m2')^2 + (m3 - m3')^2, of N(0, 1), N(1/2, 1)."""
    draws = generator(seed)
    x, y = draws.normal(size=(1_500, 1)), 0.5 + draws.normal(size=(1_500, 1))
    moments = np.array([0.5, 0.25, 0.125 + 1.5])
    exact = np.array([3, 3, 1]) @ moments**2
    found = evaluation.kernel_distance(x, y)
    assert abs(found.value - exact) < 4.5 * found.standard_error
    assert found.standard_error < 0.25 * exact


def repeats(num, draws, shift):
    found = [
        evaluation.kernel_distance(draws.normal(size=(60, 3)), shift + draws.normal(size=(40, 3)))
        for _ in range(num)
    ]
    return np.array([(e.value, e.standard_error) for e in found]).T


@pytest.mark.fast("seed0")
def test_mean_zero_under_equality(seed):
    """500 repeats, and z within 4.5; the error has the variance of the second order, of which no row tells alone."""
    value, error = repeats(500, generator(seed), 0.0)
    assert abs(value.mean()) < 4.5 * value.std() / 500**0.5
    assert 0.85 < (error**2).mean() ** 0.5 / value.std() < 1.4


@pytest.mark.fast("seed0")
def test_errors_of_different_laws_are_right(seed):
    value, error = repeats(500, generator(seed), 0.4)
    assert 0.8 < (error**2).mean() ** 0.5 / value.std() < 1.2


def test_a_kernel_of_ones_own(seed):
    draws = generator(seed)
    x = draws.normal(size=(200, 1))
    wide = x * 1.6
    gauss = lambda a, b: np.exp(-((a - b.T) ** 2))
    assert evaluation.kernel_distance(x, wide, kernel=gauss).z > 1.5
    with pytest.raises(ValueError, match=r"kernel returned shape \(200, 1\) for 200 and 200 rows"):
        evaluation.kernel_distance(x, wide, kernel=lambda a, b: a)


@pytest.mark.fast("seed0")
def test_permutations_are_exact(key, seed):
    """p-values of equality are uniform on 1/20, ..., 1: of 200, those of at most 1/5 within 4.5 errors."""
    draws = generator(seed)
    gap = lambda x, y: float(np.abs(x.mean() - y.mean()))

    def p_value(shift, number):
        x, y = draws.normal(size=(12, 1)), shift + draws.normal(size=(9, 1))
        found = evaluation.permutation_test(gap, x, y, jax.random.key(number), num_permutations=19)
        assert found.permuted.shape == (19,)
        return found.p_value

    few = np.mean([p_value(0.0, number) <= 0.2 for number in range(200)])
    assert abs(few - 0.2) < 4.5 * (0.2 * 0.8 / 200) ** 0.5
    assert p_value(5.0, 0) == 0.05
    with pytest.raises(ValueError, match="the statistic is nan and not finite for 19 permutations"):
        x = np.zeros((5, 1))
        evaluation.permutation_test(lambda x, y: np.nan, x, x, key, num_permutations=19)


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_ties_are_not_lost_to_rounding(kind, key):
    """A statistic that is one number for every order of the rows, up to rounding, has p = 1."""
    noise = np.random.default_rng(0)
    same = lambda x, y: kind(1.0) + kind(10) * np.finfo(kind).eps * kind(noise.normal())
    x = noise.normal(size=(20, 1))
    assert evaluation.permutation_test(same, x, x, key, num_permutations=99).p_value == 1.0


def test_the_p_value_does_not_depend_on_the_order_of_rows(key):
    """Rows of two values: few values of the statistic, most permutations tie with some. Exact: hypergeometric, 0.258."""
    x, y = (np.r_[np.ones(k), np.zeros(40 - k)][:, None] * 0.6 + 0.1 for k in (20, 14))
    gap = lambda x, y: evaluation.kernel_distance(x, y, degree=3).value
    found = evaluation.permutation_test(gap, x, y, key, num_permutations=499).p_value
    assert abs(found - 0.258) < 4.5 * (0.258 * 0.742 / 499) ** 0.5
