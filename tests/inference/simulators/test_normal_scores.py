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


def test_numbers_of_few_values_are_standardised():
    """A coin, a number that never moves, counts: their ranks would jump."""
    rng = np.random.default_rng(1)
    rows = np.stack([rng.random(5_000) < 0.7, np.ones(5_000), rng.poisson(2.0, 5_000)], 1)
    x = jnp.array([[0.0, 1.0, 0.0], [1.0, 2.0, 40.0]])
    scale = np.array([rows[:, 0].std(), 1.0, rows[:, 2].std()])
    exact = np.arcsinh((np.asarray(x) - rows.mean(0)) / scale)
    np.testing.assert_allclose(NormalScores.of(rows)(x), exact, rtol=1e-5, atol=1e-6)


def test_values_with_many_rows_have_the_mean_of_their_ranks_and_numbers_beyond_all_rows_go_on():
    """A number that is cut off at 0 in 30% of the rows."""
    scores = NormalScores.of(np.maximum(Z + 0.524, 0.0))
    found = np.asarray(scores(jnp.array([[0.0], [0.524], [20.0], [40.0]])))[:, 0]
    knots = np.linspace(-3.0, 3.0, 31)
    assert found[0] == pytest.approx(knots[knots < -0.524].mean(), abs=0.1)
    assert found[1] == pytest.approx(0.0, abs=0.05)
    assert (np.diff(found) > 0.5).all() and np.isfinite(found).all()


def test_of_no_numbers_there_are_none():
    assert NormalScores.of(np.zeros((10, 0)))(jnp.zeros((3, 0))).shape == (3, 0)
