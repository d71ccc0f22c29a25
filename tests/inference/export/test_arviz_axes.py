"""Names and labels of axes, names of variables, options and messages of to_arviz."""

import builtins
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl
from lapilli.inference.export import _arviz_tree
from lapilli.inference.export._arviz import to_arviz
from lapilli.inference.fitting import Fit, Posterior

MU = {"mu": np.arange(6.0)}


def axes(tree, group="posterior"):
    return {name: values.dims[2:] for name, values in tree[group].data_vars.items()}


def traces(fn, num_draws=3):
    keys = jax.random.split(jax.random.key(0), num_draws)
    return jax.vmap(ppl.model(fn).simulate)(keys)


@pytest.mark.slow
def test_axes_are_named_by_plates_regions_and_numbers():
    def program():
        with ppl.plate("columns", 2, dim=-1), ppl.plate("rows", 3, dim=-2):
            grid = ppl.sample("grid", dist.Normal(0, 1))
            ppl.deterministic("double", 2 * grid)
        ppl.sample("vector", dist.Normal(jnp.zeros((4, 5)), 1).to_event(1))
        ppl.particles(2)(lambda: ppl.sample("lane", dist.Normal(jnp.zeros(3), 1).to_event(1)))()
        with ppl.plate("rows", 3):
            ppl.scan(
                lambda c, _: (ppl.sample("walk", dist.Normal(c, 1)), None), jnp.zeros(3), None, 4
            )

    found = to_arviz(traces(program))
    assert axes(found) == {
        "grid": ("rows", "columns"),
        "vector": ("vector_dim_0", "vector_dim_1"),
        "lane": ("particles", "lane_dim_0"),
        "walk": ("time", "rows"),
        "double": ("rows", "columns"),
    }
    assert axes(found, "log_prior")["vector"] == ("vector_dim_0",)


def test_one_name_of_two_lengths_becomes_two_names():
    def program():
        for name, length in (("a", 3), ("b", 5)):
            step = lambda c, _, name=name: (ppl.sample(name, dist.Normal(c, 1)), None)
            ppl.scan(step, 0.0, None, length)

    assert axes(to_arviz(traces(program))) == {"a": ("a_time",), "b": ("b_time",)}
    named = to_arviz(traces(program), dims={"a": ["day"]}, coords={"day": list("xyz")})
    assert axes(named) == {"a": ("day",), "b": ("b_time",)}
    assert list(named["posterior"]["day"].values) == ["x", "y", "z"]
    with pytest.raises(ValueError, match=r"Sites \['a', 'b'\]: axis 't' has the lengths \[3, 5\]"):
        to_arviz(traces(program), dims={"a": ["t"], "b": ["t"]})


def test_an_empty_axis_stays():
    found = to_arviz({"z": np.zeros((3, 0)), "mu": np.zeros(3)}, dims={"z": ["rows"]})
    assert found["posterior"]["z"].sizes == {"chain": 1, "draw": 3, "rows": 0}


@pytest.mark.slow
def test_names_given_to_axes():
    draws = {"w": np.zeros((4, 2, 3))}
    assert axes(to_arviz(draws)) == {"w": ("w_dim_0", "w_dim_1")}
    assert axes(to_arviz(draws, dims={"w": ["a", "b"]})) == {"w": ("a", "b")}

    def program():
        with ppl.plate("rows", 2):
            ppl.sample("w", dist.Normal(jnp.zeros(3), 1).to_event(1))

    assert axes(to_arviz(traces(program), dims={"w": ["b"]})) == {"w": ("rows", "b")}
    assert axes(to_arviz(traces(program), dims={"w": ["a", "b"]})) == {"w": ("a", "b")}


def test_slashes_of_scopes_become_points(tmp_path):
    def program():
        with numpyro.handlers.scope(prefix="net"), ppl.plate("rows", 2):
            ppl.sample("w", dist.Normal(0, 1))

    found = to_arviz(traces(program), path=tmp_path / "scope.nc", dims={"net/w": ["net/rows"]})
    assert axes(found) == {"net.w": ("net.rows",)}
    with pytest.raises(ValueError, match="Site 'a.b': its name is 'a.b' in the tree.*Rename"):
        to_arviz({"a/b": np.zeros(3), "a.b": np.zeros(3)})


@pytest.mark.parametrize(
    "array",
    [np.zeros(3, np.float16), jnp.zeros(3, jnp.bfloat16), np.zeros(3, np.int16), np.ones(3, bool)],
    ids=["float16", "bfloat16", "int16", "bool"],
)
def test_every_kind_of_number_survives_a_file(array, tmp_path):
    import arviz

    path = tmp_path / "draws.nc"
    found = to_arviz({"z": array}, path=path)
    with arviz.from_netcdf(path) as read:
        np.testing.assert_array_equal(read["posterior"]["z"].values[0], np.asarray(array, float))
        assert read.load().identical(found)
    assert "mean" in arviz.summary(found).columns


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dims": {"mu": ["a"]}},
            r"Site 'mu': argument 'dims' gives 1 names, \['a'\], for 0 axes.*Leave it out",
        ),
        ({"dims": {"nu": ["a"]}}, r"'dims' names \['nu'\], but the variables are \['mu'\]"),
        ({"coords": {"row": [1]}}, "'coords' names the axis 'row'.*Correct the name"),
        ({"groups": ["prior"]}, r"'groups' asks for \['prior'\].*Pass model="),
        ({"groups": ["predictions"]}, "'groups' must be a collection of some of"),
        ({"groups": "prior"}, "groups must be a list of names or None, got 'prior'"),
        ({"group": "draws"}, "group must be 'posterior' or 'prior', got 'draws'"),
        (
            {"group": "prior", "log_weights": np.zeros(6), "resample": "none"},
            "use group='posterior'",
        ),
        ({"group": "prior", "groups": ["log_prior"]}, "cannot be computed.*Leave them out"),
        ({"resample": "sir"}, "resample must be 'none', 'psis' or None, got 'sir'"),
        ({"resample": "psis"}, "needs log-weights, but no log_weights came.*pass log_weights"),
        ({"log_weights": np.zeros(6)}, "'resample' is needed for weighted draws.*'psis'"),
        ({"log_weights": np.zeros(6), "resample": "psis"}, "'key' is missing: resample='psis'"),
        ({"log_weights": np.zeros(5), "resample": "none"}, "one leading axis.*Stack the draws"),
        ({"num_samples": 0, "batch_size": 0}, "'num_samples' must be.*\n.*'batch_size' must be"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        to_arviz(MU, **options)


@pytest.mark.parametrize(
    ("draws", "options", "message"),
    [
        ({"mu": np.zeros(3), "nu": np.zeros(4)}, {}, "one leading axis of equal length"),
        ({"mu": np.array(1.0)}, {}, "one leading axis of equal length"),
        ({}, {}, "one leading axis of equal length"),
        (
            {"a": np.zeros((3, 2))},
            {"dims": {"a": ["chain"]}},
            "'chain' has the name of a variable or",
        ),
        ({"a": np.zeros((3, 2)), "b": np.zeros(3)}, {"dims": {"a": ["b"]}}, "Rename the plate"),
        (
            {"a": np.zeros((3, 2, 2))},
            {"dims": {"a": ["b", "b"]}},
            "two of its axes have the same name",
        ),
        (
            {"a": np.zeros((3, 2))},
            {"dims": {"a": ["b"]}, "coords": {"b": [1, 2, 3]}},
            "3 labels for axis 'b' of length 2",
        ),
    ],
    ids=["lengths", "scalar", "empty", "chain", "variable", "twice", "labels"],
)
def test_impossible_draws_are_refused(draws, options, message):
    with pytest.raises(ValueError, match=message):
        to_arviz(draws, **options)


def test_a_result_of_another_kind_is_refused():
    with pytest.raises(
        TypeError, match="'result' is a ndarray. Pass a Fit, the Draws of infer or nuts, a mapping"
    ):
        to_arviz(np.zeros(3))


def model(x):
    mu = ppl.sample("mu", dist.Normal(0, 1))
    with ppl.plate("rows", 4, subsample_size=2 if x is None else None):
        ppl.sample("x", dist.Normal(mu, 1), obs=x)


def guide(x):
    ppl.sample("mu", dist.Normal(0, 1))


def fitted(objective, args):
    return Fit(objective, {}, {}, {}, {}, args, 0, 0, None, "num_steps")


@pytest.mark.parametrize(
    ("result", "options", "message"),
    [
        ((model, guide, (np.zeros(4),)), {"key": None}, "'key' is missing: a fit has no draws"),
        ((model, None, (np.zeros(4),)), {}, "objective has no guide.*model=fit.model"),
        ((model, guide, None), {}, r"'args' is missing: .*iterable.*Pass args="),
        (
            (model, guide, (None,)),
            {},
            "Plate 'rows' subsamples 2 of 4 rows.*without subsample_size",
        ),
        ((model, lambda x: None, (np.zeros(4),)), {}, r"misses the latent site\(s\) \['mu'\]"),
        ((model, guide, (np.zeros(4),)), {"log_weights": np.zeros(3)}, "a Fit has its own"),
        ((lambda: None, lambda: None, ()), {}, "has no latent site.*Use fit.predict"),
    ],
    ids=["key", "guide", "args", "subsample", "missing", "weights", "latents"],
)
def test_impossible_fits_are_refused(key, result, options, message):
    model, guide, args = result
    objective = inference.objective(lambda model, guide, *args: 0.0)(model, guide)
    with pytest.raises(ValueError, match=message):
        to_arviz(fitted(objective, args), **{"key": key, "num_samples": 5} | options)


def test_draws_that_do_not_fit_the_model_are_refused(key):
    for draws, name in ({"nu": np.zeros(3)}, "missing .'mu'"), (MU | {"nu": np.zeros(6)}, "nu"):
        with pytest.raises(ppl.ChoiceMismatch, match=name):
            to_arviz(draws, model=model, args=(np.zeros(4),))


def test_traces_without_draws_or_with_several_data_sets_are_refused(key):
    program = ppl.model(model)
    with pytest.raises(
        ValueError, match=r"Site 'mu': the trace holds an array of shape \(\).*jax.vmap"
    ):
        to_arviz(program.simulate(key, np.zeros(4)))
    many = jax.vmap(program.simulate)(jax.random.split(key, 3), jnp.arange(12.0).reshape(3, 4))
    with pytest.raises(ValueError, match="Site 'x': its observed value differs between the draws"):
        to_arviz(many)


def test_an_improper_prior_is_refused_unless_left_out(key):
    def program():
        ppl.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))

    options = {"model": program, "key": key}
    with pytest.raises(ValueError, match="cannot be drawn from its prior.*out of groups="):
        to_arviz(MU, **options)
    assert "posterior" in to_arviz(MU, groups=["log_prior"], **options).children


def test_a_missing_netcdf_library_is_named_before_any_work(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    absent = lambda name, *rest: None if name in ("netCDF4", "h5netcdf") else find(name, *rest)
    monkeypatch.setattr(_arviz_tree.importlib.util, "find_spec", absent)
    with pytest.raises(ImportError, match="neither netCDF4 nor h5netcdf.*lapilli.netcdf"):
        to_arviz(MU, path=tmp_path / "draws.nc")
    assert "posterior" in to_arviz(MU).children


def test_a_missing_arviz_is_named(monkeypatch):
    real = builtins.__import__

    def fake(name, *rest):
        if name == "arviz_base":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", fake)
    with pytest.raises(ImportError, match="to_arviz needs ArviZ.*pip install 'arviz"):
        to_arviz(MU)


def test_a_posterior_is_weighted_draws():
    with pytest.raises(ValueError, match="'resample' is needed for weighted draws"):
        to_arviz(Posterior(MU, np.zeros(6)))


def test_cells_that_a_mask_leaves_out_are_in_no_sum_over_observations():
    """Leave-one-out of the mean of four normal rows, of which one does not count: one density for each of the others."""
    y, seen = np.array([0.3, np.nan, 1.0, -0.5]), np.array([True, False, True, True])

    def model(y, seen):
        loc = ppl.sample("loc", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", 4), numpyro.handlers.mask(mask=seen):
            ppl.sample("y", dist.Normal(loc, 1.0), obs=y)

    draws = {"loc": jnp.linspace(-1.0, 1.0, 20)}
    tree = inference.to_arviz(draws, model=model, args=(y, seen))
    exact = dist.Normal(draws["loc"][:, None], 1.0).log_prob(y[seen])
    np.testing.assert_allclose(tree.log_likelihood["y"].values[0], exact, rtol=1e-6)
    assert list(tree.log_likelihood["y_cell"].values) == [0, 2, 3]
    np.testing.assert_array_equal(tree.observed_data["y"].values, y[seen].astype(np.float32))


@pytest.mark.parametrize("scale", [10.0, np.array([1.0, 2.0, 3.0])])
def test_observations_that_are_scaled_have_no_log_likelihoods(scale):
    """A row that counts ten times: leave-one-out would take its log-prob for that of one row."""

    def model(y):
        loc = ppl.sample("loc", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", 3):
            ppl.sample("x", dist.Normal(loc, 1.0), obs=y)
            with numpyro.handlers.scale(scale=scale):
                ppl.sample("y", dist.Normal(loc, 1.0), obs=y)

    options = {"model": model, "args": (np.zeros(3),)}
    tree = to_arviz({"loc": np.zeros(4)}, **options)
    assert list(tree["log_likelihood"].data_vars) == ["x"]
    assert tree["posterior"].attrs["log_likelihood"].startswith("none of ['y']: ")
    with pytest.raises(ValueError, match=r"'log_likelihood' cannot be made: .*{'y': .*are scaled"):
        to_arviz({"loc": np.zeros(4)}, groups=["log_likelihood"], **options)


@pytest.mark.parametrize("name", ["chain", "draw", "sample"])
def test_variables_with_the_names_of_sample_axes_are_refused(name):
    """A coordinate would take their place."""
    with pytest.raises(ValueError, match=rf"\['{name}'\].*names of sample axes.*Rename"):
        to_arviz({name: np.arange(5.0), "mu": np.zeros(5)})


@pytest.mark.parametrize("has_model", [True, False])
def test_cells_that_count_are_told_by_the_mask_and_not_by_log_probs(has_model):
    """Uniform on (0, 1) has a log-density of 0 everywhere; without log-probs there is nothing else to tell by."""
    y, seen = np.array([0.3, 9.0, 0.9], np.float32), np.array([True, False, True])

    def model(y, seen):
        ppl.sample("loc", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", 3):
            ppl.sample("y", dist.Uniform(0.0, 1.0).mask(seen), obs=y)

    loc = jnp.linspace(-1.0, 1.0, 4)
    if has_model:
        more = {"model": model, "args": (y, seen), "key": jax.random.key(0)}
        tree = to_arviz({"loc": loc}, groups=["posterior_predictive", "observed_data"], **more)
        assert tree["posterior_predictive"]["y"].dims == ("chain", "draw", "y_cell")
    else:
        program = ppl.as_program(model)
        tree = to_arviz(jax.vmap(lambda x: program.trace({"loc": x}, y, seen))(loc))
        assert tree["log_likelihood"]["y"].shape == (1, 4, 2)
    np.testing.assert_array_equal(tree["observed_data"]["y"], y[seen])
