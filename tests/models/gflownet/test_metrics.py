"""Measures of draws, on cases small enough to do by hand."""

import numpy as np
import pytest

from lapilli.models import gflownet


def test_distances_between_laws():
    one, other = np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.5, 0.5])
    np.testing.assert_allclose(gflownet.total_variation(one, other), 0.5)
    np.testing.assert_allclose(gflownet.jensen_shannon(one, other), 0.5 * np.log(2))
    apart = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    np.testing.assert_allclose(gflownet.total_variation(*apart), 1.0)
    np.testing.assert_allclose(gflownet.jensen_shannon(*apart), np.log(2))
    assert gflownet.jensen_shannon(one, one) == 0
    assert gflownet.total_variation([0.5, 0.5], [0.0, 1.0]) == 0.5
    assert gflownet.jensen_shannon([0.5, 0.5], [0.5, 0.5]) == 0


LAW = np.array([0.5, 0.5, 0.0])


@pytest.mark.parametrize("distance", [gflownet.total_variation, gflownet.jensen_shannon])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (np.array([3, 4, 0]), "sums lie in 7 to 7. Divide counts"),
        (np.array([1.5, -0.5, 0.0]), "the least is -0.5"),
        (np.array([np.nan, 1.0, 0.0]), "the least is nan"),
        (np.array([0.5, 0.5]), r"of the same outcomes, got shapes .*\(2,\)"),
        (np.array([0.5]), r"of the same outcomes, got shapes .*\(1,\)"),
    ],
    ids=["counts", "negative", "nan", "fewer outcomes", "one outcome"],
)
def test_what_is_no_law_has_no_distance(distance, other, message):
    for pair in ((LAW, other), (other, LAW)):
        with pytest.raises(ValueError, match=f"{distance.__name__}: .*{message}"):
            distance(*pair)


def test_rank_correlation_sees_order_only():
    log_reward = np.array([0.0, 1.0, 2.0, 2.0, 5.0])
    np.testing.assert_allclose(gflownet.rank_correlation(log_reward**3, log_reward), 1.0)
    np.testing.assert_allclose(gflownet.rank_correlation(-log_reward, log_reward), -1.0)
    # Ranks 1, 2, 3 and 2, 1, 3: 1 - 6 (1 + 1) / (3 * 8).
    np.testing.assert_allclose(
        gflownet.rank_correlation(np.array([0.0, 1, 2]), np.array([1.0, 0, 2])), 0.5
    )


@pytest.mark.parametrize("constant", ["log_prob", "log_reward"])
def test_what_has_no_order_is_refused(constant):
    values = {"log_prob": np.arange(3.0), "log_reward": np.arange(3.0)} | {constant: np.ones(3)}
    with pytest.raises(ValueError, match=f"{constant} is .1.. for all 3 objects"):
        gflownet.rank_correlation(**values)


def test_the_best_are_distinct_and_remembered():
    states = np.array([[0, 1], [1, 1], [0, 1], [1, 0]])
    best = gflownet.best(states, np.log([2.0, 3.0, 2.0, 1.0]), k=2)
    np.testing.assert_array_equal(best.states, [[1, 1], [0, 1]])
    np.testing.assert_allclose(best.mean_reward, 2.5)
    best = gflownet.best(np.array([[0, 0], [1, 1]]), np.log([7.0, 3.0]), k=2, before=best)
    np.testing.assert_array_equal(best.states, [[0, 0], [1, 1]])
    np.testing.assert_allclose(np.exp(best.log_reward), [7.0, 3.0])
    few = gflownet.best({"a": states, "b": states[:, 0]}, np.zeros(4))
    assert few.states["a"].shape == (3, 2) and few.states["b"].shape == (3,)
