"""Multivariate normal laws of matrices that are nearly singular: right in single precision, or not a number."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions.kl import kl_divergence

from lapilli import ppl  # noqa: F401, puts the mends in their places

DIM = 40


def covariances(num=120):
    """Kernels of points on a line, turned spectra and equal correlations, in units of their own; condition numbers to 1e9."""
    rng, found = np.random.default_rng(0), []
    for kind in range(num):
        small = 10.0 ** rng.uniform(-9, 0)
        if kind % 3 == 0:
            x = np.sort(rng.random(DIM))
            matrix = np.exp(-0.5 * ((x[:, None] - x) / 10 ** rng.uniform(-1, 0.5)) ** 2)
        elif kind % 3 == 1:
            turn = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
            matrix = (turn * np.geomspace(1, small, DIM)) @ turn.T
        else:
            matrix = np.ones((DIM, DIM))
        units = 10.0 ** rng.uniform(-3, 3, DIM)
        found.append(np.outer(units, units) * (matrix + small * np.eye(DIM)))
    exact = np.array(found)
    scales = 1 / np.sqrt(np.diagonal(exact, axis1=1, axis2=2))
    return exact, np.linalg.cond(exact * scales[:, :, None] * scales[:, None, :])


def densities(cov, y):
    """Log-densities in double precision."""
    whole = np.linalg.slogdet(cov)[1] + (y * np.linalg.solve(cov, y[..., None])[..., 0]).sum(-1)
    return -0.5 * (whole + DIM * np.log(2 * np.pi))


@pytest.mark.parametrize("name", ["covariance_matrix", "precision_matrix"])
def test_matrices_are_right_or_not_a_number(name):
    """Within some two nats of the matrix that is meant, before its entries are rounded. Without the count: off by thousands."""
    cov, condition = covariances()
    root = np.linalg.cholesky(cov)
    y = (root @ np.random.default_rng(1).normal(size=(len(cov), DIM, 1)))[..., 0]
    given = cov if name == "covariance_matrix" else np.linalg.inv(cov)
    y, given = y.astype(np.float32), given.astype(np.float32)

    @jax.jit
    def run(y, given):
        law = dist.MultivariateNormal(0.0, **{name: given}, validate_args=False)
        return law.log_prob(y), law.entropy()

    found, entropy = map(np.asarray, jax.vmap(run)(y, given))
    off = np.abs(found - densities(cov, y.astype(float)))
    is_known = np.isfinite(found)
    print(is_known.mean(), off[is_known].max(), condition[~is_known].min())
    assert off[is_known].max() < 2.5
    assert (np.isfinite(entropy) == is_known).all()
    assert is_known[condition < 1e6].all() and not is_known[condition > 1e9].any()


def test_what_has_a_factor_has_a_density():
    root = jnp.asarray([[1.0, 0], [1.0, 1e-5]])
    exact = dist.MultivariateNormal(jnp.zeros(2), scale_tril=root)
    far = jnp.asarray([1.0, 1.00001])
    np.testing.assert_allclose(exact.log_prob(far), 8.67505, rtol=1e-3)
    assert np.isfinite(exact.entropy()) and np.isfinite(kl_divergence(exact, exact))


def test_what_is_drawn_from_a_matrix_is_drawn_whatever_is_known_of_its_density():
    alike = jnp.full((20, 20), 1 - 1e-6, jnp.float32).at[jnp.arange(20), jnp.arange(20)].set(1.0)
    law = dist.MultivariateNormal(jnp.zeros(20), alike)
    assert np.isfinite(law.sample(jax.random.key(0))).all() and np.isnan(law.entropy())
    assert np.isnan(law.log_prob(jnp.ones(20)))
    assert np.isnan(kl_divergence(dist.MultivariateNormal(jnp.zeros(20), jnp.eye(20)), law))


def test_low_rank_laws_have_all_digits_at_small_diagonals():
    """Value and score, in double precision of the same numbers; NumPyro's formula is off by 5e5 nats."""
    rng, rank = np.random.default_rng(0), 3
    small = 10.0 ** rng.uniform(-10, 0, 200)
    factor = rng.normal(size=(200, DIM, rank))
    diagonal = small[:, None] * np.exp(rng.normal(size=(200, DIM)))
    noise = rng.normal(size=(200, DIM))
    y = (factor @ rng.normal(size=(200, rank, 1)))[..., 0] + np.sqrt(diagonal) * noise

    def log_prob(loc, factor, diagonal, y):
        law = dist.LowRankMultivariateNormal(loc, factor, diagonal, validate_args=False)
        return law.log_prob(y)

    run = jax.jit(jax.vmap(jax.value_and_grad(log_prob, 0)))
    single = [x.astype(np.float32) for x in (0 * y, factor, diagonal, y)]
    found, score = map(np.asarray, run(*single))
    with jax.enable_x64(True):
        exact, exact_score = map(np.asarray, run(*(x.astype(float) for x in single)))
    # The double-precision formula itself, by the whole matrix where that has digits enough.
    plain, sums = small > 1e-5, single[1].astype(float)
    whole = sums @ sums.swapaxes(1, 2) + single[2].astype(float)[:, None, :] * np.eye(DIM)
    np.testing.assert_allclose(
        exact[plain], densities(whole, single[3].astype(float))[plain], rtol=1e-6
    )
    # y is known to eps |y|, which is eps |y| / sqrt(D) scales.
    scales = np.finfo(np.float32).eps / np.sqrt(small)
    assert (np.abs(found - exact) < 100 * scales + 1e-5 * np.abs(exact)).all()
    errors = np.abs(score - exact_score) * np.sqrt(diagonal)
    assert (errors < 100 * scales[:, None] + 1e-4).all()
