"""Multiple imputation of tables: the chain's parts against closed forms, its posterior against an exact one, coverage."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from lapilli.models.imputation import TableImputer, pool
from lapilli.models.imputation.tables import Columns, TableParameters
from lapilli.models.imputation.tables._categories import INTERCEPT_SCALE, SCALE, draw_weights
from lapilli.models.imputation.tables._numbers import draw_parameters, gains, given_seen, root


def standard_errors(values, truth):
    """Of means over the leading axis, their distances from the truth in standard errors."""
    values = np.asarray(values, float)
    return np.abs((values.mean(0) - truth) / (values.std(0) / np.sqrt(len(values))))


@pytest.fixture(scope="module")
def complete_table():
    """Two groups, three numbers, and 6,000 draws of the parameters."""
    rng = np.random.default_rng(0)
    design = np.stack([np.ones(14), np.arange(14) % 2], 1)
    x = design @ rng.normal(size=(2, 3)) + rng.normal(size=(14, 3)) @ rng.normal(size=(3, 3))
    R = root(jnp.asarray(design, jnp.float32), jnp.asarray(x, jnp.float32))
    draw = jax.jit(jax.vmap(lambda key: draw_parameters(key, R, 14, 2)))
    return design, x, draw(jax.random.split(jax.random.key(0), 6000))


def least_squares(design, y):
    found = np.linalg.lstsq(design, y)[0]
    return found, ((y - design @ found) ** 2).sum()


@pytest.mark.parametrize("column", range(3))
def test_parameters_of_a_complete_table_have_the_law_of_least_squares(complete_table, column):
    """Each column on the group and the columns before.

    Sum of squares / variance has mean n - p, and variance 2 (n - p); the
    coefficients are centred at least squares with the covariance of Student's t. A mean of n - q, as under Jeffreys' prior, is 20
    standard errors away at the last column.
    """
    design, x, (B, L) = complete_table
    B, L = np.asarray(B, float), np.asarray(L, float)
    wide = np.concatenate([design, x[:, :column]], 1)
    found, squares = least_squares(wide, x[:, column])
    df = 14 - wide.shape[1]
    chi = squares / L[:, column, column] ** 2
    assert standard_errors(chi, df) < 4.5 and standard_errors((chi - df) ** 2, 2 * df) < 4.5
    if column == 2:
        assert standard_errors(chi, 12) > 15
    # x_j = D b_j + ... : coefficients on earlier columns are L_j,<j L_<j,<j^-1, those on D follow.
    before = L[:, column, :column, None].mT
    slopes = (
        np.linalg.solve(L[:, :column, :column].mT, before.mT)[..., 0] if column else L[:, 0, :0]
    )
    on_design = B[:, :, column] - np.einsum("sqk,sk->sq", B[:, :, :column], slopes)
    coefficients = np.concatenate([on_design, slopes], 1)
    assert (standard_errors(coefficients, found) < 4.5).all()
    covariance = np.linalg.inv(wide.T @ wide) * squares / (df - 2)
    centred = (coefficients - found) ** 2
    assert (standard_errors(centred, np.diag(covariance)) < 4.5).all()


def test_missing_cells_have_their_conditional_mean_and_covariance_also_where_columns_nearly_repeat():
    """The last column is the sum of the first two to a thousandth: single precision leaves three digits."""
    rng = np.random.default_rng(1)
    mixed = rng.normal(size=(3, 3))
    tril = np.linalg.cholesky(mixed @ mixed.T + np.eye(3))
    tril = np.block([[tril, np.zeros((3, 1))], [tril[:1] + tril[1:2], np.full((1, 1), 1e-3)]])
    covariance = tril @ tril.T
    patterns = (np.arange(16)[:, None] >> np.arange(4)) % 2 == 1
    K = np.asarray(gains(jnp.asarray(tril, jnp.float32), jnp.asarray(patterns)), float)
    for seen, gain in zip(patterns, K, strict=True):
        o, m = np.flatnonzero(seen), np.flatnonzero(~seen)
        # In units of what the other columns leave open, which is what a draw of the cell would move by.
        exact = covariance[np.ix_(m, o)] @ np.linalg.pinv(tril[o] @ tril[o].T, hermitian=True)
        rest = np.linalg.cholesky(
            covariance[np.ix_(m, m)] - exact @ covariance[np.ix_(o, m)] + 1e-12 * np.eye(len(m))
        )
        shift = (gain[np.ix_(m, o)] - exact) @ tril[o] @ rng.normal(size=(4, 5))
        assert np.abs(np.linalg.solve(rest, shift) if len(m) else shift).max(initial=0) < 0.05, seen
    x = rng.normal(size=(16, 4)).astype(np.float32)
    found = given_seen(jnp.zeros((16, 4)), jnp.asarray(x), jnp.asarray(patterns), jnp.asarray(K))
    np.testing.assert_array_equal(np.asarray(found)[patterns], x[patterns])


def test_weights_of_levels_have_their_posterior():
    """Two levels, an intercept and a slope, ten rows of which two are not seen, against a grid.

    What is compared are mean and mean square of the difference of the levels' weights.
    """
    rng = np.random.default_rng(2)
    design = np.stack([np.ones(10), rng.normal(size=10)], 1)
    levels, seen = (design[:, 1] + rng.normal(size=10) > 0).astype(int), np.arange(10) < 8
    grid = np.stack(np.meshgrid(np.linspace(-12, 12, 301), np.linspace(-12, 18, 301)), -1)
    # The difference of two weights has twice the prior variance of one.
    scales = np.sqrt(2) * np.array([INTERCEPT_SCALE, SCALE])
    log_p = -0.5 * ((grid / scales) ** 2).sum(-1)
    odds = grid @ design[seen].T
    log_p = log_p + (levels[seen] * odds - np.logaddexp(0, odds)).sum(-1)
    p = np.exp(log_p - log_p.max())[..., None] / np.exp(log_p - log_p.max()).sum()
    exact = np.concatenate([(p * grid).sum((0, 1)), (p * grid**2).sum((0, 1))])
    args = (
        jnp.asarray(design, jnp.float32),
        jnp.asarray(levels),
        jnp.asarray(seen),
        jnp.ones(2, bool),
    )

    @jax.jit
    @jax.vmap
    def chain(key):
        def step(weights, key):
            weights = draw_weights(key, weights, *args)
            return weights, weights[1] - weights[0]

        return jax.lax.scan(step, jnp.zeros((2, 2)), jax.random.split(key, 500))[1][100:]

    found = np.asarray(chain(jax.random.split(jax.random.key(0), 200)), float)
    assert 0.3 < (np.diff(found[..., 0], axis=1) != 0).mean() < 1.0
    means = np.concatenate([found.mean(1), (found**2).mean(1)], 1)
    assert (standard_errors(means, exact) < 4.5).all(), (means.mean(0), exact)


@pytest.fixture(scope="module")
def monotone():
    """A group and a number for all of 60 rows, another number for 35 of them."""
    rng = np.random.default_rng(3)
    group, x = rng.integers(0, 2, 60), rng.normal(5, 2, 60)
    y = 1.0 + 0.8 * x - group + rng.normal(size=60)
    y[rng.permutation(60)[:25]] = np.nan
    table = pd.DataFrame({"y": y, "x": x, "group": np.where(group, "b", "a")})
    return table, TableImputer(num_draws=800, random_state=0).fit(table)


@pytest.mark.slow(reason="a long chain of tables")
def test_the_chain_has_the_exact_posterior_where_holes_are_monotone(monotone):
    """Rows without y say nothing of y given the rest, so that its regression has the law of least squares over the others."""
    table, imputer = monotone
    rows = table[table.y.notna()]
    columns, params = imputer._columns, imputer._params
    assert [columns.names[j] for j in columns.numbers] == ["x", "y"]
    design = np.stack(
        [np.ones(35), rows.group == "b", (rows.x - columns.mean[0]) / columns.scale[0]], 1
    )
    found, squares = least_squares(design, (rows.y - columns.mean[1]) / columns.scale[1])
    L, B = np.asarray(params.tril, float), np.asarray(params.coefficients, float)
    slope = L[:, 1, 0] / L[:, 0, 0]
    draws = np.stack([*(B[:, :, 1] - slope[:, None] * B[:, :, 0]).T, slope], 1)
    # Draws are nearly independent: at most half again as much error as if they were.
    assert (standard_errors(draws, found) < 4.5 * 1.5).all()
    covariance = np.linalg.inv(design.T @ design) * squares / 30
    assert (standard_errors((draws - found) ** 2, np.diag(covariance)) < 4.5 * 1.5).all()
    assert standard_errors(squares / L[:, 1, 1] ** 2, 32) < 4.5 * 1.5


@pytest.mark.slow(reason="a chain of tables")
def test_pooled_slopes_are_those_of_maximum_likelihood_with_an_honest_width(monotone):
    table, imputer = monotone
    tables = imputer.sample(table, 200)
    design = lambda t: np.stack([np.ones(len(t)), t.x, t.group == "b"], 1)
    fits = [least_squares(design(t), t.y) for t in tables]
    inverse = np.linalg.inv(design(table).T @ design(table))
    pooled = pool([b for b, _ in fits], [np.diag(inverse) * s / 57 for _, s in fits], df=57)
    rows = table[table.y.notna()]
    own = np.linalg.inv(design(rows).T @ design(rows))
    found, squares = least_squares(design(rows), rows.y)
    errors = np.sqrt(np.diag(own) * squares / 32)
    assert (np.abs(pooled.estimate - found) < 0.35 * errors).all()
    assert (np.abs(pooled.standard_error / errors - 1) < 0.25).all()
    # One table as if it had been observed: standard errors that do not know of the holes.
    single = least_squares(design(table), imputer.transform(table).y)[1]
    assert (np.sqrt(np.diag(inverse) * single / 57) < 0.75 * errors).all()


LEVELS = ["low", "mid", "high", "none"]


@functools.cache
def mixed():
    """Columns of all kinds, and a table of them without holes."""
    rng = np.random.default_rng(4)
    n = 90
    x = rng.normal(size=n)
    full = pd.DataFrame({
        "x": 3 + x,
        "count": pd.array(rng.poisson(9, n), "Int64"),
        "text": np.where(x + rng.logistic(size=n) > 0, "yes", "no"),
        "level": pd.Categorical.from_codes(rng.integers(0, 3, n), LEVELS, ordered=True),
        "truth": pd.array(rng.random(n) < 0.4, "boolean"),
        "two": rng.integers(1, 3, n).astype(np.float32),
        "same": 7,
        "whole": rng.integers(0, 9, n),
    })  # fmt: skip
    holes = rng.random(full.shape) < 0.15
    holes[:, 6:] = False
    return full.mask(holes).astype({"same": int, "whole": int}), full, holes


@pytest.fixture(scope="module")
def of_all_kinds():
    return TableImputer(num_draws=8, random_state=0).fit(mixed()[0])


@pytest.mark.slow(reason="a chain of tables to compile")
def test_frames_come_back_with_their_kinds(of_all_kinds):
    table, full, holes = mixed()
    for found in (of_all_kinds.transform(table), *of_all_kinds.sample(table, 2)):
        assert not found.isna().any(axis=None) and list(found.columns) == list(full.columns)
        kinds = found.dtypes
        assert kinds["count"] == "Float64" and kinds["two"] == np.float32
        same = ["x", "text", "level", "truth", "same", "whole"]
        assert (kinds[same] == table.dtypes[same]).all()
        for j, name in enumerate(full):
            seen = ~holes[:, j]
            assert (found[name][seen] == full[name][seen]).all(), name
        assert set(found["two"]) == {1.0, 2.0} and set(found["level"]) == {"low", "mid", "high"}
        assert found["level"].cat.ordered and list(found["level"].cat.categories) == LEVELS
        assert found.index.equals(table.index)
    assert of_all_kinds.levels_["level"] == ("low", "mid", "high")
    assert set(of_all_kinds.levels_) == {"text", "level", "truth", "two"}
    assert of_all_kinds.r_hat_ < 1.05 and of_all_kinds.ess_ > 400


def test_what_is_found_for_a_row_depends_on_the_row_alone(of_all_kinds):
    table = mixed()[0]
    rows = np.array([40, 3, 17, 89, 3])
    whole, some = of_all_kinds.transform(table), of_all_kinds.transform(table.iloc[rows])
    pd.testing.assert_frame_equal(some, whole.iloc[rows], rtol=1e-4, check_dtype=False)


def test_samples_differ_where_holes_are_and_repeat_with_their_seed(of_all_kinds):
    table, _, holes = mixed()
    first, second = of_all_kinds.sample(table, 2)
    assert (first.x != second.x).to_numpy()[holes[:, 0]].all()
    again = of_all_kinds.sample(table, 2)
    pd.testing.assert_frame_equal(again[1], second)
    other = of_all_kinds.sample(table, 1, random_state=1)[0]
    assert (first.x != other.x).to_numpy()[holes[:, 0]].all()


@pytest.mark.slow(reason="a chain of tables")
def test_single_completions_are_means_of_samples():
    """Of a table of numbers: exactly the conditional mean under each draw of the parameters."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(90, 1)) + rng.normal(size=(90, 3))
    x[rng.random(x.shape) < 0.3] = np.nan
    imputer = TableImputer(num_draws=100, random_state=0).fit(x)
    several = np.concatenate([imputer.sample(x, 100, random_state=seed) for seed in range(4)])
    mean, holes = imputer.transform(x), np.isnan(x)
    z = standard_errors(several[:, holes], mean[holes])
    assert z.max() < 4.5 and np.array_equal(mean[~holes], x[~holes])


@pytest.mark.parametrize(
    "within, between, total, df, fmi",
    [
        (0.954041, 0.056930, 1.022356, 25.549, 0.068898),
        (0.064496, 0.000811, 0.065469, 27.721, 0.014968),
        (3.269089, 0.922032, 4.375528, 15.753, 0.275664),
    ],
    ids=["Oxygen", "RunTime", "RunPulse"],
)
def test_pooling_agrees_with_published_numbers(within, between, total, df, fmi):
    """Means of three columns of a table of 31 rows, five imputations: SAS/STAT user's guide, PROC MI, getting started."""
    estimates = 10 + np.sqrt(between / 2.5) * np.array([-2.0, -1, 0, 1, 2])
    found = pool(estimates, np.full(5, within), df=30)
    assert found.between == pytest.approx(between)
    assert found.variance == pytest.approx(total, abs=2e-6)
    assert found.df == pytest.approx(df, abs=2e-3 * df) and found.fmi == pytest.approx(
        fmi, abs=1e-4
    )


def test_pooling_of_what_has_no_holes_is_the_analysis_itself():
    found = pool(np.ones((3, 2)), np.full((3, 2), 4.0), df=10)
    np.testing.assert_allclose(found.fmi, 0)
    np.testing.assert_allclose(found.df, 11 / 13 * 10)
    np.testing.assert_allclose(pool(np.ones(3), np.full(3, 4.0)).interval()[1], 1 + 2 * 1.959964)
    np.testing.assert_allclose(pool(np.ones(3), np.full(3, 4.0)).p_value(), 0.617075, rtol=1e-5)


@pytest.mark.parametrize(
    "args, text",
    [
        (([1.0], [1.0]), "of two tables or more"),
        (([1.0, 2.0], [1.0]), r"shape \(2,\) and variances \(1,\)"),
        (([1.0, np.nan], [1.0, 1.0]), r"analyses that failed: tables \[1\]"),
        (([1.0, 2.0], [0.0, 1.0]), r"tables \[0\]"),
    ],
)
def test_what_cannot_be_pooled_is_refused(args, text):
    with pytest.raises(ValueError, match=text):
        pool(*args)


def test_impossible_degrees_and_levels_of_pooling_are_refused():
    with pytest.raises(ValueError, match="df must be positive or None, got 0"):
        pool([1.0, 2.0], [1.0, 1.0], df=0)
    with pytest.raises(ValueError, match=r"level must lie in \(0, 1\), got 95"):
        pool([1.0, 2.0], [1.0, 1.0]).interval(95)


def test_infinitely_many_degrees_are_those_of_none():
    """They were NaN."""
    args = ([1.0, 2.0, 1.5], [0.1, 0.2, 0.1])
    assert pool(*args, df=np.inf) == pool(*args)
    assert pool(*args, df=1e12).df == pytest.approx(float(pool(*args).df), rel=1e-6)


def test_skewness_of_few_cells_is_not_told():
    """Ten cells may have a skewness of 2.7 by chance; the noise was that of all rows."""
    imputer = TableImputer()
    imputer._columns = Columns(("a",), (None,), (0,), {}, np.zeros(1), np.ones(1))
    imputer._params = TableParameters(
        np.zeros((1, 1, 1)), np.ones((1, 1, 1)), np.zeros((1, 0, 1, 2))
    )
    x, c = np.zeros((1000, 1), np.float32), np.zeros((1000, 0), int)
    x[0] = 1.0
    imputer._look_at_residuals(x, c, np.arange(1000)[:, None] >= 10)
    assert imputer.skewness_["a"] == pytest.approx(8 / 3, rel=1e-5)
    x[:500] = x[:10].repeat(50, 0)
    with pytest.warns(UserWarning, match="residuals are far from normal, with skewness {'a': 2.7}"):
        imputer._look_at_residuals(x, c, np.arange(1000)[:, None] >= 500)


def numbers(**columns):
    """Thirty rows of three columns, some of them replaced."""
    rng = np.random.default_rng(6)
    return pd.DataFrame({**dict(zip("abc", rng.normal(size=(3, 30)), strict=True)), **columns})


HALF = np.where(np.arange(30) < 15, np.nan, np.arange(30.0))


@pytest.mark.parametrize(
    "table, text",
    [
        (numbers(b=np.nan), "column 'b' has no observed cell"),
        (numbers(b=np.where(np.arange(30), 2.0, np.nan)), "column 'b' is the same in all observed cells"),
        (numbers(b=[np.inf, *range(29)]), "column 'b' holds 1 infinite values"),
        (numbers(b=[*"?-", *range(28)]), "column 'b' holds numbers and '-', '\\?': make texts"),
        (numbers(b=list(map(str, range(30)))), "column 'b' has 30 levels in 30 observed cells"),
        (numbers(b=pd.date_range("2020-01-01", periods=30)), "column 'b' holds datetime64.*turn it into numbers"),
        (numbers(b=HALF, c=HALF[::-1]), "columns '[bc]' and '[bc]' are both observed in 0 rows"),
        (numbers(b=np.where(np.arange(30) < 4, np.arange(30.0), np.nan)), "column 'b' is observed in 4 rows, and 6 are needed"),
        (numbers().iloc[:4], "column 'a' is observed in 4 rows, and 6 are needed"),
        (numbers().iloc[:1], "n_samples = 1"),
        (numbers().iloc[:0], r"0 sample\(s\)"),
    ],
    ids=["empty", "constant", "infinite", "dirty", "identifiers", "dates", "never together", "few", "wide", "row", "rows"],
)  # fmt: skip
def test_tables_that_tell_too_little_are_refused(table, text):
    with pytest.raises(ValueError, match=text):
        TableImputer().fit(table)


def test_arrays_with_texts_are_refused():
    with pytest.raises(ValueError, match="array with texts, e.g. 'yes'. Give a pandas DataFrame"):
        TableImputer().fit(np.array([["yes", 1.0], ["no", 2.0]], object))


def test_many_levels_are_refused():
    texts = np.repeat([f"level {i}" for i in range(51)], 4)
    with pytest.raises(ValueError, match="column 't' has 51 levels, more than 50: join rare ones"):
        TableImputer().fit(pd.DataFrame({"t": texts, "x": np.arange(204.0)}))


@pytest.mark.parametrize(
    "options, text",
    [
        ({"num_draws": 0}, "num_draws must be an integer >= 1, got 0"),
        ({"num_chains": 1}, "num_chains must be an integer >= 2, got 1"),
        ({"categories": ["d"]}, r"categories names \['d'\], which are none of its columns"),
    ],
)
def test_impossible_parameters_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        TableImputer(**options).fit(numbers())


def test_what_does_not_fit_is_refused(of_all_kinds):
    table = mixed()[0]
    with pytest.raises(
        ValueError, match="column 'text' has the level 'perhaps', which fit has not seen"
    ):
        of_all_kinds.transform(table.replace({"text": {"yes": "perhaps"}}))
    with pytest.raises(
        ValueError, match="column 'same' has 90 holes, but was 7.0 in all rows of fit"
    ):
        of_all_kinds.transform(table.assign(same=np.nan))
    with pytest.raises(ValueError, match="column 'x' held numbers in fit and does not now"):
        of_all_kinds.transform(table.assign(x="three"))
    with pytest.raises(ValueError, match="feature names should match"):
        of_all_kinds.transform(table[table.columns[::-1]])
    with pytest.raises(ValueError, match="num_samples=9, but 8 draws of the parameters were kept"):
        of_all_kinds.sample(table, 9)
    with pytest.raises(ValueError, match="random_state must be an integer, got None"):
        of_all_kinds.sample(table, 1, random_state=None)


def test_chains_that_have_not_settled_are_told():
    """Two columns that are nearly one, each seen where the other is mostly not: sweeps hardly move their relation."""
    rng = np.random.default_rng(7)
    a = rng.normal(size=90)
    x = np.stack([a, a + 0.02 * rng.normal(size=90), rng.normal(size=90)], 1)
    x[4:45, 0], x[49:, 1] = np.nan, np.nan
    with pytest.warns(UserWarning, match="chains have not settled: R-hat .* worst at '[012]'"):
        TableImputer(num_draws=8, max_sweeps=210, random_state=0).fit(x)


def test_skew_residuals_are_told():
    rng = np.random.default_rng(8)
    x = rng.normal(size=(90, 3))
    x[:, 1] = np.exp(2 * x[:, 1])
    whole = TableImputer(num_draws=8, random_state=0).fit(x)
    assert whole.skewness_[1] > 2 and np.isnan(whole.r_hat_)
    x[:20, 1] = np.nan
    with pytest.warns(UserWarning, match="far from normal, with skewness {1: .*take logarithms"):
        TableImputer(num_draws=8, random_state=0).fit(x)


@pytest.mark.slow  # two hundred fits
@pytest.mark.parametrize("mechanism", ["completely at random", "at random"])
def test_intervals_cover(mechanism):
    """Of slopes of a number on a number and a group: 95% intervals over 200 tables hold between 92% and 98% of the time."""
    covered = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        group, x = rng.random(100) < 0.4, rng.normal(size=100)
        x = x + 0.7 * group
        y = x - group + rng.normal(size=100)
        loss = 0.3 if mechanism == "completely at random" else 1 / (1 + np.exp(1 - y))
        table = pd.DataFrame({"x": x, "group": np.where(group, "b", "a"), "y": y})
        table["x"] = table.x.mask(rng.random(100) < loss)
        table["group"] = table.group.mask(rng.random(100) < loss)
        fits = []
        for t in TableImputer(random_state=seed).fit(table).sample(table, 20):
            design = np.stack([np.ones(100), t.x, t.group == "b"], 1)
            found, squares = least_squares(design, t.y)
            fits.append((found, np.diag(np.linalg.inv(design.T @ design)) * squares / 97))
        low, high = pool(*zip(*fits, strict=True), df=97).interval()
        covered.append((low[1:] < [1, -1]) & ([1, -1] < high[1:]))
    share = np.mean(covered, 0)
    assert (0.92 <= share).all() and (share <= 0.98).all(), share
