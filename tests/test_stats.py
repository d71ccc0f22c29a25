"""The helpers of _stats: they pass what is right, and fail what is wrong, by name."""

import jax
import numpy as np
import pytest

from _stats import assert_same_mean, assert_unbiased


def normal(key, shape):
    return np.asarray(jax.random.normal(key, shape))


def test_unbiased_mean_passes(seed):
    # 6 comparisons a seed, false-alarm rate 6.8e-6 each.
    assert_unbiased(3.0 + normal(seed, (10_000, 2, 3)), np.full((2, 3), 3.0))


def test_a_bias_of_ten_standard_errors_fails_in_its_coordinate_only(seed):
    # Bias 0.1 = 10 standard errors at N = 1e4: missed with probability 2e-8.
    estimates = normal(seed, (10_000, 3)) + np.array([0.0, 0.1, 0.0])
    with pytest.raises(AssertionError, match=r"1 of 3 coordinates") as caught:
        assert_unbiased(estimates, np.zeros(3), names=["loc", "scale", "rate"])
    assert "scale: z = " in str(caught.value)
    assert "loc" not in str(caught.value)


def test_a_scale_error_fails(seed):
    # The mistake that a doubled weight makes: expectation 2 instead of 1, 100 standard errors.
    with pytest.raises(AssertionError, match="coordinate 0: z = "):
        assert_unbiased(2.0 * (1.0 + normal(seed, (10_000,))), 1.0)


def test_z_is_measured_in_standard_errors_of_the_mean():
    # mean 0.5, sample sd sqrt(N / (N - 1)) / 2, so z = sqrt(N - 1) exactly.
    estimates = np.tile([0.0, 1.0], 13)
    with pytest.raises(AssertionError, match=r"z = 5\.00"):
        assert_unbiased(estimates, 0.0)
    assert_unbiased(estimates, 0.0, z_max=5.01)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_fail(bad):
    estimates = np.zeros((100, 2))
    estimates[7, 1] = bad
    with pytest.raises(AssertionError, match="coordinate 1: not finite"):
        assert_unbiased(estimates, np.zeros(2))
    with pytest.raises(AssertionError, match="coordinate 1: not finite"):
        assert_same_mean(estimates, np.zeros((100, 2)))
    with pytest.raises(AssertionError, match="coordinate 0: not finite"):
        assert_unbiased(np.zeros(100), bad)


def test_constant_estimates_are_compared_by_tolerance():
    rounding = np.tile([0.0, 1e-7], 500)
    assert_unbiased(2.0 + rounding, 2.0 + 1e-5)  # z alone would be enormous
    with pytest.raises(AssertionError, match="constant but different"):
        assert_unbiased(2.0 + rounding, 2.001)
    assert_same_mean(np.full(10, 2.0), np.full(20, 2.00001))
    with pytest.raises(AssertionError, match="constant but different"):
        assert_same_mean(np.full(10, 2.0), np.full(20, 2.001))


def test_same_mean_of_unequal_spreads_and_sizes_passes(seed):
    key_a, key_b = jax.random.split(seed)
    assert_same_mean(1.0 + normal(key_a, (10_000, 4)), 1.0 + 5.0 * normal(key_b, (40_000, 4)))


def test_different_means_fail(seed):
    # Bias 0.15 = 10.6 standard errors of the difference at N = 1e4 each.
    key_a, key_b = jax.random.split(seed)
    with pytest.raises(AssertionError, match="coordinate 0: z = "):
        assert_same_mean(0.15 + normal(key_a, (10_000,)), normal(key_b, (10_000,)))


@pytest.mark.parametrize(
    ("estimates", "exact", "match"),
    [
        (np.zeros((10, 2)), np.zeros(3), r"exact value of shape \(2,\), got \(3,\)"),
        (np.zeros((10, 2)), 0.0, r"exact value of shape \(2,\), got \(\)"),
        (np.zeros((1, 2)), np.zeros(2), "N >= 2"),
        (0.0, 0.0, "N >= 2"),
    ],
    ids=["event", "scalar", "one", "none"],
)
def test_shapes_that_do_not_fit_are_refused(estimates, exact, match):
    with pytest.raises(ValueError, match=match):
        assert_unbiased(estimates, exact)


def test_names_must_cover_the_coordinates():
    with pytest.raises(ValueError, match="1 names for 2 coordinates"):
        assert_unbiased(np.zeros((10, 2)), np.zeros(2), names=["a"])


def test_seed_and_key_fixtures_follow_the_shift(seed, key, request):
    shift = request.config.getoption("--seed-shift")
    seeds = [jax.random.key_data(jax.random.key(s + shift)).tolist() for s in range(3)]
    assert jax.random.key_data(seed).tolist() in seeds
    assert jax.random.key_data(key).tolist() == seeds[0]
