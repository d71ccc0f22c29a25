"""The choice between the joint model of a table and a deep one: its parts against closed forms, what is taken."""

import functools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal

from lapilli.models.imputation import TableImputer
from lapilli.models.imputation.estimators import _model_choice
from lapilli.models.imputation.tables import (
    CURVED,
    TableParameters,
    hide,
    joint_scores,
    kept,
    look_for_curves,
)


def with_holes(x, share=0.2, seed=1):
    return np.where(np.random.default_rng(seed).random(x.shape) < share, np.nan, x)


def straight(rng, rows):
    """Three normal columns that depend on each other."""
    x = rng.normal(size=(rows, 3))
    x[:, 1] += x[:, 0]
    x[:, 2] += 0.5 * x[:, 0] - x[:, 1]
    return x


def curved(rng, rows):
    """The second column is the square of the first, the third their sum, each with a little noise."""
    x = rng.normal(size=(rows, 3))
    x[:, 1] = x[:, 0] ** 2 + 0.3 * x[:, 1]
    x[:, 2] = x[:, 0] + x[:, 1] + 0.5 * x[:, 2]
    return x


@pytest.mark.parametrize("seed", range(20))
def test_scores_of_hidden_cells_are_conditional_densities(seed):
    """Of random laws and tables: log p(row) - log p(row without the cell), averaged over two draws of the parameters."""
    rng = np.random.default_rng(seed)
    d, levels = int(rng.integers(2, 6)), ((), (3,), (2, 4))[seed % 3]
    x, q = with_holes(rng.normal(size=(30, d)), seed=seed), 1 + sum(levels) - len(levels)
    c = np.stack([rng.integers(0, k, 30) for k in levels], 1) if levels else np.zeros((30, 0), int)
    B, L = rng.normal(size=(2, q, d)), np.tril(rng.normal(size=(2, d, d))) + 2 * np.eye(d)
    hidden = hide(rng, x)
    assert len(hidden.rows) == len(np.unique(hidden.rows))
    drawn = np.stack([c[hidden.rows]] * 2)
    found = joint_scores(TableParameters(B, L, None), drawn, x, hidden, levels)
    for row, column, score in zip(hidden.rows, hidden.columns, found, strict=True):
        seen = ~np.isnan(x[row])
        rest = seen & (np.arange(d) != column)
        assert seen[column] and rest.any() and np.isnan(x[:, column]).any()
        design = [1.0, *(float(c[row, k] == n) for k, m in enumerate(levels) for n in range(1, m))]
        densities = []
        for b, tril in zip(B, L, strict=True):
            mean, covariance = np.array(design) @ b, tril @ tril.T
            logs = [
                multivariate_normal(mean[o], covariance[np.ix_(o, o)]).logpdf(x[row, o])
                for o in (seen, rest)
            ]
            densities.append(np.exp(logs[0] - logs[1]))
        assert score == pytest.approx(np.log(np.mean(densities)), abs=1e-8)


@pytest.mark.parametrize("make, is_curved", [(straight, False), (curved, True)])
def test_forests_find_curves_and_nothing_in_straight_lines(make, is_curved):
    for seed in range(3):
        x = make(np.random.default_rng(seed), 400)
        seen = ~np.isnan(with_holes(x, seed=seed))
        left = np.empty_like(x)
        for j in range(3):
            design = np.column_stack([np.ones(400), np.delete(x, j, 1)])
            left[:, j] = x[:, j] - design @ np.linalg.lstsq(design, x[:, j])[0]
        found = look_for_curves(x, left, seen, seed)
        assert (found.share.max() > CURVED) == is_curved
        assert np.array_equal(np.isnan(found.predicted), ~seen)
        if is_curved:  # noise has .4 of what straight lines leave open of the square
            error = (found.predicted - x)[seen[:, 1], 1]
            assert error.var() < 0.7 * left[seen[:, 1], 1].var()


def test_the_share_of_relations_that_draws_keep():
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=4000)
    truth = predicted + rng.normal(size=4000)
    for share in (1.0, 0.7, 0.0):
        draws = share * predicted + rng.normal(size=(20, 4000))
        assert kept(draws, truth, np.where(rng.random(4000) < 0.5, np.nan, predicted)) == (
            pytest.approx(share, abs=0.1)
        )


def test_a_table_of_straight_lines_keeps_the_joint_model_and_trains_no_other(monkeypatch):
    monkeypatch.setattr(_model_choice, "DeepTable", None)
    x = with_holes(straight(np.random.default_rng(0), 150))
    imputer = TableImputer(num_draws=8, random_state=0).fit(x)
    assert imputer.model_ == "joint" and imputer.gain_ is None and imputer.kept_ is None
    assert set(imputer.curved_) == {0, 1, 2} and max(imputer.curved_.values()) < CURVED


TINY = {
    "encoder": "linear", "decoder": "linear", "num_hidden": 2, "num_latents": 2, "num_particles": 2, "num_draws": 20,
    "num_steps": 40, "check_every": 20,
}  # fmt: skip


@pytest.mark.slow  # networks to compile
def test_the_deep_model_fills_numbers_and_regressions_fill_categories(monkeypatch):
    """On demand, with networks that have learned nothing: the forms of what comes back, and the warning."""
    monkeypatch.setattr(
        _model_choice, "DeepTable", functools.partial(_model_choice.DeepTable, **TINY)
    )
    rng = np.random.default_rng(0)
    x = straight(rng, 120)
    full = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": np.where(x[:, 2] > 0, "yes", "no")})
    table = full.mask(rng.random(full.shape) < 0.2)
    with pytest.warns(UserWarning, match="taken for numbers. It is one law"):
        imputer = TableImputer(model="deep", num_draws=8, random_state=0).fit(table)
    assert imputer.model_ == "deep" and len(imputer.gain_) == 2 and np.isfinite(imputer.gain_).all()
    tables = imputer.sample(table, 3)
    for found in (imputer.transform(table), *tables):
        assert not found.isna().any(axis=None) and set(found.c) == {"yes", "no"}
        pd.testing.assert_frame_equal(found[table.notna()], table)
    holes = table.a.isna()
    assert (tables[0].a != tables[1].a)[
        holes
    ].mean() > 0.8  # of twenty draws a row, some are taken twice
    pd.testing.assert_frame_equal(imputer.sample(table, 3)[2], tables[2])


def test_a_deep_model_that_cannot_be_judged_is_refused():
    x = straight(np.random.default_rng(0), 30)
    with pytest.raises(ValueError, match=r"model='deep' is judged by hidden cells.*100 rows"):
        TableImputer(model="deep", num_draws=8).fit(with_holes(x))
    with pytest.raises(ValueError, match="model='normal' is none of 'auto', 'joint', 'deep'"):
        TableImputer(model="normal").fit(x)


@pytest.mark.slow  # trains networks of full size
def test_a_table_with_squares_takes_the_deep_model_and_says_what_it_keeps():
    """Cells are likelier under it by far, and its draws have a part of the square, of which straight lines have less."""
    full = curved(np.random.default_rng(0), 600)
    x = with_holes(full)
    with pytest.warns(UserWarning, match="under the deep model, which is taken for numbers"):
        imputer = TableImputer(random_state=0).fit(x)
    assert imputer.model_ == "deep" and imputer.gain_[0] > 0.2 and 0.3 < imputer.kept_ < 1.1
    straight_lines = TableImputer(random_state=0, model="joint").fit(x)
    slopes = []
    for found in (imputer, straight_lines):
        holes = np.isnan(x[:, 1])
        draws = found.sample(x, 10)[:, holes]
        slopes.append(np.mean([np.polyfit(t[:, 0], t[:, 1], 2)[0] for t in draws]))
    assert slopes[1] < slopes[0] < 1.05  # the square's is 1


@pytest.mark.slow  # trains networks of full size
def test_cells_of_straight_tables_are_not_likelier_under_the_deep_model(monkeypatch):
    monkeypatch.setattr(_model_choice, "CURVED", -1.0)
    for seed in range(3):
        x = with_holes(straight(np.random.default_rng(seed), 400))
        imputer = TableImputer(random_state=seed).fit(x)
        assert imputer.model_ == "joint" and imputer.gain_[0] < 2 * imputer.gain_[1]


class Means:
    """A deep model that fills numbers with zeros."""

    def draws(self, x, c, number, seed):
        return np.repeat(np.nan_to_num(x)[None], number, 0)


@pytest.mark.slow(reason="trains the deep model")
def test_levels_are_drawn_anew_in_each_table_of_the_deep_model():
    """Two levels that nothing tells: between tables a cell changes as often as a coin does."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"x": rng.normal(size=300), "kind": rng.choice(["a", "b"], 300)})
    table.loc[rng.random(300) < 0.3, "x"] = np.nan
    table.loc[rng.random(300) < 0.3, "kind"] = None
    imputer = TableImputer(
        categories=["kind"], model="joint", num_draws=40, num_chains=2, random_state=0
    )
    imputer.fit(table)
    imputer._deep = Means()
    drawn = np.stack([t["kind"].to_numpy() == "a" for t in imputer.sample(table, 40)])
    open_cells = drawn[:, table["kind"].isna()]
    share = open_cells.mean()
    assert 0.3 < share < 0.7
    np.testing.assert_allclose(open_cells.var(0).mean(), share * (1 - share), rtol=0.1)
