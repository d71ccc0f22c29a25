"""Exact answers for the Ising model: against sums over all states, against each other, and against golden values."""

import itertools

import numpy as np
import pytest
from scipy.special import logsumexp

from _stats import assert_unbiased
from lapilli.models.ising import Ising, log_partition_kaufman

CRITICAL = np.log1p(np.sqrt(2)) / 2
# n, log Z, mean spin, bits per site at coupling 0.2 and field 0.2; log Z and bits per site without the field.
GOLDEN = [
    (3, 7.115373, 0.465084, 0.781466, 6.669745, 0.913894),
    (4, 12.598503, 0.480005, 0.782776, 11.771470, 0.929802),
    (5, 19.674086, 0.482970, 0.783185, 18.369204, 0.934410),
    (8, 50.360385, 0.483715, 0.783322, 47.010147, 0.936107),
    (10, 78.688056, 0.483722, 0.783323, 73.453098, 0.936140),
]


def states(num_sites):
    return np.array(list(itertools.product((0, 1), repeat=num_sites)))


@pytest.fixture(scope="module")
def small():
    """A lattice that is not square, all its states, and log f by hand."""
    model = Ising(3, 4, coupling=0.3, field=-0.15)
    x = states(12)
    s = (2.0 * x - 1).reshape(-1, 3, 4)
    edges = sum(
        s[:, i, j] * (s[:, (i + 1) % 3, j] + s[:, i, (j + 1) % 4])
        for i in range(3)
        for j in range(4)
    )
    return model, x, 0.3 * edges - 0.15 * s.sum((1, 2))


@pytest.fixture(scope="module")
def ten():
    return Ising(10, 10, coupling=0.2, field=0.2)


def test_everything_equals_sums_over_all_states(small):
    model, x, log_f = small
    p = np.exp(log_f - logsumexp(log_f))
    np.testing.assert_allclose(model.log_density(x), log_f, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.log_partition(), logsumexp(log_f), rtol=1e-12)
    np.testing.assert_allclose(model.mean_spin(), p @ (2.0 * x - 1).mean(1), rtol=1e-12)
    np.testing.assert_allclose(model.mean_log_density(), p @ log_f, rtol=1e-12)
    np.testing.assert_allclose(model.entropy(), -p @ np.log(p), rtol=1e-12)


def test_marginals_equal_sums_over_all_states(small):
    model, x, log_f = small
    log_p = log_f - logsumexp(log_f)
    rng = np.random.default_rng(0)
    for _ in range(50):
        observed = rng.random(12) < rng.random()
        value = rng.integers(0, 2, 12)
        agrees = (x == value)[:, observed].all(1)
        exact = logsumexp(log_p[agrees])
        np.testing.assert_allclose(model.log_marginal(value, observed), exact, atol=1e-12)


# Sweeps site by site take seconds.
@pytest.mark.parametrize(
    "name", ["sample", pytest.param("sample_from_past", marks=pytest.mark.slow)]
)
def test_draws_follow_the_law(small, name):
    """|z| < 4.5 for 24 means and 66 pairs: 6e-4 false alarms in all; a bias of 0.02 in a pair's mean is 9 standard errors."""
    model, x, log_f = small
    p = np.exp(log_f - logsumexp(log_f))
    features = lambda x: np.concatenate(
        [x, np.stack([x[:, i] ^ x[:, j] for i, j in itertools.combinations(range(12), 2)], 1)], 1
    )
    draws = getattr(model, name)(np.random.default_rng(1), 50_000)
    assert_unbiased(features(draws), p @ features(x))


@pytest.mark.slow_for("10x10")
@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: f"{row[0]}x{row[0]}")
def test_golden_values(row):
    n, log_z, spin, bits, log_z_free, bits_free = row
    model, free = Ising(n, n, 0.2, 0.2), Ising(n, n, 0.2)
    per_site = n * n * np.log(2)
    got = [model.log_partition(), model.mean_spin(), model.entropy() / per_site]
    got += [free.log_partition(), free.entropy() / per_site]
    np.testing.assert_allclose(got, [log_z, spin, bits, log_z_free, bits_free], atol=1e-6)


@pytest.mark.parametrize("coupling", [0.2, CRITICAL, 0.6], ids=["warm", "critical", "cold"])
@pytest.mark.parametrize("shape", [(3, 3), (4, 4), (3, 5), (5, 3), (6, 8)], ids=str)
def test_kaufman_equals_the_transfer_matrix(shape, coupling):
    exact = Ising(*shape, coupling).log_partition()
    np.testing.assert_allclose(log_partition_kaufman(*shape, coupling), exact, rtol=1e-12)


def test_kaufman_golden_values():
    got = [
        log_partition_kaufman(n, n, k) for n, k in [(4, 0.4), (10, 0.4), (10, CRITICAL), (10, 0.6)]
    ]
    np.testing.assert_allclose(got, [14.561093, 88.187701, 93.610301, 121.706390], atol=1e-6)


@pytest.mark.slow
def test_golden_marginals(ten):
    site = np.arange(100)
    row, pair, far = site < 10, site < 2, (site == 0) | (site == 55)
    one, half, every = site == 0, site < 50, site >= 0
    up, down, checkers = np.ones(100), np.zeros(100), (site // 10 + site % 10 + 1) % 2
    cases = [
        (up, one, -0.2985936), (down, one, -1.3542565),
        (up, pair, -0.5381162), (site % 2, pair, -1.8450731), (up, far, -0.5971797),
        (up, row, -2.3909592), (down, row, -9.4198983),
        (checkers, half, -57.6331438), (up, every, -18.6880562),
    ]  # fmt: skip
    got = [ten.log_marginal(x, observed) for x, observed, _ in cases]
    np.testing.assert_allclose(got, [exact for *_, exact in cases], atol=1e-6)
    np.testing.assert_allclose(ten.mean_log_density(), 24.39223, atol=1e-5)


def test_neighbours_are_those_of_the_energy(small):
    model, _, _ = small
    assert np.array_equal(np.sort(model.neighbours[[0, 6]]), [[1, 3, 4, 8], [2, 5, 7, 10]])


def test_impossible_lattices_are_refused():
    with pytest.raises(ValueError, match="coupling -0.1 is negative.*Use `sample`"):
        Ising(4, 4, -0.1).sample_from_past(np.random.default_rng(0), 1)
    with pytest.raises(ValueError, match="2 x 5 sites.*at least 3 x 3"):
        Ising(2, 5, 0.1)
    with pytest.raises(ValueError, match="20 columns.*log_partition_kaufman"):
        Ising(20, 20, 0.1).log_partition()
    with pytest.raises(ValueError, match="coupling must be positive.*-0.1"):
        log_partition_kaufman(4, 4, -0.1)
