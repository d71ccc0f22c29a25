"""Series, masks and scores of cells, against sums by hand."""

import numpy as np
import pytest
from scipy.special import expit

from lapilli.models import imputation
from lapilli.models.imputation import MECHANISMS

RNG = np.random.default_rng(0)


# Series.


def test_missing_cells_become_zero_and_steps_beyond_the_end_are_missing():
    values = np.array([[[1.0], [np.nan], [3.0]], [[4.0], [5.0], [6.0]]])
    data = imputation.series(values, lengths=[3, 2], labels=[0, 1])
    np.testing.assert_array_equal(data.observed[..., 0], [[True, False, True], [True, True, False]])
    np.testing.assert_array_equal(data.values[..., 0], [[1, 0, 3], [4, 5, 0]])
    np.testing.assert_array_equal(data.valid, [[True] * 3, [True, True, False]])
    np.testing.assert_array_equal(data.rows([1]).labels, [1])
    hidden = data.hidden(np.zeros_like(data.observed))
    assert not hidden.observed.any() and not hidden.values.any()


def test_standard_units_use_observed_cells_only_and_can_be_undone():
    values = RNG.normal(3.0, 2.0, (50, 7, 2))
    values[RNG.random(values.shape) < 0.4] = np.nan
    values[..., 1] = np.where(np.isnan(values[..., 1]), np.nan, 5.0)  # a channel without spread
    data = imputation.series(values)
    units = imputation.standardise(data)
    np.testing.assert_allclose(units.mean, np.nanmean(values, (0, 1)), rtol=1e-5)
    np.testing.assert_allclose(units.scale, [np.nanstd(values[..., 0]), 1.0], rtol=1e-5)
    standard = units.apply(data)
    # float32 rounds the sum of mean and deviation: relative to the mean, 3, where the value itself is near 0.
    np.testing.assert_allclose(
        units.undo(standard.values)[data.observed], data.values[data.observed], rtol=1e-5, atol=1e-6
    )
    assert not standard.values[~data.observed].any()


@pytest.mark.parametrize("offset", [1e8, 1.7e9])
def test_standard_units_do_not_depend_on_the_offset(offset):
    values = np.round(RNG.normal(size=(50, 7, 1)), 3)
    values[RNG.random(values.shape) < 0.4] = np.nan
    data, moved = imputation.series(values), imputation.series(values + offset)
    units, own = imputation.standardise(data), imputation.standardise(moved)
    np.testing.assert_allclose(own.scale, units.scale, rtol=1e-6)
    np.testing.assert_allclose(own.apply(moved).values, units.apply(data).values, atol=2e-6)
    filled = own.undo(units.apply(data).values)[data.observed]
    np.testing.assert_allclose(filled, (values + offset)[data.observed], rtol=0, atol=1e-5)


def test_equal_cells_are_without_spread_however_they_are_rounded():
    np.testing.assert_array_equal(
        imputation.standardise(imputation.series(np.full((3, 7, 1), 0.1))).scale, 1.0
    )


def test_times_that_lose_their_steps_are_refused():
    stamps = 1.7e9 + 60.0 * np.arange(5)
    with pytest.raises(ValueError, match=r"'times' lies in 1.7e\+09 .* subtract one start"):
        imputation.series(np.zeros((1, 5, 1)), times=stamps)
    data = imputation.series(np.zeros((1, 5, 1)), times=stamps - stamps[0])
    np.testing.assert_array_equal(data.times[0], 60.0 * np.arange(5))


@pytest.mark.parametrize(
    "options, match",
    [
        ({"values": np.zeros((2, 3))}, r"'values' has shape \(2, 3\)"),
        ({"observed": np.ones((2, 3, 2))}, r"'observed' has shape"),
        ({"labels": [0, 1, 2]}, r"'labels' has shape \(3,\), not \(2,\)"),
        ({"labels": [0, -1]}, "'labels' must be integers from 0"),
        ({"lengths": [0, 3]}, "'lengths' lies in 0 to 3"),
        ({"lengths": [np.nan, 2]}, "'lengths' lies in nan"),
        ({"lengths": [1.5, 2]}, "or holds no integers"),
        ({"times": [0.0, 2.0, 1.0]}, "'times' does not ascend"),
        ({"values": np.full((2, 3, 1), np.inf)}, "infinite observed cell"),
    ],
)  # fmt: skip
def test_impossible_series_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        imputation.series(**{"values": np.zeros((2, 3, 1)), **options})


# Masks.


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_masks_hide_the_share_of_cells_that_was_asked_for(name, rate):
    """60,000 cells or more: within 0.01, over 4.5 standard errors."""
    values = RNG.normal(size=(400, 50, 3))
    seen = MECHANISMS[name](values, rate, np.random.default_rng(1))
    if name == "mar":
        assert seen[..., 0].all()
        seen = seen[..., 1:]
    assert abs((~seen).mean() - rate) < 0.01
    assert np.array_equal(
        MECHANISMS[name](values, rate, np.random.default_rng(1))[..., 1:], seen[..., -2:]
    )


def test_hidden_cells_follow_their_mechanism():
    values = RNG.normal(size=(400, 50, 2))
    seen = imputation.mnar(values, 0.5, np.random.default_rng(1))
    for low in (-1.0, 0.5):
        cells = (values > low) & (values < low + 0.2)
        assert abs((~seen)[cells].mean() - expit(2 * (low + 0.1))) < 0.04
    driven = imputation.mar(values, 0.5, np.random.default_rng(1))
    assert (~driven)[..., 1][values[..., 0] > 1].mean() > 0.8
    runs = imputation.blocks(np.zeros((20, 60, 1)), 0.5, np.random.default_rng(2))[..., 0]
    assert np.all((~runs).sum(1) == 30)
    assert np.abs(np.diff(runs.astype(int), axis=1)).sum(1).mean() < 12  # cells at random: 30


@pytest.mark.parametrize("name", MECHANISMS)
def test_impossible_rates_are_refused(name):
    values = RNG.normal(size=(3, 10, 2))
    for rate in (1.5, 1.0, -0.1, np.nan):
        with pytest.raises(ValueError, match=rf"{name}: rate must lie in \[0, 1\), got {rate}"):
            MECHANISMS[name](values, rate, np.random.default_rng(0))
    assert MECHANISMS[name](values, 0.0, np.random.default_rng(0)).all()


def test_one_channel_cannot_be_hidden_at_random_by_another():
    with pytest.raises(ValueError, match="mar: one channel is always seen"):
        imputation.mar(np.zeros((2, 3, 1)), 0.5, RNG)


# Scores.


def test_scores_of_cells_count_hidden_cells_only():
    truth, point = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.5, 2.0, 1.0, 99.0])
    hidden = np.array([True, True, True, False])
    found = imputation.cell_scores(truth, hidden, point, crps=point, low=point - 1, high=point + 1)
    assert found["mae"] == pytest.approx(2.5 / 3)
    assert found["rmse"] == pytest.approx(np.sqrt((0.25 + 4) / 3))
    assert found["crps"] == pytest.approx(1.5)
    assert found["coverage"] == pytest.approx(2 / 3) and found["width"] == pytest.approx(2.0)


def test_scores_are_refused_where_a_number_is_missing():
    """A NaN counted as a cell outside of its band, and half a band was left out of the scores."""
    ones, hidden = np.ones((2, 3)), np.ones((2, 3), bool)
    band = {"low": ones - 1, "high": ones + 1}
    assert imputation.cell_scores(ones, hidden, ones, **band)["coverage"] == 1
    lost = ones.copy()
    lost[0, 1] = np.nan
    for given in (
        {"truth": lost}, {"point": lost}, {"crps": lost}, {"low": lost}, {"high": lost},
    ):  # fmt: skip
        name = next(iter(given))
        inputs = {"truth": ones, "hidden": hidden, "point": ones, **band, **given}
        with pytest.raises(ValueError, match=f"cell_scores: {name} is NaN in 1 hidden cells"):
            imputation.cell_scores(**inputs)
        imputation.cell_scores(**inputs | {"hidden": ~np.isnan(lost)})
    for end, other in (("low", "high"), ("high", "low")):
        with pytest.raises(ValueError, match=f"a band has two ends, and {other} is missing"):
            imputation.cell_scores(ones, hidden, ones, **{end: ones})
    with pytest.raises(ValueError, match="shapes differ"):
        imputation.cell_scores(ones, hidden, ones, crps=ones[0])
    with pytest.raises(ValueError, match=r"none of the cells of shape \(2, 3\) is hidden"):
        imputation.cell_scores(ones, ~hidden, ones)


@pytest.mark.parametrize("name", ["mar", "mnar"])
def test_values_that_decide_what_is_hidden_are_complete(name):
    values = RNG.normal(size=(3, 4, 2))
    values[1, 2, 0] = np.nan
    with pytest.raises(ValueError, match=rf"{name}: 1 of \d+ values that decide what is hidden"):
        MECHANISMS[name](values, 0.3, np.random.default_rng(0))


def test_an_observer_has_seen_a_step():
    data = imputation.series(np.zeros((1, 3, 1)))
    assert data.until(1).valid.sum() == 1 and data.until(9).valid.all()
    with pytest.raises(ValueError, match="Series.until: num_steps must be an integer >= 1, got 0"):
        data.until(0)
