"""Data keep their values on the way in, or are refused by name."""

import datetime
import decimal
import re
import time
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest

from lapilli import inference, ppl
from lapilli.inference import evaluation
from lapilli.ppl._data import Masked, as_data, as_numbers
from lapilli.ppl._single import _over_rows

KEY = jax.random.key(0)
BIG = 3_000_000_000
DAYS = pd.date_range("2020", periods=4)


@ppl.model
def observed(x):
    mean = ppl.sample("mean", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("x", dist.Normal(mean, 1.0), obs=x)


@ppl.model
def grouped(g, y=None):
    with ppl.plate("groups", 3):
        effect = ppl.sample("effect", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", g.shape[0]):
        ppl.sample("y", dist.Normal(effect[g], 1.0), obs=y)


# The principle, over arrays of all types, sizes and offsets.

KINDS = "i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 f16 >i4 >f8 ?".split()


def anything(rng, kind):
    shape = [(12,), (7, 3), ()][rng.integers(3)]
    spread = 10.0 ** rng.uniform(-12, 40)
    offset = 10.0 ** rng.uniform(-12, 40) * rng.integers(-1, 2)
    with np.errstate(all="ignore"):
        x = np.asarray(offset + spread * rng.normal(size=shape))
        if np.dtype(kind).kind in "iu":
            ends = np.iinfo(kind)
            x = np.clip(x, float(ends.min), float(ends.max) * (1 - 1e-9))
        return x.astype(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_kept_or_refused(kind):
    rng = np.random.default_rng(KINDS.index(kind))
    outcomes = {True: 0, False: 0}
    for _ in range(60):
        x = anything(rng, kind)
        try:
            new = as_data(x, "Argument 'x'")
        except ValueError as err:
            assert str(err).startswith("Argument 'x'")
            outcomes[False] += 1
            continue
        outcomes[True] += 1
        with np.errstate(all="ignore"):
            wide = x.astype(np.longdouble)
            seen = np.asarray(jax.device_put(new)).astype(np.longdouble)
        assert seen.shape == x.shape
        finite = np.isfinite(wide)
        assert (np.isfinite(seen) == finite).all()
        if np.dtype(kind).kind in "iub":
            assert (seen == wide).all()
            continue
        error = np.abs(seen[finite] - wide[finite])
        assert (error <= 2.0**-24 * np.abs(wide[finite]) + 1e-37).all()
        if x.ndim and finite.all():
            spread = np.ptp(wide, axis=0)
            lost = np.abs(seen - wide).max(0) > 2e-3 * spread
            assert not (lost & (spread > 1e-8 * np.abs(wide).max(0)) & (spread > 1e-30)).any()
    # Types of at most 32 bits are never refused, and of the others some are.
    narrow = np.dtype(kind).itemsize <= 4
    assert outcomes[True] > 8 and (outcomes[False] == 0) == narrow, outcomes


@pytest.mark.parametrize("exponent", [-30, -6, 0, 6, 30])
def test_ordinary_data_pass_in_any_unit(exponent):
    rng = np.random.default_rng(exponent + 30)
    for offset in (0.0, 1.0, -300.0):
        for shape in ((50,), (50, 7), (2, 1000), (3,), (1, 1), ()):
            x = 10.0**exponent * (rng.normal(size=shape) + offset)
            assert as_data(x) is x
    years, dollars = np.arange(1900.0, 2030.0), np.round(1e7 * rng.gamma(2.0, size=40), 2)
    cents = np.round(100 * dollars * rng.uniform(0.5, 2.0, 40)) * 7
    tiny = np.exp(-(np.subtract.outer(years, years) ** 2))  # a kernel's, most of it below 1e-300
    for x in (
        years,
        dollars,
        cents,
        tiny,
        np.full(9, 0.1),
        np.append(np.ones(8), 1 + 1e-15),
        np.zeros(0),
    ):
        assert as_data(x) is x


REFUSED = {
    "int64": (np.full(4, BIG), "holds 3000000000 (int64), which does not fit into int32"),
    "negative int64": (np.array([1, -BIG]), "-3000000000"),
    "uint64": (np.full(4, 2**63, np.uint64), "uint32"),
    "pandas Int64": (pd.Series([BIG] * 4, dtype="Int64"), "3000000000"),
    "Python ints beyond all types": (np.array([10**30, 1], object), "int64"),
    "overflow": (np.array([1.0, 1e300]), "1e+300 (float64)"),
    "overflow beside infinity": (np.array([np.inf, 1e300]), "1e+300"),
    "long double": (np.full(3, np.longdouble("1e400")), "1e+400"),
    "all below the least number": (np.array([1e-50, 2e-50]), "all zero in float32"),
    "time stamps": (1.6e9 + np.arange(4.0), "steps of 128"),
    "time stamps in a column": (np.stack([np.arange(9.0), 1.6e9 + np.arange(9.0)], 1), "place [1]"),
    "two keys": (np.array([3e9 + 1, 3e9 + 500]), "steps of 256"),
    "time stamps in rows": (np.full((3, 9), 1.6e9) + np.arange(9.0), "place [0]"),
    "half seconds": (1.6e9 + 0.5 * np.arange(9.0), "differences between rows would be lost"),
    "a frame's column": (pd.DataFrame({"a": [1, 2], "id": [BIG, BIG + 1]}), "['id'] holds 3000000001"),
    "a column with others": (pd.DataFrame({"a": [1.5, 2], "id": [2**30, 2**30 + 1]}), "place [1]"),
    "dates": (np.arange(4).astype("M8[D]"), "datetime64[D]"),
    "differences of dates": (np.arange(4).astype("m8[s]"), "timedelta64[s]"),
    "dates with a zone": (pd.Series(DAYS.tz_localize("UTC")), "UTC]"),
    "an index of dates": (DAYS.tz_localize("Europe/Berlin"), "Europe/Berlin"),
    "periods": (pd.Series(DAYS.to_period("D")), "dates"),
    "objects of dates": (np.array([datetime.date(2020, 1, 1)] * 4), "dates"),
    "a frame with dates": (pd.DataFrame({"a": DAYS}), "['a']"),
    "a frame with text": (pd.DataFrame({"a": list("abcd")}), "column 'a' holds"),
    "a frame with categories": (pd.DataFrame({"a": pd.Categorical(list("abab"))}), "categories"),
    "fields": (np.zeros(4, [("a", float), ("b", int)]), "fields ['a', 'b']"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_change_is_refused_by_name(case):
    x, words = REFUSED[case]
    with pytest.raises((ValueError, TypeError)) as err:
        as_data({"deep": [x]}, "Argument 'x'")
    assert str(err.value).startswith("Argument 'x'['deep'][0]") and words in str(err.value)


KEPT = {
    "float16": (np.array([0.1, 2.0], np.float16), np.float32([np.float16(0.1), 2.0])),
    "bfloat16": (np.array([0.5, 2.0], ml_dtypes.bfloat16), np.float32([0.5, 2.0])),
    "int4": (np.array([-3, 7], ml_dtypes.int4), np.int32([-3, 7])),
    "long doubles": (np.array([0.5, 2.0], np.longdouble), np.array([0.5, 2.0])),
    "objects": (np.array([1, 2.5, None], object), np.array([1, 2.5, np.nan])),
    "whole objects": (np.array([1, 2], object), np.array([1, 2])),
    "truth values as objects": (np.array([True, False], object), np.array([True, False])),
    "decimals": (np.array([decimal.Decimal("0.5")] * 2), np.array([0.5, 0.5])),
    "nullable": (pd.Series([1, None, 3], dtype="Int64"), np.array([1, np.nan, 3])),
    "nullable truth values": (pd.Series([True, None], dtype="boolean"), np.array([1, np.nan])),
    "a frame": (pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5]}), np.array([[1, 0.5], [2, 1.5]])),
    "a frame of integers": (pd.DataFrame({"a": [1, 2]}), np.array([[1], [2]])),
    "categories": (pd.Series(list("bab"), dtype="category"), np.int32([1, 0, 1])),
    "categories with unused levels": (pd.Categorical([3, 1], categories=[1, 2, 3]), np.int32([2, 0])),
    "an index of categories": (pd.CategoricalIndex(list("ab")), np.int32([0, 1])),
    "nothing masked": (np.ma.masked_array([1.0, 2.0], mask=[0, 0]), np.array([1.0, 2.0])),
    "time stamps days apart": (1.6e9 + 86_400.0 * np.arange(50), 1.6e9 + 86_400.0 * np.arange(50)),
    "uint32": (np.array([4_000_000_000], np.uint32), np.array([4_000_000_000], np.uint32)),
    "uint32 that fits": (np.array([3, 5], np.uint32), np.array([3, 5])),
    "uint64 that fits": (np.array(3, np.uint64), np.array(3)),
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_what_has_numbers_becomes_an_array(case):
    given, expected = KEPT[case]
    found = as_data(given)
    assert isinstance(found, np.ndarray) and found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_what_is_no_data_stays():
    text, frameless = np.array(["a", "b"]), object()
    for x in (
        text,
        frameless,
        "a",
        3,
        BIG,
        0.5,
        None,
        len,
        jnp.zeros(2),
        [1, BIG],
        pd.Series(["a"]),
    ):
        assert as_data(x) is x
    args = ({"x": np.float32([1.0])}, [jnp.zeros(2)])
    assert as_data(args) is args


def test_float32_and_arrays_of_jax_cost_nothing():
    x = np.zeros((10_000_000, 4), np.float32)
    for array in (x, jnp.asarray(x[:10]), x.astype(bool)[:, 0]):
        begin = time.perf_counter()
        for _ in range(100):
            as_data(array)
        assert time.perf_counter() - begin < 0.2  # looking through them once takes as long


@pytest.mark.parametrize(
    "shape", [(7, 3), (1, 3), (5000, 3), (2049, 1), (3, 2000), (4, 5, 6), (9,)]
)
def test_ranges_of_columns_are_those_of_numpy(shape):
    x = np.random.default_rng(0).normal(size=shape)
    x.ravel()[:2] = np.nan
    for reduce in (np.fmin, np.fmax):
        np.testing.assert_array_equal(_over_rows(reduce, x), reduce.reduce(x, axis=0))


def test_nothing_is_refused_in_64_bits():
    with jax.enable_x64(True):
        for x in (np.full(4, BIG), 1.6e9 + np.arange(9.0), np.array([1e300])):
            assert as_data(x) is x


# What the calls make of it.

MASKED = np.ma.masked_array([1.0, 1e3, 1.0, 1e3], mask=[0, 1, 0, 1])
CALLS = {
    "simulate": lambda x: observed.simulate(KEY, x),
    "log_density": lambda x: observed.log_density({"mean": 0.0}, x),
    "generate": lambda x: observed.generate(KEY, {}, x),
    "by name": lambda x: observed.simulate(KEY, x=x),
    "fit": lambda x: inference.fit(observed, args=(x,), progress=False),
    "fit by name": lambda x: inference.fit(observed, args={"x": x}, progress=False),
    "objective": lambda x: inference.elbo(observed, lambda x: None).init(KEY, x),
    "plan": lambda x: inference.elbo(observed, lambda x: None).plan({}, x),
    "smc": lambda x: inference.smc(observed, KEY, x, num_particles=2),
    "tempered_smc": lambda x: inference.tempered_smc(observed, KEY, x, num_particles=2),
    "pmmh": lambda x: inference.particles.pmmh(
        observed, KEY, x, parameters=["mean"], num_particles=2, num_samples=2
    ),
    "eliminate": lambda x: ppl.eliminate(observed, ["mean"]).log_density({}, x),
    "predict": lambda x: inference.predict(observed, {"mean": np.zeros(3)}, KEY, x),
    "to_arviz": lambda x: inference.to_arviz({"mean": np.zeros(3)}, model=observed, args=(x,)),
    "calibrate": lambda x: inference.diagnostics.calibrate(observed, lambda k, o: {}, KEY, x),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_call_refuses_integers_that_do_not_fit(call):
    with pytest.raises(ValueError, match="Argument 'x' holds 3000000000"):
        CALLS[call](np.full(4, BIG))


def test_observations_and_choices_are_data_too():
    def constant():
        numpyro.sample("x", dist.Normal(jnp.zeros(4), 1.0).to_event(1), obs=np.full(4, BIG))

    with pytest.raises(ValueError, match="Site 'x': the value holds 3000000000"):
        ppl.as_program(constant).log_density({})
    with pytest.raises(ValueError, match="Site 'x': the observation holds 3000000000"):
        ppl.as_program(
            lambda: ppl.sample("x", dist.Normal(jnp.zeros(4), 1.0).to_event(1), obs=np.full(4, BIG))
        ).log_density({})
    for run in (
        lambda: observed.log_density({"mean": np.int64(BIG)}, np.zeros(4)),
        lambda: observed.log_density({"mean": BIG}, np.zeros(4)),
        lambda: ppl.condition(observed, {"mean": np.int64(BIG)}).log_density({}, np.zeros(4)),
    ):
        with pytest.raises(ValueError, match="The value of site 'mean' holds 3000000000"):
            run()


def test_a_number_of_pythons_that_does_not_fit_is_refused():
    for sample, what in ((numpyro.sample, "value"), (ppl.sample, "observation")):
        program = ppl.as_program(lambda s=sample: s("x", dist.Normal(0.0, 1.0), obs=BIG))
        with pytest.raises(ValueError, match=f"Site 'x': the {what} holds 3000000000"):
            program.log_density({})


def test_a_complex_observation_is_refused():
    with pytest.raises(TypeError, match="Site 'x': the value is complex.*Observe its parts"):
        observed.log_density({"mean": 0.0}, np.ones(4) + 1j)


def test_masked_cells_are_missing_where_they_are_observed():
    by_mask = observed.simulate(KEY, MASKED)
    assert set(by_mask.choices) == {"mean", "x_unobserved"}
    mean = 0.3
    seen = dist.Normal(mean, 1.0).log_prob(jnp.ones(2)).sum() + dist.Normal(0, 1).log_prob(mean)
    total = observed.trace({"mean": mean, "x_unobserved": jnp.zeros(4)}, MASKED).log_probs
    np.testing.assert_allclose(total["x_observed"].sum() + total["mean"], seen, rtol=1e-6)

    def masked_too(x, mask):
        ppl.sample("x", dist.Normal(0.0, 1.0).expand([4]).to_event(1), obs=x, obs_mask=mask)

    trace = ppl.as_program(masked_too).simulate(KEY, MASKED, np.array([True, True, False, True]))
    np.testing.assert_array_equal(trace.cells["x_unobserved"], [False, True, True, True])


@pytest.mark.parametrize("use", ["exp", "times", "matmul", "index", "take", "compare", "numpy"])
@pytest.mark.parametrize("kind", ["masked", "category"])
def test_masked_cells_are_refused_where_they_would_be_read(use, kind):
    x = (
        MASKED.astype(int)
        if kind == "masked"
        else pd.Series(["a", None, "b", "a"], dtype="category")
    )
    uses = {
        "exp": jnp.exp,
        "times": lambda x: 2.0 * x,
        "matmul": lambda x: jnp.ones((4, 4)) @ x,
        "index": lambda x: jnp.zeros(3)[x],
        "take": lambda x: jnp.take(jnp.zeros(3), x),
        "compare": lambda x: x > 0,
        "numpy": np.log1p,
    }
    program = ppl.as_program(lambda x: uses[use](x))
    with pytest.raises((TypeError, IndexError), match="Argument 'x' has missing cells"):
        program.simulate(KEY, x)


def test_numpyros_statement_takes_no_masked_cells():
    def program(x):
        numpyro.sample("x", dist.Normal(0.0, 1.0).expand([4]).to_event(1), obs=x)

    with pytest.raises(TypeError, match="has missing cells.*ppl.sample"):
        ppl.as_program(program).simulate(KEY, MASKED)


def test_categories_are_codes_and_text_is_refused():
    codes = pd.Series(list("caab"), dtype="category")
    choices = {"effect": jnp.array([0.0, 1.0, 2.0])}
    trace = grouped.trace(choices, codes, np.array([2.0, 0.0, 0.0, 1.0]))
    np.testing.assert_allclose(trace.log_probs["y"], dist.Normal(0.0, 1.0).log_prob(jnp.zeros(4)))
    with pytest.raises(IndexError, match="'g' holds text.*Give it codes"):
        grouped.simulate(KEY, pd.Series(list("caab")))


def test_samples_are_judged_as_they_are():
    rng = np.random.default_rng(0)
    real, other = rng.normal(size=(2, 60, 3))
    hidden = np.ma.masked_array(real, mask=np.zeros_like(real, bool))
    hidden.mask[0] = True
    judge = lambda x: evaluation.frechet_distance(x, other, KEY)
    with pytest.raises(TypeError, match="frechet_distance: real holds complex128"):
        judge(real + 1j)
    with pytest.raises(TypeError, match="frechet_distance: real of shape .* holds datetime64"):
        judge(rng.integers(0, 9, (60, 3)).astype("M8[D]"))
    with pytest.raises(ValueError, match="frechet_distance: real has 3 missing cells of 180"):
        judge(hidden)
    with pytest.raises(TypeError, match="frechet_distance: real holds <U"):
        judge(real.astype(str))
    with pytest.raises(ValueError, match="labels of real are missing in some rows"):
        labels = pd.Series(["a", None, "b"] * 20, dtype="category")
        evaluation.intra_class_frechet(real, labels, other, labels, KEY)
    for same in (real.astype(object), pd.DataFrame(real), jnp.asarray(real, jnp.float32)):
        np.testing.assert_allclose(judge(same).value, judge(real).value, rtol=1e-5)


def test_double_precision_is_a_limit_of_samples():
    keys = 2**60 + np.arange(4)
    with pytest.raises(ValueError, match="makes different ones the same"):
        as_numbers("f: x", keys)
    assert as_numbers("f: x", [1, BIG]).tolist() == [1.0, BIG]
    assert isinstance(as_data(MASKED), Masked) and re.match(r"Masked\(", repr(as_data(MASKED)))


def shifted(x, y=None):
    with ppl.plate("rows", len(x)):
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)


@pytest.mark.parametrize("labels", [[3, 2, 1, 0], ["a", "b", "c", "d"]])
def test_rows_of_pandas_in_another_order_are_refused(labels):
    """Pandas would match them by their labels, a program by position."""
    x = pd.Series([1.0, 2.0, 3.0, 4.0], index=labels)
    y = pd.DataFrame({"y": 2 * x}).loc[labels[::-1], "y"]
    program = ppl.model(shifted)
    for other in (y, y.to_frame()):
        with pytest.raises(
            ValueError, match=r"'y' has the rows of argument 'x' in another order.*loc\[x.index\]"
        ):
            program.log_density({}, x, y=other)
    right = program.log_density({}, x.to_numpy(), 2 * x.to_numpy())
    wrong = program.log_density({}, x.to_numpy(), y.to_numpy())
    assert program.log_density({}, x, y.loc[x.index]) == right != wrong
    # Rows of their own, and labels that say nothing.
    elsewhere = pd.Series(y.to_numpy(), index=range(10, 14))
    twice = pd.Series(y.to_numpy(), index=[labels[0]] * 4)
    for other in (y.to_numpy(), elsewhere, twice):
        assert program.log_density({}, x, other) == wrong


@pytest.mark.parametrize("gone", [([1], [4]), ([1, 2], [4, 7])], ids=str)
@pytest.mark.parametrize("labels", [range(9), list("abcdefghi"), pd.date_range("2020", periods=9)])
def test_columns_that_lost_different_rows_are_refused(gone, labels):
    """Each column was rid of its own gaps: as many rows, of which some stand beside another row's; a slope of 3 became 0.9."""
    frame = pd.DataFrame({"x": np.arange(9.0), "y": 2 * np.arange(9.0)}, index=labels)
    frame.iloc[gone[0], 0] = np.nan
    frame.iloc[gone[1], 1] = np.nan
    program = ppl.model(shifted)
    with pytest.raises(
        ValueError, match=r"'y' and argument 'x' have \d rows each, and not the same"
    ):
        program.log_density({}, frame.x.dropna(), y=frame.y.dropna())
    both = frame.dropna()
    program.log_density({}, both.x, both.y)
    program.log_density({}, frame.x.dropna(), frame.y.dropna().to_numpy())


def test_a_series_and_its_past_are_shifted_on_purpose():
    """So are those of groups, whose first, or last, rows are left out."""
    x, program = pd.Series(np.arange(9.0)), ppl.model(shifted)
    groups = x.groupby(x > 4)
    for now, past in ((x[1:], x[:-1]), (x[3:], x[:-3]), (groups.tail(-1), groups.head(-1))):
        program.log_density({}, now, past)


@pytest.mark.parametrize("kind", [np.uint32, np.uint64])
def test_differences_of_unsigned_numbers_are_below_zero(kind):
    x = np.array([3, 7, 9], kind)
    program = ppl.model(lambda x: ppl.factor("f", jnp.sum((x - 5.0) + (x - 8) - x)))
    assert program.log_density({}, x) == program.log_density({}, x.astype(float)) == -20


def test_matrices_are_arrays():
    """The products of NumPy's matrices are those of matrices, where JAX's are those of elements."""
    given = np.array([[1.0, 2.0], [3.0, 4.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's own, of the kind
        matrix = np.asmatrix(given)
    found = as_data(matrix)
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(found * found, given**2)


LEVELS = {
    "another order": ([2, 1, 0], 2, 0), "a gap": ([0, 2], 2, 1), "truth values in another order": ([True, False], True, 0),
    "one truth value": ([True], True, 0), "real numbers": ([1.0, 0.0], 1.0, 0),
}  # fmt: skip


@pytest.mark.parametrize("case", LEVELS)
def test_levels_that_look_like_codes_and_have_others_are_refused(case):
    """0 and 1 with the levels 1, 0 were read the other way round."""
    levels, level, code = LEVELS[case]
    with pytest.raises(ValueError, match=rf"'x'.*{level} has the code {code}.*cat.codes"):
        as_data(pd.Series(pd.Categorical(levels, categories=levels)), "Argument 'x'")


@pytest.mark.parametrize(
    "levels", [[0, 1, 2], [1, 2, 3], [10, 20], ["b", "a"], [False, True], [0.5, 0.0], []], ids=str
)
def test_other_levels_have_codes(levels):
    found = as_data(pd.Series(pd.Categorical(levels, categories=levels)), "Argument 'x'")
    assert found.tolist() == list(range(len(levels)))
