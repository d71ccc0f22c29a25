"""Couplings keep both ends, and are those of optimal and of entropic transport."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from lapilli.models import paths

# Variances of x_0 and x_1, 1 and 4; covariance of the entropic coupling by s^2 (its closed form).
COVARIANCES = {1.0: 1.5616, 2.0: 0.8284}


def test_transport_is_the_least_assignment(key):
    keys = jax.random.split(key)
    x0, x1 = (jax.random.normal(k, (12, 2, 2)) for k in keys)
    which = np.asarray(jax.jit(paths.transport)(key, x0, x1))
    assert sorted(which) == list(range(12))
    cost = np.sum((np.asarray(x1)[:, None] - np.asarray(x0)[None]) ** 2, (2, 3))
    rows, columns = linear_sum_assignment(cost)
    np.testing.assert_allclose(
        cost[np.arange(12), which].sum(), cost[rows, columns].sum(), rtol=1e-5
    )


def test_transport_of_normals_has_their_largest_covariance(key):
    """sd_0 sd_1 = 2, the entropic coupling's without noise; quantiles, whose variance is below 1 and 4 by 1 %."""
    from scipy.stats import norm

    x0 = jnp.asarray(norm.ppf((np.arange(300) + 0.5) / 300), jnp.float32)[:, None]
    x1 = 2 * jax.random.permutation(key, x0)
    found = jnp.mean(x0[paths.transport(key, x0, x1)] * x1)
    assert abs(found / 2 - 1) < 0.02


def test_transport_takes_batches_side_by_side_and_has_no_slope(key):
    """Compiled, of several batches, and of ends that depend on parameters; a row that is not finite is told by the loss."""
    x0, x1 = jax.random.normal(key, (2, 3, 8, 2))
    many = jax.jit(jax.vmap(lambda a, b: paths.transport(key, a, b)))(x0, x1)
    for found, a, b in zip(many, x0, x1, strict=True):
        np.testing.assert_array_equal(found, paths.transport(key, a, b))

    def loss(scale):
        start = scale * x0[0]
        return jnp.sum((x1[0] - start[paths.transport(key, start, x1[0])]) ** 2)

    which = many[0]
    want = -2 * jnp.sum((x1[0] - x0[0][which]) * x0[0][which])
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(1.0), want, rtol=1e-5)
    lost = paths.transport(key, x0[0].at[3].set(jnp.nan), x1[0])
    np.testing.assert_array_equal(lost, np.arange(8))


@pytest.mark.slow_for("2.0")
@pytest.mark.parametrize("noise", COVARIANCES)
def test_entropic_coupling_of_normals_has_its_covariance(key, noise):
    """Quantiles of both ends: a batch of 300 whose coupling is that of the laws up to 2 %."""
    from scipy.stats import norm

    x0 = jnp.asarray(norm.ppf((np.arange(300) + 0.5) / 300), jnp.float32)[:, None]
    x1 = 2 * x0
    run = jax.jit(jax.vmap(paths.entropic(noise), (0, None, None)))
    which = run(jax.random.split(key, 100), x0, x1)
    products = np.asarray(x0[which, 0] * x1[:, 0][None])
    error = products.mean(1).std() / 10
    assert abs(products.mean() - COVARIANCES[noise]) < 4.5 * error + 0.02 * COVARIANCES[noise]
    drawn = np.asarray(x0[which, 0])  # x_0 keeps its law
    assert abs(drawn.mean()) < 5 / np.sqrt(drawn.size) and abs(drawn.var() - 1) < 0.03


def test_entropic_refuses_no_noise():
    with pytest.raises(ValueError, match="noise must be positive"):
        paths.entropic(0.0)
