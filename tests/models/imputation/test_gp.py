"""The Gaussian process prior and the guide built on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from _stats import assert_unbiased
from lapilli.models import imputation
from lapilli.models.imputation._gp import PrecisionNormal

STEPS = np.arange(6.0)
K = np.asarray(imputation.cauchy_kernel(jnp.asarray(STEPS)), float)


def test_kernel_of_one_step_and_of_many():
    assert abs(float(imputation.cauchy_kernel(jnp.zeros(1))[0, 0]) - 1.006) < 1e-6
    assert abs(K[0, 3] - 1.005 / (1 + 9 / 49)) < 1e-6


def test_paths_have_the_kernel_as_covariance(seed):
    """Mixed white noise; 20,000 paths: a bias of 0.05 in a covariance is 5 standard errors or more."""
    scale = imputation.own_cholesky(jnp.asarray(K), jnp.ones(6, bool))
    paths = np.asarray(jax.random.normal(seed, (20_000, 6)) @ scale.T, float)
    assert_unbiased(paths[:, :, None] * paths[:, None], K)


def test_prefixes_have_the_density_of_their_own_steps():
    z = np.random.default_rng(0).normal(size=6)
    scale = imputation.own_cholesky(jnp.asarray(K), jnp.ones(6, bool))
    cumulated = np.cumsum(imputation.step_log_prob(jnp.asarray(z), scale))
    exact = [stats.multivariate_normal(np.zeros(t), K[:t, :t]).logpdf(z[:t]) for t in range(1, 7)]
    np.testing.assert_allclose(cumulated, exact, rtol=2e-3)


def test_a_series_has_the_block_of_its_own_steps():
    valid = jnp.arange(6) < 4
    scale = np.asarray(imputation.own_cholesky(jnp.asarray(K), valid), float)
    np.testing.assert_allclose(scale[:4, :4], np.linalg.cholesky(K[:4, :4]), atol=1e-4)
    np.testing.assert_allclose(scale[4:], np.eye(6)[4:], atol=1e-6)
    np.testing.assert_allclose(scale[:, 4:], np.eye(6)[:, 4:], atol=1e-6)


def test_the_guide_is_the_posterior_given_its_looks():
    """Path L u with looks h = path + noise of precision r, two of which are 0: the Gaussian process regression formulas."""
    rng = np.random.default_rng(1)
    looks, precision = rng.normal(size=6), np.array([4.0, 0.0, 10.0, 1.0, 0.0, 2.0])
    scale = np.linalg.cholesky(K)
    law = imputation.smoothed(jnp.asarray(scale)[None], looks[None, None], precision[None, None])
    seen = precision > 0
    gain = K[:, seen] @ np.linalg.inv(K[np.ix_(seen, seen)] + np.diag(1 / precision[seen]))
    np.testing.assert_allclose(scale @ law.loc[0, 0], gain @ looks[seen], atol=2e-3)
    noise = scale @ np.asarray(law.scale_tril[0, 0], float)
    np.testing.assert_allclose(noise @ noise.T, K - gain @ K[seen], atol=2e-3)


def test_without_looks_the_guide_is_the_prior():
    scale = np.linalg.cholesky(K)
    law = imputation.smoothed(jnp.asarray(scale)[None], np.ones((1, 1, 6)), np.zeros((1, 1, 6)))
    np.testing.assert_allclose(law.loc[0, 0], 0, atol=1e-6)
    np.testing.assert_allclose(law.scale_tril[0, 0], np.eye(6), atol=1e-5)


def test_a_normal_by_the_root_of_its_precision(seed):
    """Log-density and draws; 20,000 draws: a bias of 0.05 in a covariance is 5 standard errors or more."""
    root = np.array([[1.5, 0.0], [-0.4, 0.8]])
    law, covariance = PrecisionNormal(jnp.array([0.3, -1.0]), root), np.linalg.inv(root.T @ root)
    exact = stats.multivariate_normal([0.3, -1.0], covariance)
    x = np.array([[0.1, 0.2], [2.0, -3.0]])
    np.testing.assert_allclose(law.log_prob(x), exact.logpdf(x), rtol=1e-5)
    offset = np.asarray(law.sample(seed, (20_000,)), float) - exact.mean
    assert_unbiased(offset[:, :, None] * offset[:, None], covariance)


@pytest.mark.slow
def test_a_draw_has_the_density_that_its_noise_says():
    """Equal values; and equal derivatives along the draw, in which the score of the location cancels."""

    def density(loc, diagonal, has_noise):
        law = PrecisionNormal(loc, jnp.diag(diagonal) + jnp.array([[0, 0], [-0.4, 0]]))
        x, noise = law.sample_with_intermediates(jax.random.key(0), (3,))
        return law.log_prob(x, noise if has_noise else None).sum()

    at = jnp.array([0.3, -1.0]), jnp.array([1.5, 0.8])
    for run in (density, jax.grad(density, (0, 1))):
        ours, known = (jax.tree.leaves(run(*at, has_noise)) for has_noise in (True, False))
        np.testing.assert_allclose(ours, known, rtol=1e-5, atol=1e-5)
