"""Classes by bounds: the exact posterior of Gaussian classes, common noise, temperatures and calibration."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from _stats import assert_unbiased
from lapilli import inference
from lapilli.models import diffusion

VP = diffusion.VP()
MEANS = jnp.array([[-1.0], [0.5], [2.0]])
POINTS = jnp.array([[-1.2], [0.0], [0.8], [1.5]])


def model(mean):
    return diffusion.gaussian_mixture(VP, [1.0], mean[None], 1.0)


@pytest.mark.slow
def test_scores_are_unbiased_for_the_log_densities(key):
    """Differences between exact classes, 400 estimates at 50 levels of each of four points: half a nat is over 7 errors."""
    x = jnp.tile(POINTS, (400, 1, 1))
    found = diffusion.classify(model, MEANS, x, key, num_times=50, batch_size=400)
    assert found.scores.shape == (400, 4, 3) and found.classes.shape == (400, 4)
    exact = -0.5 * np.square(np.asarray(POINTS - MEANS[:, 0], float))
    assert_unbiased(found.scores[..., 1:] - found.scores[..., :1], exact[:, 1:] - exact[:, :1])
    right = jax.nn.log_softmax(found.scores.mean(0), -1)
    np.testing.assert_array_equal(right.argmax(-1), exact.argmax(-1))


@pytest.mark.slow  # three classifiers are compiled
def test_common_noise_takes_most_of_the_variance_of_differences(key):
    """Where points are far from all classes, as images are: here 4 and 2.5 scales from two that are 1.5 apart."""
    x = jnp.full((300, 1), 3.0)
    spread = {}
    for is_paired in (True, False):
        found = diffusion.classify(
            model, MEANS, x, key, num_times=8, is_paired=is_paired, batch_size=300
        )
        spread[is_paired] = np.var(found.scores[:, 1] - found.scores[:, 0])
    assert spread[True] < 0.3 * spread[False]  # (1.5^2) / (4^2 + 2.5^2) = 0.1 by the noise's share
    errors = diffusion.classify(model, MEANS, POINTS, key, num_times=64, weighting="error")
    assert errors.weighting == "error" and (errors.scores < 0).all()


def test_a_temperature_mends_what_is_too_sure():
    """Labels drawn from softmax(scores); those times 5 are over-confident, and their temperature is 5."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(20_000, 4)) * 2
    probs = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    labels = (probs.cumsum(1) < rng.random((20_000, 1))).sum(1)
    right, sure = (diffusion.Classification(jnp.asarray(s), "bound") for s in (scores, 5 * scores))
    error = lambda c: inference.diagnostics.expected_calibration_error(
        np.exp(np.asarray(c.log_probs, float)), labels
    )
    assert error(right) < 0.015 < 0.1 < error(sure)
    mended = sure.with_temperature(labels)
    assert abs(mended.temperature - 5) < 0.3  # some 3 standard errors
    assert error(mended) < 0.02
    same = dataclasses.replace(right, temperature=1.0)
    np.testing.assert_array_equal(same.log_probs, right.log_probs)
