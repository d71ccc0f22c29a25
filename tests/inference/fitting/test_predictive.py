"""Predictions at new arguments: what the guide knows of new rows, and what the model draws of them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from _random_rows import random_program
from numpyro.infer.autoguide import AutoNormal

from lapilli import inference, ppl
from lapilli.inference.fitting.prediction import tell_of_nan

KEY = jax.random.key(0)
X = np.linspace(-1.0, 1.0, 8, dtype=np.float32)
Y = 2.0 * X
NEW = np.array([0.5, 2.0, -1.0], np.float32)


def rows(x, y=None):
    """Rows have an effect u of their own."""
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", x.shape[0]):
        u = ppl.sample("u", dist.Normal(0.0, 0.6))
        ppl.deterministic("mean", slope * x + u)
        ppl.sample("y", dist.Normal(slope * x + u, 0.3), obs=y)


def by_row(x, y=None):
    """One mean for each row of the fit."""
    ppl.sample("slope", dist.Normal(ppl.param("loc", 1.5), 0.2))
    mean = ppl.param("mean_u", jnp.arange(8.0))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("u", dist.Normal(mean, 1e-3))


def amortised(x, y=None):
    """Reads a row to guess its effect."""
    ppl.sample("slope", dist.Normal(ppl.param("loc", 1.5), 0.2))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("u", dist.Normal(ppl.param("weight", 0.25) * y, 1e-3))


def fitted(guide, args=(X, Y), **options):
    return inference.fit(
        inference.elbo(rows, guide),
        optax.sgd(0.0),
        args,
        num_steps=1,
        key=KEY,
        progress=False,
        **options,
    )


def test_a_name_with_brackets_is_kept_as_a_name():
    """Site "w[0]" is meant; as a pattern it would be "w0", another one, which the model draws."""

    def weights(x, y=None):
        w = [ppl.sample(name, dist.Normal(0.0, 1.0)) for name in ("w0", "w[0]")]
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("y", dist.Normal(w[0] + w[1] * x, 0.3), obs=y)

    def guide(x, y=None):
        for name in ("w0", "w[0]"):
            ppl.sample(name, dist.Normal(ppl.param("loc " + name, 5.0), 1e-3))

    objective = inference.elbo(weights, guide)
    fit = inference.fit(objective, optax.sgd(0.0), (X, Y), num_steps=1, key=KEY, progress=False)
    assert set(fit.predict(KEY, NEW, keep=["w[0]"], num_samples=3)) == {"w0", "y"}
    with pytest.raises(ValueError, match="site 'w0' is shared by all rows"):  # "w[0]" keeps no "w0"
        next(fit.predict_batches(KEY, [(NEW,)], keep="w[0]", num_samples=3))
    assert set(next(fit.predict_batches(KEY, [(NEW,)], num_samples=3))) == {"y"}
    draws = {name: np.full(3, 5.0, np.float32) for name in ("w0", "w[0]")}
    found = inference.predict(weights, draws, KEY, NEW, keep=["w[0]"])
    assert set(found) == {"w0", "y"} and set(
        inference.predict(weights, draws, KEY, NEW, keep=["w*"])
    ) == {"y"}


def test_kept_sites_come_from_the_fit_and_the_model_draws_the_others():
    drawn = fitted(by_row).predict(KEY, NEW, keep=["slope"], num_samples=20_000)
    assert {n: x.shape for n, x in drawn.items()} == dict.fromkeys(("u", "mean", "y"), (20000, 3))
    variance = 0.2**2 * NEW**2 + 0.6**2 + 0.3**2
    tolerance = 4 * np.sqrt(variance / 20_000)
    assert (np.abs(drawn["y"].mean(0) - 1.5 * NEW) < tolerance).all()
    np.testing.assert_allclose(drawn["y"].var(0), variance, rtol=4 * np.sqrt(2 / 20_000))


def test_an_amortised_guide_reads_the_new_rows():
    y = np.array([4.0, 0.0, -4.0], np.float32)
    drawn = fitted(amortised).predict(KEY, NEW, y, num_samples=400)
    effect = drawn["mean"] - 0.25 * y
    np.testing.assert_allclose(effect.mean(0), 1.5 * NEW, atol=0.1)


def test_all_that_is_kept_belongs_to_the_rows_of_the_fit():
    drawn = fitted(by_row).predict(KEY, X, keep="*", num_samples=200)
    assert set(drawn) == {"mean", "y"}
    np.testing.assert_allclose((drawn["mean"] - 1.5 * X).mean(0), np.arange(8.0), atol=0.1)


@pytest.mark.slow_for("auto")
@pytest.mark.parametrize("guide", [by_row, AutoNormal(rows)], ids=["by_row", "auto"])
def test_draws_of_the_fits_rows_do_not_pass_for_those_of_as_many_new_ones(guide):
    with pytest.raises(ValueError, match=r"'u' lies in plate 'rows' of length 8.*keep=\['slope'\]"):
        fitted(guide).predict(KEY, X[::-1], num_samples=5)


def test_a_guide_that_cannot_run_at_the_new_arguments_says_what_to_keep():
    with pytest.raises(ValueError, match=r"cannot be run at the new arguments.*keep=\['slope'\]"):
        fitted(by_row).predict(KEY, NEW, num_samples=5)
    with pytest.raises(ValueError, match=r"cannot be run.*NoneType.*keep=\['slope'\]"):
        fitted(amortised).predict(KEY, NEW, num_samples=5)


def test_patterns_that_match_nothing_are_refused():
    with pytest.raises(ValueError, match=r"\['slop'\], which match no site.*\['slope', 'u'\]"):
        fitted(by_row).predict(KEY, NEW, keep=["slop", "u"], num_samples=5)


@pytest.mark.slow
def test_a_fit_that_kept_no_arguments_keeps_sites_that_need_none():
    fit = fitted(amortised, [(X, Y)], plate_sizes={})
    y = np.zeros(3, np.float32)
    drawn = fit.predict(KEY, NEW, y, keep="slope", num_samples=5)
    assert drawn["u"].shape == (5, 3)
    with pytest.raises(
        ValueError, match=r"draws \['u'\] from the arguments of the fit, which came"
    ):
        fit.predict(KEY, NEW, y, keep="*", num_samples=5)


def test_a_posterior_is_of_data():
    with pytest.raises(ValueError, match=r"misses the latent site\(s\) \['y'\]; if they are data"):
        fitted(by_row).posterior(KEY, 5, args={"x": X})


def test_programs_predict_what_they_draw():
    drawn = ppl.as_program(rows).predict(KEY, {"slope": 1.0}, NEW)
    assert set(drawn) == {"u", "mean", "y"}
    assert set(ppl.as_program(rows).predict(KEY, {"slope": 1.0}, NEW, NEW)) == {"u", "mean", "y"}


@pytest.mark.slow
def test_a_site_that_is_kept_brings_what_it_depends_on():
    """U given and its mean drawn anew would not be a draw of the posterior."""

    def model(x, y=None):
        mean = ppl.sample("mean", dist.Normal(0.0, 1.0))
        u = ppl.sample("u", dist.Normal(mean, 1.0))
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("y", dist.Normal(mean + u * x, 0.3), obs=y)

    def guide(x, y=None):
        ppl.sample("mean", dist.Normal(ppl.param("m", 0.0), 1.0))
        ppl.sample("u", dist.Normal(ppl.param("l", 0.0), 1.0))

    fit = inference.fit(
        inference.elbo(model, guide), optax.sgd(0.0), (X, Y), num_steps=1, key=KEY, progress=False
    )
    with pytest.raises(ValueError, match=r"'u' is kept, and its law depends.*\['mean', 'y'\]"):
        fit.predict(KEY, NEW, keep=["u"], num_samples=3)
    assert set(fit.predict(KEY, NEW, keep=["mean"], num_samples=3)) == {"u", "y"}
    assert set(fit.predict(KEY, NEW, keep="*", num_samples=3)) == {"y"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fit. k-hat")  # of a single step
def test_summed_sites_of_new_rows_are_drawn_from_the_model():
    """A mixture of lines: each new row has a component of its own."""

    def model(x, y=None):
        slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", x.shape[0]):
            z = ppl.sample("z", dist.Bernoulli(0.25))
            ppl.sample("y", dist.Normal(slope * x + 10.0 * z, 0.1), obs=y)

    fit = inference.fit(model, None, (X, Y), num_steps=1, key=KEY, progress=False)
    drawn = fit.predict(KEY, NEW, num_samples=4000)
    assert set(drawn) == {"z", "y"}
    np.testing.assert_allclose(drawn["z"].mean(0), 0.25, atol=0.03)
    assert (np.abs(drawn["y"][drawn["z"] == 1].mean() - 10) < 1).all()
    seen = fit.predict(KEY, num_samples=20)  # at the rows of the fit: what their y says of z
    assert (seen["z"] == 0).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fit. k-hat")
def test_summed_sites_need_all_observations_or_none():
    def model(x, y=None):
        slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", x.shape[0]):
            z = ppl.sample("z", dist.Bernoulli(0.25))
            ppl.sample("x", dist.Normal(1.0 * z, 1.0), obs=x)
            ppl.sample("y", dist.Normal(slope * x + 10.0 * z, 0.1), obs=y)

    fit = inference.fit(model, None, (X, Y), num_steps=1, key=KEY, progress=False)
    with pytest.raises(
        ValueError, match=r"draw \['z'\] from what \['x'\] tell.*\['y'\] are not given"
    ):
        fit.predict(KEY, NEW, num_samples=3)


@pytest.mark.slow
def test_rows_on_an_axis_of_the_event_or_of_columns_do_not_pass_for_new_ones():
    def process(x, y=None):
        kernel = jnp.exp(-0.5 * (x[:, None] - x) ** 2) + 1e-2 * jnp.eye(len(x))
        scale = ppl.sample("scale", dist.LogNormal(0.0, 0.1))
        f = ppl.sample("f", dist.MultivariateNormal(jnp.zeros(len(x)), kernel))
        ppl.sample("y", dist.Normal(f, scale).to_event(1), obs=y)

    def columns(x, y=None):
        with ppl.plate("rows", x.shape[1]):
            u = ppl.sample("u", dist.Normal(x[0], 1.0))
            ppl.sample("y", dist.Normal(u, 0.1), obs=y)

    for model, x, site in ((process, X, "f"), (columns, np.stack([X, X]), "u")):
        bound = inference.elbo(model, AutoNormal(model))
        fit = inference.fit(bound, args=(x, Y), num_steps=1, progress=False)
        with pytest.raises(ValueError, match=f"site '{site}' .*grows with the rows of the new"):
            fit.predict(KEY, x + 5.0, num_samples=2)
        assert fit.predict(KEY, x, keep="*", num_samples=2)["y"].shape == (2, 8)


@pytest.mark.slow
def test_coefficients_of_columns_are_global():
    def line(x, y=None):
        beta = ppl.sample("beta", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("y", dist.Normal(x @ beta, 0.1), obs=y)

    x = np.ones((8, 2), np.float32)
    fit = inference.fit(
        inference.elbo(line, AutoNormal(line)), args=(x, Y), num_steps=1, progress=False
    )
    assert fit.predict(KEY, x[:5], num_samples=2)["y"].shape == (2, 5)


def series(y):
    def step(z, y):
        z = ppl.sample("z", dist.Normal(z, 1.0))
        ppl.sample("y", dist.Normal(z, 0.5), obs=y)
        return z, None

    ppl.scan(step, 0.0, y)


def states(y):
    step = lambda carry, at: (carry, ppl.sample("z", dist.Normal(at, 1e-3)))
    ppl.scan(step, 0.0, ppl.param("at", jnp.asarray(PAST)))


PAST = np.array([0.3, -0.2, 0.8], np.float32)


def quick_fit(model, guide, args):
    bound = inference.elbo(model, guide)
    return inference.fit(bound, optax.sgd(0.0), args, num_steps=1, key=KEY, progress=False)


@pytest.mark.slow
def test_a_series_goes_on_from_the_past_of_the_fit_only():
    fit = quick_fit(series, states, (PAST,))
    longer = np.append(PAST, [np.nan, np.nan]).astype(np.float32)
    ahead = fit.predict(KEY, longer, keep="*", num_samples=3)
    np.testing.assert_allclose(ahead["z"][:, :3], np.broadcast_to(PAST, (3, 3)), atol=0.01)
    np.testing.assert_array_equal(ahead["y"][:, :3], np.broadcast_to(PAST, (3, 3)))
    with pytest.raises(ValueError, match=r"go on from 3 steps.*not those of the fit"):
        fit.predict(KEY, longer + 1.0, keep="*", num_samples=3)


def test_the_past_is_matched_by_the_argument_s_name():
    def model(y, w):
        def step(z, y):
            z = ppl.sample("z", dist.Normal(z, 1.0))
            ppl.sample("y", dist.Normal(z + w.sum(), 0.5), obs=y)
            return z, None

        ppl.scan(step, 0.0, y)

    fit = quick_fit(model, lambda y, w: states(y), (PAST, np.zeros(1)))
    longer = np.append(PAST, [np.nan, np.nan]).astype(np.float32)
    ahead = fit.predict(KEY, w=np.zeros(1), y=longer, keep="*", num_samples=3)
    np.testing.assert_array_equal(ahead["y"][:, :3], np.broadcast_to(PAST, (3, 3)))
    for args, kwargs in [
        ((), {"w": np.zeros(1), "y": longer + 1}),
        ((longer + 1, np.zeros(1)), {}),
    ]:
        with pytest.raises(ValueError, match=r"go on from 3 steps.*'y'.*not those of the fit"):
            fit.predict(KEY, *args, keep="*", num_samples=3, **kwargs)


@pytest.mark.slow
def test_a_longer_autoregression_is_sent_to_where_its_steps_can_be_said():
    def model(y):
        drift = ppl.sample("drift", dist.Normal(0.0, 1.0))
        step = lambda last, y: (ppl.sample("y", dist.Normal(drift * last, 0.5), obs=y), None)
        ppl.scan(step, 0.0, y)

    def guide(y):
        ppl.sample("drift", dist.Normal(ppl.param("loc", 0.5), 0.1))

    fit, longer = quick_fit(model, guide, (PAST,)), np.append(PAST, 0.0)
    with pytest.raises(ValueError, match="drawn anew.*inference.predict.*num_seen"):
        fit.predict(KEY, longer, keep="*", num_samples=3)
    draws = fit.posterior(KEY, 50).choices  # of the guide; its weights are bad
    y = inference.predict(fit.model, draws, KEY, longer, num_seen=3, num_samples=3)["y"]
    np.testing.assert_array_equal(y[:, :3], np.broadcast_to(PAST, (3, 3)))
    assert fit.predict(KEY, num_samples=3)["y"].shape == (3, 3)  # replicates of the fit's own


@pytest.mark.slow
def test_rows_that_an_integer_counts_are_those_of_the_fit():
    def model(num_rows, y=None):
        slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", num_rows):
            u = ppl.sample("u", dist.Normal(0.0, 1.0))
            ppl.sample("y", dist.Normal(slope + u, 1.0), obs=y)

    def guide(num_rows, y=None):
        ppl.sample("slope", dist.Normal(ppl.param("loc", 0.0), 1.0))
        with ppl.plate("rows", num_rows):
            ppl.sample("u", dist.Normal(ppl.param("at", jnp.zeros(3)), 1.0))

    fit = quick_fit(model, guide, (3, PAST))
    with pytest.raises(ValueError, match=r"site 'u'.*of the fit.*keep=\['slope'\]"):
        fit.predict(KEY, 3, num_samples=2)
    assert fit.predict(KEY, 5, keep=["slope"], num_samples=2)["y"].shape == (2, 5)


def test_a_prediction_from_an_observation_that_would_be_drawn_anew_is_refused():
    def model(dose, y=None):
        slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", 3):
            dose = ppl.sample("dose", dist.Normal(0.0, 1.0), obs=dose)
            ppl.sample("y", dist.Normal(slope * dose, 0.1), obs=y)

    def guide(dose, y=None):
        ppl.sample("slope", dist.Normal(ppl.param("loc", 2.0), 0.01))

    fit, dose = quick_fit(model, guide, (PAST, PAST)), np.array([10.0, 0.0, -10.0], np.float32)
    with pytest.raises(ValueError, match=r"\['y'\] are to be predicted.*\['dose'\].*ppl.intervene"):
        fit.predict(KEY, dose, num_samples=2)
    assert fit.predict(KEY, dose, dose, num_samples=2)["dose"].shape == (2, 3)  # replicates of both
    assert fit.predict(KEY, None, num_samples=2)["y"].shape == (2, 3)
    draws = fit.posterior(KEY, 50).choices  # of the guide; its weights are bad
    with pytest.raises(
        ValueError, match=r"predict: \['y'\] are to be predicted.*\['dose'\].*ppl.intervene"
    ):
        inference.predict(model, draws, KEY, dose, num_samples=2)
    set_to = ppl.intervene(fit.model, {"dose": dose})
    y = inference.predict(set_to, draws, KEY, None, num_samples=50)["y"]
    slope = float(fit.params["loc"])
    assert np.abs(y.mean(0) - slope * dose).max() < 4.5 * np.hypot(0.1, 10 * 0.01) / 50**0.5


@pytest.mark.parametrize(
    "seed", [7, *(pytest.param(s, marks=pytest.mark.slow) for s in (*range(7), 8, 9, 11))]
)
def test_predictions_of_random_programs_are_those_of_the_shared_draws(seed):
    """Mean of y at other rows: what the rows share. Sites of the rows are drawn anew if kept sites are named, else refused."""
    rng = np.random.default_rng(seed)
    case = random_program(rng, num_of_rows=seed % 3)
    guide = AutoNormal(case.model, init_scale=1e-4)
    fit = quick_fit(case.model, guide, case.args)
    values = {n: x[0] for n, x in fit.posterior(KEY, 1).choices.items()}
    for num_rows in (len(case.args[0]), case.size + (case.size % 2 and len(case.args[0]) % 2 == 0)):
        new = case.arguments(rng, num_rows)
        if case.of_rows:
            with pytest.raises(ValueError, match="site '(" + "|".join(case.of_rows) + ")'"):
                fit.predict(KEY, *new, num_samples=2)
        keep = sorted(case.shared) if case.of_rows else None
        y = fit.predict(KEY, *new, keep=keep, num_samples=1000)["y"]
        means, error = case.means(values, *new[:2]), y.std(0) / 1000**0.5
        assert (np.abs(y.mean(0) - means) < 4.5 * error + 1e-2).all()


FAR = X + 100.0


def reading(x, y=None):
    """Reads the rows, and has a parameter for each of those of the fit."""
    ppl.sample("slope", dist.Normal(ppl.param("loc", 1.5), 0.2))
    weight = ppl.param("weight", jnp.ones(x.shape[0]))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("u", dist.Normal(weight * x, 1e-3))


def with_shifts(x, y=None):
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    shift = ppl.param("shift", jnp.zeros(x.shape[0]))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(slope * x + shift, 0.3), obs=y)


def by_position(x, y=None):
    """As many values as the fit had rows, by a number from outside."""
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    z = ppl.sample("z", dist.Normal(0.0, 1.0).expand([8]).to_event(1))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(slope * x + z[jnp.arange(x.shape[0])], 0.3), obs=y)


def of_known_rows(x, y=None):
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    z = ppl.sample("z", dist.Normal(0.0, 1.0).expand([8]).to_event(1))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(slope * x + z + jnp.asarray(Y), 0.3), obs=y)


def slopes(x, y=None):
    ppl.sample("slope", dist.Normal(ppl.param("loc", 1.5), 0.2))


def slopes_and_values(x, y=None):
    slopes(x)
    ppl.sample("z", dist.Normal(ppl.param("at", jnp.zeros(8)), 0.1).to_event(1))


def with_a_table(x, y=None):
    """A parameter of the model with as many entries as the fit had rows."""
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    shift = ppl.param("table", jnp.zeros(8))[jnp.arange(x.shape[0])]
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(slope * x + shift, 0.3), obs=y)


def reading_by_position(x, y=None):
    slopes(x)
    embedding = ppl.module("embedding", {"table": jnp.zeros((8, 1))})["table"]
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("u", dist.Normal(embedding[jnp.arange(x.shape[0]), 0] + x, 0.1))


def of_one_number(x, y=None):
    slopes(x)
    weights = ppl.module("network", {"weights": jnp.eye(8)})["weights"]
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("u", dist.Normal(weights @ x, 0.1))


BY_ROW = {
    "parameters of a guide that reads": (
        rows,
        reading,
        r"'u'.*draws it by \['weight'\], which have an entry",
    ),
    "parameters of the model": (
        with_shifts,
        slopes,
        r"model's parameter 'shift' has an entry for each of 8 rows",
    ),
    "positions": (
        by_position,
        slopes_and_values,
        r"'z' has as many entries as the fit.*keep=\['slope'\]",
    ),
    "a table of the model": (
        with_a_table,
        slopes,
        "model's parameter 'table' has an entry for each",
    ),
    "a table of the guide": (rows, reading_by_position, r"draws it by \['embedding'\], which"),
    "a network of one size": (rows, of_one_number, r"guide cannot be traced with more rows"),
    "no trace of more": (
        of_known_rows,
        slopes_and_values,
        r"'z' has an axis of length 8.*told by equal lengths, 8, since",
    ),
}


@pytest.mark.slow_for("a table of the guide", "a network of one size", "positions")
@pytest.mark.parametrize("name", BY_ROW)
def test_what_has_an_entry_for_each_row_of_the_fit_is_refused_at_as_many_others(name):
    model, guide, message = BY_ROW[name]
    fit = quick_fit(model, guide, (X, Y))
    with pytest.raises(ValueError, match=message):
        fit.predict(KEY, FAR, num_samples=2)


@pytest.mark.slow
def test_what_is_refused_at_other_rows_is_predicted_at_those_of_the_fit():
    for model, guide, _ in BY_ROW.values():
        fit = quick_fit(model, guide, (X, Y))
        for args, keep in (((), None), ((X, Y), None), ((X,), "*")):
            assert fit.predict(KEY, *args, keep=keep, num_samples=2)["y"].shape == (2, 8)
    with pytest.raises(ValueError, match="parameter 'shift'"):
        quick_fit(with_shifts, slopes, (X, Y)).predict(KEY, FAR, keep=["slope"], num_samples=2)


def line(x, y=None):
    beta = ppl.sample("beta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(x @ beta, 0.1), obs=y)


def line_of_any(x, y=None):
    beta = ppl.sample("beta", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(x @ beta, 0.1), obs=y)


def coefficients(x, y=None):
    ppl.sample("beta", dist.Normal(ppl.param("at", jnp.zeros(2)), 0.1).to_event(1))


@pytest.mark.parametrize("model", [line, line_of_any])
def test_other_columns_are_told_by_the_name_of_the_argument(model):
    fit = quick_fit(model, coefficients, (np.ones((8, 2), np.float32), Y))
    other = np.ones((5, 3), np.float32)
    told = r"argument 'x' has the shape \(5, 3\), and \(8, 2\) at the fit.*be run at it \(.*[Ss]ite '(y|beta)'"
    for call in (
        lambda: fit.predict(KEY, other, num_samples=2),
        lambda: fit.predict(KEY, other, keep="*", num_samples=2),
        lambda: list(fit.predict_batches(KEY, [(other,)], num_samples=2)),
    ):
        with pytest.raises(ValueError, match=told):
            call()


@pytest.mark.parametrize("model", [line, line_of_any])
def test_one_row_without_its_axis_is_told(model):
    """Two columns would be taken for two rows of the same mean."""
    x = np.ones((8, 2), np.float32)
    fit = quick_fit(model, coefficients, (x, Y))
    draws = inference.Draws({"beta": np.ones((4, 2))}, None, 1, {}, ppl.model(model), (x, Y))
    for call in (
        lambda: fit.predict(KEY, x[0], num_samples=2),
        lambda: list(fit.predict_batches(KEY, [(x[0],)], num_samples=2)),
        lambda: draws.predict(KEY, x[0]),
    ):
        with pytest.raises(
            ValueError, match=r"'x' has the shape \(2,\), .*\(8, 2\).*Pass x\[None\]"
        ):
            call()
    assert fit.predict(KEY, x[:1], num_samples=2)["y"].shape == (2, 1)


def test_arguments_in_a_tuple_and_numbers_that_are_none_are_told():
    fit = quick_fit(line, coefficients, (np.ones((8, 2), np.float32), Y))
    with pytest.raises(ValueError, match=r"argument 'x' is a list or tuple, .*predict\(key, x\)"):
        fit.predict(KEY, (np.ones((5, 2), np.float32),), num_samples=2)
    row = np.array([[1.0, np.nan]], np.float32)
    with pytest.warns(UserWarning, match="predictions hold NaN. Argument 1 holds NaN, in 1 of 2"):
        fit.predict(KEY, row, num_samples=2)
    with pytest.warns(UserWarning, match="predictions hold NaN. Argument 1 holds NaN, in 1 of 2"):
        inference.predict(line, {"beta": np.ones((4, 2), np.float32)}, KEY, row)


def test_steps_that_were_not_seen_may_be_nan():
    def walk(y):
        def step(level, y):
            level = ppl.sample("level", dist.Normal(level, 1.0))
            ppl.sample("y", dist.Normal(level, 1.0), obs=y)
            return level, None

        ppl.scan(step, 0.0, y)

    seen = np.array([0.1, np.nan, 0.2], np.float32)
    tell_of_nan("predict", ppl.model(walk), {"y": np.full((2, 3), np.nan)}, {}, (seen,))


def test_a_number_of_rows_from_outside_is_told_by_the_name_of_the_argument():
    fit = quick_fit(of_known_rows, slopes_and_values, (X, Y))
    with pytest.raises(
        ValueError, match=r"argument 'x' has the shape \(3,\), and \(8,\) at the fit"
    ):
        fit.predict(KEY, NEW, num_samples=2)


def entities(x, group, table, y=None):
    """Effects of as many things as the table has rows."""
    with ppl.plate("things", table.shape[0]):
        effect = ppl.sample("effect", dist.Normal(table, 1.0))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(effect[group] + x, 1e-3), obs=y)


def test_a_table_that_is_the_fits_is_about_the_same_things():
    """Also where it is as long as the rows; another one is about other things."""
    table, group = np.arange(8, dtype=np.float32), np.array([2, 1, 0])

    def guide(x, group, table, y=None):
        at = ppl.param("at", 10.0 * jnp.arange(8.0))
        with ppl.plate("things", 8):
            ppl.sample("effect", dist.Normal(at, 1e-3))

    fit = quick_fit(entities, guide, (X, np.arange(8), table, Y))
    y = fit.predict(KEY, NEW, group, table, num_samples=200)["y"]
    np.testing.assert_allclose(y.mean(0), 10.0 * group + NEW, atol=1e-2)
    with pytest.raises(ValueError, match="site 'effect' lies in plate 'things'"):
        fit.predict(KEY, NEW, group, table + 1.0, num_samples=2)


@pytest.mark.slow
def test_a_guide_that_looks_rows_up_by_an_index_of_theirs_reads_them():
    """Its table is as long as the rows of the fit were, and the index that only the guide reads goes with the rows."""

    def model(x, index, y=None):
        rows(x, y)

    def guide(x, index, y=None):
        slopes(x)
        table = ppl.param("table", 10.0 * jnp.arange(8.0))
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("u", dist.Normal(table[index], 1e-3))

    fit, index = quick_fit(model, guide, (X, np.arange(8), Y)), np.array([7, 1, 1, 3, 0, 0, 0, 2])
    mean = fit.predict(KEY, X, index, num_samples=200)["mean"].mean(0)
    np.testing.assert_allclose(mean, 1.5 * X + 10.0 * index, atol=0.1)


@pytest.mark.slow
def test_a_list_of_numbers_has_rows():
    def model(x, group, y=None):
        x, group = jnp.asarray(x), jnp.asarray(group)
        effect = ppl.sample("effect", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        shift = ppl.sample("shift", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1))
        obs = None if y is None else jnp.asarray(y)
        ppl.sample("y", dist.Normal(x + effect[group] + shift, 1.0).to_event(1), obs=obs)

    groups = [0, 1, 2, 0, 1, 2, 0, 1]
    fit = quick_fit(model, AutoNormal(model), (X.tolist(), groups, Y.tolist()))
    with pytest.raises(ValueError, match=r"'shift' has an axis of length 8.*keep=\['effect'\]"):
        fit.predict(KEY, FAR.tolist(), groups, num_samples=2)
    drawn = fit.predict(KEY, NEW.tolist(), groups[:3], keep=["effect"], num_samples=2)
    assert drawn["y"].shape == (2, 3)
