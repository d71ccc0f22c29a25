"""Multivariate normal laws of matrices that are nearly singular: right in single precision, or not a number."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.sparse
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


@pytest.mark.parametrize("name", ["covariance_matrix", "precision_matrix"])
def test_of_many_draws_of_one_matrix_less_is_known(name):
    """Rows of one matrix and steps of a state-space model: within 2.5 nats in all. Without the count: off by hundreds."""
    cov, condition = covariances(60)
    rng, num, step = np.random.default_rng(2), 60, 0.9
    root = np.linalg.cholesky(cov)
    noise = np.einsum("nij,ntj->nti", root, rng.normal(size=(len(cov), num, DIM)))
    path = np.zeros_like(noise)
    for t in range(num):
        path[:, t] = step * path[:, t - 1] + noise[:, t] if t else noise[:, t]
    given = (cov if name == "covariance_matrix" else np.linalg.inv(cov)).astype(np.float32)
    noise, path = noise.astype(np.float32), path.astype(np.float32)

    @jax.jit
    @jax.vmap
    def run(given, noise, path):
        rows = dist.MultivariateNormal(0.0, **{name: given}, validate_args=False)
        steps = dist.GaussianStateSpace(
            num, step * jnp.eye(DIM), **{name: given}, validate_args=False
        )
        return rows.log_prob(noise).sum(), steps.log_prob(path)

    before = np.concatenate([np.zeros_like(path[:, :1]), path[:, :-1]], 1).astype(float)
    whole = np.linalg.inv(cov)
    exact = [
        -0.5 * (np.einsum("nti,nij,ntj->n", e, whole, e) + num * (np.linalg.slogdet(cov)[1] + DIM * np.log(2 * np.pi)))
        for e in (noise.astype(float), path.astype(float) - step * before)
    ]  # fmt: skip
    for found, right in zip(run(given, noise, path), exact, strict=True):
        found = np.asarray(found)
        is_known = np.isfinite(found)
        assert np.abs(found - right)[is_known].max() < 2.5
        assert is_known[condition < 1e4].all() and not is_known[condition > 1e9].any()


def test_copulas_and_circulant_laws_hold_to_the_same():
    """Within 2.5 nats, or not a number; a factor, and the spectrum of a circle, have their digits."""
    cov, condition = covariances()
    scales = 1 / np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
    matrix = cov * scales[:, :, None] * scales[:, None, :]
    root = np.linalg.cholesky(matrix)
    y = (root @ np.random.default_rng(3).normal(size=(len(cov), DIM, 1)))[..., 0].astype(np.float32)

    @jax.jit
    @jax.vmap
    def run(matrix, root, y):
        marginal = dist.Normal(jnp.zeros(DIM), 1.0)
        by = lambda **given: dist.GaussianCopula(marginal, **given, validate_args=False).log_prob(y)
        return by(correlation_matrix=matrix), by(correlation_cholesky=root)

    exact = densities(matrix, y.astype(float))
    by_matrix, by_root = map(np.asarray, run(matrix.astype(np.float32), root.astype(np.float32), y))
    is_known = np.isfinite(by_matrix)
    assert is_known[condition < 1e5].all() and not is_known[condition > 1e9].any()
    assert np.abs(by_matrix - exact)[is_known].max() < 2.5
    assert np.abs(by_root - exact).max() < 2.5


def test_circles_are_right_or_not_a_number():
    """A row of the covariance is rounded; of a spectrum that is given all digits are there, also once the row was asked for."""
    rng, num = np.random.default_rng(0), 120
    apart = np.minimum(np.arange(DIM), DIM - np.arange(DIM))
    width, small = 10 ** rng.uniform(-0.5, 0.8, num), 10 ** rng.uniform(-9, 0, num)
    row = np.exp(-0.5 * (apart / width[:, None]) ** 2)
    spectrum = np.maximum(np.fft.fft(row).real, 0) + small[:, None]
    row = np.fft.ifft(spectrum).real
    y = np.fft.ifft(np.sqrt(spectrum) * np.fft.fft(rng.normal(size=row.shape))).real
    y = y.astype(np.float32)
    power = np.abs(np.fft.fft(y.astype(float))) ** 2 / DIM
    exact = -0.5 * (power / spectrum + np.log(2 * np.pi * spectrum)).sum(1)
    circle = lambda **given: dist.CirculantNormal(jnp.zeros(DIM), **given, validate_args=False)
    run = jax.jit(jax.vmap(lambda row, y: circle(covariance_row=row).log_prob(y)))
    found, condition = np.asarray(run(row.astype(np.float32), y)), spectrum.max(1) / spectrum.min(1)
    is_known = np.isfinite(found)
    assert np.abs(found - exact)[is_known].max() < 2.5
    assert is_known[condition < 1e5].all() and not is_known[condition > 1e9].any()
    law = circle(
        covariance_rfft=jnp.asarray(spectrum[0, : DIM // 2 + 1] * 0 + 1e-7).at[0].set(40.0)
    )
    assert law.covariance_row.shape == (DIM,) and np.isfinite(law.log_prob(jnp.zeros(DIM)))


def test_a_matrix_that_was_asked_for_was_not_given():
    root = jnp.asarray([[1.0, 0], [1.0, 1e-5]])
    law = dist.MultivariateNormal(jnp.zeros(2), scale_tril=root)
    assert law.covariance_matrix.shape == law.precision_matrix.shape == (2, 2)
    assert np.isfinite(law.log_prob(jnp.zeros(2)))


@pytest.mark.parametrize("is_sparse", [False, True])
def test_neighbours_that_are_far_from_the_mean_together_have_their_digits(is_sparse):
    """NumPyro's formula is off by thousands of nats, at condition numbers of hundreds."""
    rng, num = np.random.default_rng(0), 200
    edges = np.zeros((DIM, DIM))
    for i in range(DIM):
        edges[i, (i + 1) % DIM] = edges[(i + 1) % DIM, i] = edges[i, (i + 5) % DIM] = edges[
            (i + 5) % DIM, i
        ] = 1
    rho = rng.choice([-1, 1], num) * (1 - 10 ** rng.uniform(-5, 0, num))
    tau = 10 ** rng.uniform(-3, 4, num)
    level = 10 ** rng.uniform(-1, 3, num)
    signs = np.where(rho[:, None] < 0, np.where(np.arange(DIM) % 2, -1, 1), 1)
    y = level[:, None] * signs + rng.normal(size=(num, DIM)) / np.sqrt(tau)[:, None]
    rho, tau, y = (x.astype(np.float32) for x in (rho, tau, y))
    adjacency = scipy.sparse.csr_matrix(edges) if is_sparse else edges.astype(np.float32)

    def log_prob(loc, rho, tau, y):
        law = dist.CAR(
            loc * jnp.ones(DIM), rho, tau, adjacency, is_sparse=is_sparse, validate_args=False
        )
        return law.log_prob(y)

    value, score = jax.jit(jax.vmap(jax.value_and_grad(log_prob), (None, 0, 0, 0)))(
        0.0, rho, tau, y
    )
    wide = [x.astype(float) for x in (rho, tau, y)]
    precision = wide[1][:, None, None] * (np.diag(edges.sum(1)) - wide[0][:, None, None] * edges)
    pull = np.einsum("nij,nj->ni", precision, wide[2])
    quadratic = (wide[2] * pull).sum(1)
    exact = 0.5 * (np.linalg.slogdet(precision)[1] - quadratic - DIM * np.log(2 * np.pi))
    np.testing.assert_allclose(value, exact, rtol=2e-5, atol=2e-2)
    assert (
        np.abs(score - pull.sum(1))
        < 1e-4 * np.abs(pull).sum(1) + 1e-4 * np.sqrt(quadratic * wide[1])
    ).all()


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
