"""The Nile: exact answers against independent sums, and the script at smoke size."""

import numpy as np
import pytest
from _examples import load_example, run_example
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

SEEN = np.array([True, True, False, True, True])


@pytest.fixture(scope="module")
def nile():
    return load_example("papers/particles/nile")


def joint(nile, flow, covariance_of_levels):
    """Log evidence by the joint normal law of the years seen."""
    totals = []
    for noise in nile.GRID:
        covariance = (covariance_of_levels + noise**2 * np.eye(5))[np.ix_(SEEN, SEEN)]
        law = multivariate_normal(np.full(SEEN.sum(), nile.CENTRE), covariance)
        totals.append(law.logpdf(flow[SEEN]))
    return np.array(totals)


def test_the_kalman_filter_is_the_joint_normal_law(nile):
    flow = nile.series()[0][26:31]
    for scale in (0.0, nile.DRIFT):
        change = np.full(5, scale)
        change[0] = nile.WIDTH
        covariance = np.minimum.outer(np.cumsum(change**2), np.cumsum(change**2))
        want = nile.over_noise(joint(nile, flow, covariance))
        np.testing.assert_allclose(nile.kalman(flow, SEEN, change)[0], want, rtol=1e-10)


@pytest.mark.slow
def test_the_recursion_is_the_sum_over_all_sets_of_jumps(nile):
    flow = nile.series()[0][26:31]
    terms, sets = [], []
    for code in range(16):
        jumps = np.array([1, *(code >> i & 1 for i in range(4))])
        segment = np.cumsum(jumps)
        covariance = nile.WIDTH**2 * (segment[:, None] == segment)
        chance = np.where(jumps[1:], nile.HAZARD, 1 - nile.HAZARD).prod()
        terms.append(np.log(chance) + joint(nile, flow, covariance))
        sets.append(jumps)
    want = nile.over_noise(logsumexp(terms, axis=0))
    weights = np.exp([nile.over_noise(term) - want for term in terms])
    got, began = nile.run_lengths(flow, SEEN)
    np.testing.assert_allclose(got, want, rtol=1e-10)
    np.testing.assert_allclose(began, weights @ np.array(sets), rtol=1e-8)


@pytest.mark.slow  # three models compile, twice
def test_the_script_agrees_with_the_exact_answers(tmp_path):
    text = run_example("papers/particles/nile", "--smoke", "--out", tmp_path, timeout=600)
    rows = [line.split() for line in text.splitlines() if line.startswith("  ")]
    assert [row[0] for row in rows] == ["constant", "jumps", "drift"] * 2
    # The errors are estimated from 20 runs: beyond 6 of them is one in 10^5 (Student t, 19 degrees of freedom).
    assert all(abs(float(row[5])) < 6 for row in rows), text
    assert "change most probable in 1899" in text
    for name in ("nile.png", "particles.png", "posterior.nc", "report.txt"):
        assert (tmp_path / name).stat().st_size > 100
