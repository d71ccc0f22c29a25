"""Importance weights: k-hat, ESS and evidence against closed forms; resampling."""

import jax
import numpy as np
import pytest

from _stats import assert_unbiased
from lapilli.inference.diagnostics._weights import importance_diagnostics, resampling_indices


def rng(key):
    """A NumPy generator that follows the seed of the fixture."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def test_ess_evidence_and_elbo_are_their_formulas():
    weights = np.array([0.5, 1.0, 4.0, 0.0])
    with np.errstate(divide="ignore"):
        found = importance_diagnostics(np.log(weights))
    assert found.num_draws == 4 and found.elbo == -np.inf
    np.testing.assert_allclose(found.ess, 5.5**2 / (0.25 + 1 + 16), rtol=1e-12)
    np.testing.assert_allclose(found.log_evidence, np.log(5.5 / 4), rtol=1e-12)
    # The standard error of the mean weight over the mean weight.
    np.testing.assert_allclose(
        found.log_evidence_std_error, weights.std() / 2 / weights.mean(), rtol=1e-12
    )
    np.testing.assert_allclose(np.exp(found.smoothed_log_weights), weights / 5.5, rtol=1e-12)


@pytest.mark.parametrize("shift", [-1e4, 800.0], ids=["tiny", "huge"])
def test_a_common_factor_of_the_weights_moves_the_evidence_alone(key, shift):
    log_weights = rng(key).normal(size=500)
    found, moved = importance_diagnostics(log_weights), importance_diagnostics(log_weights + shift)
    np.testing.assert_allclose(moved.log_evidence, found.log_evidence + shift, rtol=1e-10)
    for field in ("k_hat", "ess", "log_evidence_std_error", "smoothed_log_weights"):
        np.testing.assert_allclose(
            getattr(moved, field), getattr(found, field), rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("shape", [0.3, 0.7, 1.2])
def test_k_hat_is_the_shape_of_pareto_weights(seed, shape):
    # exp(k E), E exponential, is Pareto with shape k. Its estimate from the m largest has a standard deviation of about
    # (1 + k) / sqrt(m); the prior of the fit (10 draws at 0.5) moves it by less than a third of that. False alarm 7e-6 each.
    size = 100_000
    found = importance_diagnostics(shape * rng(seed).exponential(size=size))
    assert abs(found.k_hat - shape) < 4.5 * (1 + shape) / np.sqrt(3 * size**0.5)
    assert found.k_threshold == 0.7


@pytest.mark.parametrize(
    ("log_weights", "expected"),
    [
        (np.full(100, -20.0), -np.inf),
        (np.float32(-20 + 1e-6 * np.sin(np.arange(500))), -np.inf),
        (np.repeat([0.0, 1.0], 50), -np.inf),
        (np.zeros(1), -np.inf),
        (np.arange(24.0), np.nan),
        (np.r_[np.zeros(498), 3.0, 3.0], np.nan),
    ],
    ids=["equal", "rounding", "bounded", "one", "few", "ties"],
)
def test_k_hat_where_no_tail_can_be_fitted(log_weights, expected):
    found = importance_diagnostics(log_weights)
    np.testing.assert_equal(found.k_hat, expected)
    normalised = np.exp(log_weights - np.max(log_weights), dtype=float)
    np.testing.assert_allclose(
        np.exp(found.smoothed_log_weights), normalised / normalised.sum(), rtol=1e-6
    )


def test_draws_without_weight_count_as_draws(key):
    log_weights = np.r_[rng(key).normal(size=300), np.full(300, -np.inf)]
    found, half = importance_diagnostics(log_weights), importance_diagnostics(log_weights[:300])
    np.testing.assert_allclose(found.ess, half.ess, rtol=1e-12)
    np.testing.assert_allclose(found.log_evidence, half.log_evidence - np.log(2), rtol=1e-12)
    assert np.isfinite(found.k_hat)
    assert (found.smoothed_log_weights[300:] == -np.inf).all()


@pytest.mark.parametrize(
    ("log_weights", "message"),
    [
        (np.zeros((3, 4)), r"'log_weights' has shape \(3, 4\).*one log-weight per draw"),
        (np.zeros(0), r"'log_weights' has shape \(0,\)"),
        (np.array([0.0, np.nan, np.inf]), "holds 2 NaN or .inf among 3 draws.*draw 1.*site_report"),
        (np.full(3, -np.inf), "-inf at all 3 draws.*proposal that covers"),
    ],
    ids=["matrix", "empty", "nan", "none"],
)
def test_impossible_weights_are_refused(log_weights, message):
    with pytest.raises(ValueError, match=message):
        importance_diagnostics(log_weights)


@pytest.mark.parametrize("number", [30, 225, 1000])
@pytest.mark.parametrize("shape", [0.1, 0.5, 2.0])
def test_smoothing_and_k_hat_are_those_of_arviz(number, shape, key):
    from arviz_stats.base import array_stats

    log_weights = shape * rng(key).exponential(size=number) + 0.3 * rng(key).normal(size=number)
    smoothed, k_hat = array_stats.psislw(-log_weights)
    found = importance_diagnostics(log_weights)
    np.testing.assert_allclose(found.smoothed_log_weights, smoothed, atol=1e-9)
    assert found.k_hat == pytest.approx(k_hat, abs=1e-9)


@pytest.mark.fast("seed2")
def test_resampling_is_unbiased_and_stratified(seed):
    # Counts of 6 indices over 4000 keys: a bias of 0.08 of one draw is 7 standard errors (variance below 1/2 each).
    weights = np.array([0.02, 0.4, 0.0, 0.33, 0.15, 0.1])
    log_weights = np.log(weights, where=weights > 0, out=np.full(6, -np.inf))
    indices = np.stack([resampling_indices(k, log_weights) for k in jax.random.split(seed, 4000)])
    assert (np.diff(indices) >= 0).all()
    counts = (indices[:, :, None] == np.arange(6)).sum(1)
    assert np.abs(counts - 6 * weights).max() < 2
    assert_unbiased(counts.astype(float), 6 * weights)
