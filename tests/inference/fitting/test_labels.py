"""New data with levels or columns in another order are read as what they are named."""

import jax
import numpy as np
import numpyro.distributions as dist
import optax
import pandas as pd
import pytest

from lapilli import inference, ppl
from lapilli.inference.posteriors import Certificate
from lapilli.ppl.language import LabelText, labelled_as, labels_of

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
FRAME = pd.DataFrame(RNG.normal(size=(6, 2)), columns=["u", "v"])
GROUP = pd.Series(pd.Categorical(list("abcabc")))


@ppl.model
def model(g, x, y=None):
    with ppl.plate("groups", 3):
        effect = ppl.sample("effect", dist.Normal(0.0, 3.0))
    slopes = ppl.sample("slopes", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(effect[g] + x @ slopes, 0.1), obs=y)


@ppl.model
def guide(g, x, y=None):
    with ppl.plate("groups", 3):
        ppl.sample("effect", dist.Normal(ppl.param("effects", np.arange(3.0)), 0.01))
    ppl.sample("slopes", dist.Normal(ppl.param("at", np.array([10.0, 100.0])), 0.01).to_event(1))


@pytest.fixture(scope="module")
def fit():
    args = {"g": GROUP, "x": FRAME, "y": np.zeros(6)}
    options = {"num_steps": 1, "key": KEY, "progress": False}
    return inference.fit(inference.elbo(model, guide), optax.sgd(0.0), args, **options)


def predicted(fit, *args, **kwargs):
    return fit.predict(KEY, *args, num_samples=200, **kwargs)["y"].mean(0)


NEW = pd.Series(["c", "b"], dtype="category")  # codes 1 and 0 of their own
TURNED = pd.DataFrame({"v": [1.0, 0.0], "u": [0.0, 1.0]})


@pytest.mark.parametrize(
    "kind", [lambda x: x, pd.CategoricalIndex, lambda x: x.array], ids=["series", "index", "array"]
)
def test_levels_and_columns_keep_their_meaning(fit, kind, tmp_path):
    expected = [2.0 + 100.0, 1.0 + 10.0]
    np.testing.assert_allclose(predicted(fit, kind(NEW), TURNED), expected, atol=0.1)
    np.testing.assert_allclose(predicted(fit, x=TURNED, g=kind(NEW)), expected, atol=0.1)
    codes, matrix = np.array([2, 1]), np.array([[0.0, 1.0], [1.0, 0.0]])  # said by hand
    np.testing.assert_allclose(predicted(fit, codes, matrix), expected, atol=0.1)


def test_a_file_keeps_them(fit, tmp_path):
    fit.save(tmp_path / "fit.npz")
    loaded = inference.Fit.load(tmp_path / "fit.npz", fit.objective)
    assert loaded.labels == fit.labels == {"Argument 'g'": tuple("abc"), "Argument 'x'": ("u", "v")}
    np.testing.assert_allclose(predicted(loaded, NEW, TURNED), predicted(fit, NEW, TURNED))


def test_batches_and_weights_keep_them(fit):
    batch = next(fit.predict_batches(KEY, [(NEW, TURNED)], num_samples=200))
    np.testing.assert_allclose(batch["y"].mean(0), [102.0, 11.0], atol=0.1)
    turned = GROUP.cat.set_categories(["c", "a", "b"])
    args = (turned, FRAME[["v", "u"]], np.zeros(6))
    weights = lambda **kw: fit.posterior(KEY, 5, **kw).log_weights
    np.testing.assert_allclose(weights(args=args), weights(), rtol=1e-5)


def test_new_levels_and_other_columns_are_refused(fit):
    with pytest.raises(
        ValueError, match=r"Argument 'g' has the levels \['d'\], and the fit had \['a'"
    ):
        predicted(fit, pd.Series(["c", "d"], dtype="category"), TURNED)
    with pytest.raises(ValueError, match=r"missing \['u'\], extra \['w'\]"):
        predicted(fit, NEW, TURNED.rename(columns={"u": "w"}))
    unused = pd.Series(pd.Categorical(["c", "b"], categories=list("cbd")))
    np.testing.assert_allclose(predicted(fit, unused, TURNED), [102.0, 11.0], atol=0.1)


def test_a_missing_category_is_no_group(fit):
    with pytest.raises(IndexError, match="Argument 'g' has missing cells.*leave the rows out"):
        predicted(fit, pd.Series(["c", None], dtype="category"), TURNED)


def test_arguments_given_at_load_are_put_in_the_order_of_the_file(fit, tmp_path):
    """The data stayed out of it, and its frame comes back with its columns in another order."""
    frame = pd.DataFrame({"a": np.arange(4.0), "b": np.ones(4)})
    y = np.zeros(4, np.float32)

    def regression(x, y=None):
        w = ppl.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    certificate, labels = Certificate("exact", True, (), {}), {"Argument 'x'": ("a", "b")}
    choices, args = {"w": np.zeros((3, 2), np.float32)}, (frame.to_numpy(np.float32), y)
    made = inference.Draws(choices, certificate, 1, {}, ppl.as_program(regression), args, labels)
    made.save(tmp_path / "draws.npz", data=False)
    other = (frame[["b", "a"]], y)
    loaded = inference.Draws.load(tmp_path / "draws.npz", regression, args=other)
    np.testing.assert_array_equal(loaded.args[0], args[0])
    fit.save(tmp_path / "fit.npz", data=False)
    other = (GROUP, FRAME[["v", "u"]], np.zeros(6))
    found = inference.Fit.load(tmp_path / "fit.npz", fit.objective, args=other)
    np.testing.assert_allclose(found.args[1], FRAME, rtol=1e-6)


@pytest.mark.parametrize(
    "given",
    [pd.Series(pd.cut([5.0, 15.0], [0, 10, 20])), FRAME.set_axis([("p", 1), ("p", 2)], axis=1)],
)
def test_labels_that_are_no_text_come_back_by_their_text(given, tmp_path):
    """Intervals and tuples: a file cannot hold them, and new data are compared by what they print."""

    def regression(x):
        ppl.sample("w", dist.Normal(0.0, 1.0))

    is_frame = isinstance(given, pd.DataFrame)
    labels = {"Argument 'x'": tuple(given.columns if is_frame else given.cat.categories)}
    certificate, args = Certificate("exact", True, (), {}), (np.zeros(2, np.float32),)
    choices = {"w": np.zeros(3, np.float32)}
    made = inference.Draws(choices, certificate, 1, {}, ppl.as_program(regression), args, labels)
    for name in ("one.npz", "two.npz"):  # what was loaded is saved again
        made.save(tmp_path / name)
        made = inference.Draws.load(tmp_path / name, regression)
    if is_frame:
        (found,) = labelled_as(made.labels, (given[given.columns[::-1]],), regression)
        np.testing.assert_allclose(found, given, rtol=1e-6)
    else:
        (found,) = labelled_as(made.labels, (given[1:].cat.remove_unused_categories(),), regression)
        np.testing.assert_array_equal(found, [1])
        with pytest.raises(ValueError, match=r"has the levels \['\(20, 30\]'\]"):
            labelled_as(made.labels, (pd.Series(pd.cut([25.0], [20, 30])),), regression)


def test_predictions_of_other_draws_keep_them():
    @ppl.model
    def line(x, y=None):
        slopes = ppl.sample("slopes", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("y", dist.Normal(x @ slopes, 0.1), obs=y)

    y = (3.0 * FRAME["u"] - 2.0 * FRAME["v"]).to_numpy()
    draws = inference.infer(line, args={"x": FRAME, "y": y}, progress=False)
    for ahead in (
        inference.predict(line, draws, KEY, TURNED),
        inference.predict(line, draws, KEY, x=TURNED),
    ):
        np.testing.assert_allclose(ahead["y"].mean(0), [-2.0, 3.0], atol=0.3)
    with pytest.raises(ValueError, match=r"missing \['u'\]"):
        inference.predict(line, draws, KEY, TURNED[["v"]])


def test_labels_of_one_text_are_told_from_a_file_s_by_nothing():
    """1 and "1" print alike."""
    labels = {"Argument 'x'": (LabelText("1"), LabelText("2"))}
    frame = pd.DataFrame([[0.0, 1.0]], columns=[1, "1"])
    with pytest.raises(ValueError, match=r"labels of the same text, \['1', '1'\].*that differ"):
        labelled_as(labels, (frame,), lambda x: None)


def frame_of(*columns):
    return pd.DataFrame([[0.0] * len(columns)], columns=list(columns))


def levels_of(*levels):
    return pd.Series(pd.Categorical(levels))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (frame_of("1", "2"), frame_of(2, 1), r"\[2, 1\] are int here and str there: rename"),
        (frame_of(1, 2), frame_of("2", "1"), r"\['2', '1'\] are str here and int there"),
        (levels_of("1", "2"), levels_of(2, 1), r"the levels \[1, 2\].*are int here and str there"),
        (levels_of(1, 2), levels_of("2", "1"), r"the levels \['1', '2'\].*are str here and int"),
        (frame_of("a", "a", "b"), frame_of("a", "b", "a"), r"\['a'\] are there twice"),
        (levels_of(1, 2, 3), np.array([1, 2]), r"integers, and was a category.*from_codes"),
    ],
)
def test_labels_that_do_not_tell_what_is_what_are_refused(old, new, message):
    """Those that print alike died in a KeyError; the level 1 was read as the place 1, which is the level 2's."""
    program = lambda x: None
    with pytest.raises(ValueError, match=message):
        labelled_as(labels_of((old,), program), (new,), program)


def test_places_of_levels_are_taken_where_nothing_else_can_be_meant():
    program = lambda x: None
    for old in (levels_of("a", "b"), levels_of(0, 1)):
        (found,) = labelled_as(labels_of((old,), program), (np.array([1, 0]),), program)
        np.testing.assert_array_equal(found, [1, 0])


@pytest.mark.parametrize("kind", ["named", "in place"])
def test_batches_of_a_fit_have_the_levels_and_columns_of_the_first(kind):
    """A table that is read in chunks has in each the levels that it met there: 2.90 stood for a group whose effect is 0."""
    as_batch = lambda *args: dict(zip("gxy", args, strict=True)) if kind == "named" else args
    y, elbo = np.arange(6.0), inference.elbo(model, guide)
    sizes = {"rows": 12, "groups": 3}

    def run(*batches):
        options = {"num_steps": 2, "key": KEY, "progress": False, "plate_sizes": sizes}
        return inference.fit(elbo, optax.sgd(1e-6), list(batches), **options)

    chunk = pd.Series(pd.Categorical(list("ccbbcc")))
    found = run(as_batch(GROUP, FRAME, y), as_batch(chunk, FRAME[["v", "u"]], y))
    places = [np.array([0, 1, 2, 0, 1, 2]), np.array([2, 2, 1, 1, 2, 2])]
    same = run(*(as_batch(codes, FRAME.to_numpy(), y) for codes in places))
    for name, x in same.params.items():
        np.testing.assert_array_equal(x, found.params[name])
    # And predictions of the fit are told by names, as those of a fit to whole data.
    turned = FRAME[["v", "u"]]
    draws = found.predict(KEY, g=chunk, x=turned, num_samples=20)["y"]
    assert np.abs(draws.mean(0) - (places[1] + FRAME.to_numpy() @ [10.0, 100.0])).max() < 0.5
    other = pd.Series(pd.Categorical(list("ddbbcc")))
    with pytest.raises(ValueError, match=r"batch 1 differs from batch 0.*levels \['d'\]"):
        run(as_batch(GROUP, FRAME, y), as_batch(other, FRAME, y))


def test_categories_of_batches_that_would_be_measurements_are_refused():
    data = {"g": GROUP, "x": pd.Series(pd.Categorical(list("uvwuvw"))), "y": np.zeros(6)}

    @ppl.model
    def line(g, x, y=None):
        slope = ppl.sample("slope", dist.Normal(0.0, 3.0))
        with ppl.plate("rows", 6):
            ppl.sample("y", dist.Normal(slope * x + 0.0 * g, 0.1), obs=y)

    @ppl.model
    def point(g, x, y=None):
        ppl.sample("slope", dist.Normal(ppl.param("at", 0.0), 0.1))

    with pytest.raises(ValueError, match="'x' holds categories of pandas.*real numbers"):
        inference.fit(
            inference.elbo(line, point), optax.sgd(0.0), [data], num_steps=1, key=KEY,
            progress=False, plate_sizes={"rows": 6},
        )  # fmt: skip
