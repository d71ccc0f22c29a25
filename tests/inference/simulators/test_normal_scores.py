"""Scores of data by their ranks: normal whatever the law, one of ties, growing everywhere."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

from lapilli.inference.simulators._normal_scores import NormalScores

Z = np.random.default_rng(0).normal(size=(20_000, 1))
LAWS = {"normal": Z, "lognormal": np.exp(4 * Z), "two scales": np.where(Z > 0, 1e3 * Z, Z)}


@pytest.mark.parametrize("name", LAWS)
def test_scores_of_fresh_rows_are_normal(name):
    """Half of the rows say what the scores are, the others are scored."""
    rows = LAWS[name]
    found = np.asarray(NormalScores.of(rows[:10_000])(jnp.asarray(rows[10_000:], jnp.float32)))
    # Both halves are draws: 1.95 is exceeded by one pair of a thousand; lines between knots add up to some .003.
    assert found.std() == pytest.approx(1.0, abs=0.03)
    assert kstest(found[:, 0], "norm").statistic < 1.95 * (2 / 10_000) ** 0.5 + 0.003
    order = np.argsort(rows[10_000:, 0])
    assert (np.diff(found[order, 0]) >= 0).all()


def test_ties_have_the_mean_of_their_ranks_and_numbers_beyond_all_rows_go_on():
    """Of a coin with 1 in 70% of the rows, of a number that never moves, of counts."""
    rng = np.random.default_rng(1)
    rows = np.stack([rng.random(5_000) < 0.7, np.ones(5_000), rng.poisson(2.0, 5_000)], 1)
    scores = NormalScores.of(rows)
    zero, one = np.asarray(scores(jnp.array([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]])))
    assert zero[0] < -1 and one[0] > 0.9 and zero[1] == one[1] == pytest.approx(0.0, abs=1e-6)
    assert zero[2] < one[2] < 0.5
    far = np.asarray(scores(jnp.array([[2.0, 2.0, 40.0], [9.0, 9.0, 80.0]])))
    assert (np.diff(far, axis=0) > 0.5).all() and (far[0] > one).all() and np.isfinite(far).all()


def test_of_no_numbers_there_are_none():
    assert NormalScores.of(np.zeros((10, 0)))(jnp.zeros((3, 0))).shape == (3, 0)
