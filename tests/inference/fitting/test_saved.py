"""A saved fit comes back as it was, to its own programs only; an exported one draws what it drew."""

import dataclasses
import json
import os
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer.autoguide import AutoNormal

from lapilli import inference, ppl
from lapilli.inference.fitting.stationarity import Averaging
from lapilli.inference.fitting.storage import _archive

KEY = jax.random.key(0)
X = np.linspace(-1.0, 1.0, 6, dtype=np.float32)
Y = 0.7 * X + 0.1
OFFSETS = np.linspace(0.0, 1.0, 5)


def programs(prior_scale=1.0, law=dist.Normal, offsets=OFFSETS, obs_scale=0.5, extra=False):
    """A regression with a strategy that keeps a state, and its guide."""

    @ppl.model
    def line(x, y=None):
        slope = ppl.sample("slope", law(0.0, prior_scale))
        kind = ppl.sample("kind", dist.Bernoulli(0.3))
        if extra:
            ppl.factor("extra", -(slope**2))
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("y", dist.Normal(slope * x + kind + offsets[0], obs_scale), obs=y)

    @ppl.model
    def guide(x, y=None):
        scale = ppl.param("scale", 0.4, constraint=dist.constraints.positive)
        ppl.sample("slope", dist.Normal(ppl.param("loc", 0.3), scale))
        ppl.sample("kind", dist.Bernoulli(logits=ppl.param("logit", 0.0)))

    return line, guide


def bound(**options):
    """With a moving average at the discrete site, which is a state; `other` has none."""
    chosen = (
        ppl.Reinforce()
        if options.pop("other", False)
        else ppl.Reinforce(baseline=ppl.strategies.MovingAverage())
    )
    return inference.elbo(*programs(**options), strategies={"kind": chosen})


def fitted(objective=None, args=None, **options):
    args = {"x": X, "y": Y} if args is None else args
    settings = {"num_steps": 6, "key": KEY, "progress": False} | options
    return inference.fit(objective or bound(), optax.adam(0.1), args, **settings)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    fit = fitted()
    path = tmp_path_factory.mktemp("saved") / "fit.npz"
    fit.save(path)
    return fit, path


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(
        jax.tree.map(np.array_equal, a, b)
    )


def as_it_was(fit, path, objective=None, **options):
    again = inference.Fit.load(path, objective or bound(), **options)
    for name in ("params", "last_params", "state"):
        assert same(getattr(fit, name), getattr(again, name)), name
    np.testing.assert_array_equal(fit.history["value"], again.history["value"])
    assert (fit.steps, fit.num_seeds, fit.stop_reason) == (
        again.steps, again.num_seeds, again.stop_reason
    )  # fmt: skip
    return again


def test_a_fit_comes_back_whole(saved):
    fit, path = saved
    assert jax.tree.leaves(fit.state)
    again = as_it_was(fit, path)
    assert same(fit.args, again.args) and again.params.constraints == fit.params.constraints
    draws, other = (f.predict(KEY, X[:3], num_samples=4)["y"] for f in (fit, again))
    np.testing.assert_array_equal(draws, other)


def test_the_file_is_plain_numpy_and_json(saved):
    fit, path = saved
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["params/loc"], fit.params["loc"])
        header = json.loads(str(file["header"]))
    assert header["steps"] == 6 and header["versions"]["jax"] == jax.__version__


def test_the_fit_of_a_model_alone_is_loaded_with_the_model(tmp_path):
    model = ppl.condition(programs()[0], {"kind": 1.0})
    fit = inference.fit(model, args=(X, Y), num_steps=3, key=KEY, progress=False, k_hat="skip")
    fit.save(tmp_path / "fit.npz")
    again = as_it_was(fit, tmp_path / "fit.npz", model)
    for f in (fit, again):
        assert np.isfinite(f.posterior(KEY, 3).log_weights).all()
    other = ppl.condition(programs(obs_scale=0.4)[0], {"kind": 1.0})
    with pytest.raises(ValueError, match="belongs to another objective"):
        inference.Fit.load(tmp_path / "fit.npz", other)


@pytest.mark.slow
def test_what_is_known_of_averaged_iterates_comes_back(tmp_path):
    fit = fitted(average="stationary")
    known = Averaging(
        *map(jnp.asarray, (4, 2)),
        jax.tree.map(jnp.ones_like, fit.params),
        jax.tree.map(jnp.zeros_like, fit.params),
        jnp.asarray(jnp.nan),
        {"w": (0.5, 0.1)},
    )
    fit = dataclasses.replace(fit, averaging=known)
    fit.save(tmp_path / "fit.npz")
    again = as_it_was(fit, tmp_path / "fit.npz").averaging
    assert same(
        (again.start, again.count, again.spread, again.error),
        (known.start, known.count, known.spread, known.error),
    )
    assert np.isnan(again.r_hat) and again.noise == known.noise


@pytest.mark.slow_for("None", "polyak")
@pytest.mark.parametrize("average", [None, "polyak"])
def test_fits_with_seeds_and_averages_come_back(tmp_path, average):
    fit = fitted(num_seeds=2, average=average)
    fit.save(tmp_path / "fit.npz")
    again = as_it_was(fit, tmp_path / "fit.npz")
    assert (again.params is again.last_params) == (average is None)
    assert same(again.best().params, fit.best().params)


@pytest.mark.slow
def test_without_data_shapes_are_known(tmp_path):
    fit = fitted()
    fit.save(tmp_path / "fit.npz", data=False)
    again = as_it_was(fit, tmp_path / "fit.npz")
    assert again.args is None
    with pytest.raises(ValueError, match="were not saved. Pass the arguments"):
        again.posterior(KEY, 3)
    given = as_it_was(fit, tmp_path / "fit.npz", args=(X, Y))
    assert given.posterior(KEY, 3).log_weights.shape == (3,)
    assert os.path.getsize(tmp_path / "fit.npz") > 0
    with np.load(tmp_path / "fit.npz") as file:
        assert not [name for name in file.files if name.startswith("args")]


@pytest.mark.slow
def test_a_fit_of_batches_knows_the_shapes_of_one(tmp_path):
    fit = fitted(args=[(X, Y)], plate_sizes={})
    fit.save(tmp_path / "fit.npz")
    assert as_it_was(fit, tmp_path / "fit.npz").args is None


def test_arguments_of_many_kinds_come_back(tmp_path):
    @ppl.model
    def model(data, key, flags):
        slope = ppl.sample("slope", dist.Normal(0.0, flags[1]))
        ppl.sample("y", dist.Normal(slope * data["x"][0], 1.0).to_event(1), obs=data["y"])

    def guide(data, key, flags):
        ppl.sample("slope", dist.Normal(ppl.param("loc", 0.0), 1.0))

    args = ({"x": [X.astype(np.float64)], "y": jnp.asarray(Y)}, KEY, (True, 2.0, None, "text"))
    objective = inference.elbo(model, guide)
    fit = fitted(objective, args)
    fit.save(tmp_path / "fit.npz")
    again = as_it_was(fit, tmp_path / "fit.npz", objective).args
    assert jax.tree.structure(again) == jax.tree.structure(args) and again[2] == args[2]
    assert again[0]["x"][0].dtype == np.float64 and same(again[0], args[0])
    assert jnp.array_equal(jax.random.key_data(again[1]), jax.random.key_data(KEY))


@pytest.mark.slow
def test_an_autoguide_meets_its_model_in_the_file(tmp_path):
    auto = lambda: (lambda model: inference.elbo(model, AutoNormal(model)))(
        ppl.condition(programs()[0], {"kind": 1.0})
    )
    fit = fitted(auto())
    fit.save(tmp_path / "fit.npz")
    as_it_was(fit, tmp_path / "fit.npz", auto())
    fit.save(tmp_path / "bare.npz", data=False)
    with pytest.raises(ValueError, match="AutoNormal: the autoguide has not met its model"):
        inference.Fit.load(tmp_path / "bare.npz", auto())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior_scale": 2.0}, "model, 'slope': another computation of its log-density"),
        ({"law": dist.Laplace}, "model, 'slope': latent Normal.* in the file, latent Laplace"),
        ({"offsets": 2 + OFFSETS}, "model, 'y': another computation of its log-density"),
        ({"obs_scale": 0.4}, "model, 'y': another computation of its log-density"),
        ({"extra": True}, "model, 'extra': absent in the file, factor"),
        ({"other": True}, "state.*absent now"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_another_program_is_refused_by_name(saved, options, message):
    with pytest.raises(ValueError, match=f"(?s)belongs to another objective.*{message}"):
        inference.Fit.load(saved[1], bound(**options))


def test_another_objective_and_guide_are_refused_by_name(saved):
    model, _ = programs()
    with pytest.raises(ValueError, match="'name': elbo in the file, iwelbo now"):
        inference.Fit.load(
            saved[1], inference.iwelbo(*programs(), num_particles=2, strategies="auto")
        )
    other = ppl.model(
        lambda x, y=None: ppl.sample("slope", dist.Normal(ppl.param("loc", 0.3), 1.0))
    )
    with pytest.raises(ValueError, match="params, 'scale': .*Positive in the file, absent now"):
        inference.Fit.load(saved[1], inference.elbo(ppl.condition(model, {"kind": 1.0}), other))


def test_other_weights_and_strategies_are_refused(tmp_path):
    programs_ = programs()
    weighted = lambda w: inference.elbo(
        *programs_, strategies={"kind": "enum"}, site_weights={"y": w}
    )
    fitted(weighted(0.1)).save(tmp_path / "fit.npz")
    with pytest.raises(ValueError, match="'site_weights': {'y': 0.1} in the file, {'y': 0.9} now"):
        inference.Fit.load(tmp_path / "fit.npz", weighted(0.9))


@pytest.mark.slow
def test_rows_of_the_fit_are_not_exported_for_others(tmp_path):
    """An exported function is called with other rows, also where its examples are those of the fit."""

    def rows(x, y=None):
        with ppl.plate("rows", x.shape[0]):
            u = ppl.sample("u", dist.Normal(x, 1.0))
            ppl.sample("y", dist.Normal(u, 0.1), obs=y)

    fit = fitted(inference.elbo(rows, AutoNormal(rows)))
    for symbolic in (True, False):
        with pytest.raises(ValueError, match="site 'u' lies in plate 'rows' of length 6"):
            fit.export(tmp_path / "served", symbolic_rows=symbolic)
    fit.export(tmp_path / "served", keep="*", symbolic_rows=False)


def with_header(path, new, **changes):
    header, arrays = _archive.read(path, "file", "fit 2")
    _archive.write(new, header | changes, arrays)


def test_other_versions_are_warned_of(saved, tmp_path):
    with_header(
        saved[1],
        tmp_path / "old.npz",
        versions={"lapilli": "0.1.0", "jax": "0.1", "numpyro": "0.2"},
    )
    with pytest.warns(UserWarning, match="written by.*jax 0.1, now.*was not compared") as told:
        inference.Fit.load(tmp_path / "old.npz", bound(prior_scale=2.0))
    assert told[0].filename == __file__  # the line that called
    with (
        pytest.raises(ValueError, match="(?s)latent Laplace.*jax 0.1, now"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        inference.Fit.load(tmp_path / "old.npz", bound(law=dist.Laplace))


def test_files_of_before_there_were_digests_are_read(saved, tmp_path):
    """Their hashes were of another kind, and are not compared."""
    fit, path = saved
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != "digest"}
    header = json.loads(str(arrays.pop("header")))
    del header["entries"], header["versions"]["hashes of lapilli"]
    np.savez(tmp_path / "old.npz", header=json.dumps(header), **arrays)
    with pytest.warns(UserWarning, match="written by hashes of lapilli None, now 2.*not compared"):
        as_it_was(fit, tmp_path / "old.npz")


def test_numbers_of_another_width_are_refused(saved, tmp_path):
    header, arrays = _archive.read(saved[1], "file", "fit 2")
    arrays["params/loc"] = arrays["params/loc"].astype(np.float64)
    _archive.write(tmp_path / "wide.npz", header, arrays)
    with pytest.raises(ValueError, match="params/loc: float64 in the file, float32 now"):
        inference.Fit.load(tmp_path / "wide.npz", bound())


def test_what_is_no_saved_fit_is_refused(saved, tmp_path):
    np.savez(tmp_path / "other.npz", x=X)
    with pytest.raises(ValueError, match="is no file of Fit.save.*header"):
        inference.Fit.load(tmp_path / "other.npz", bound())
    with_header(saved[1], tmp_path / "old.npz", format="fit 0")
    with pytest.raises(ValueError, match="has the format 'fit 0'.*'fit 2'"):
        inference.Fit.load(tmp_path / "old.npz", bound())


class Apart(np.ndarray):
    """An array of which this process holds a part, as far as a file asks."""

    is_fully_addressable = is_fully_replicated = False


@pytest.mark.parametrize("part", ["params", "state"])
def test_parameters_in_parts_over_processes_are_refused(saved, part, tmp_path):
    fit = saved[0]
    held = jax.tree.map(lambda x: np.asarray(x).view(Apart), dict(getattr(fit, part)))
    apart = dataclasses.replace(fit, **{part: held})
    with pytest.raises(ValueError, match=rf"Fit.save: '{part}/.* in parts.*process_allgather"):
        apart.save(tmp_path / "fit.npz")
    assert not (tmp_path / "fit.npz").exists()


def test_an_argument_that_no_file_holds_is_refused(tmp_path):
    model, guide = (ppl.model(lambda x, y, fn, of=of: of.fn(fn(x), y)) for of in programs())
    objective = inference.elbo(model, guide, strategies={"kind": "enum"})
    fit = fitted(objective, (X, Y, jnp.square))
    with pytest.raises(ValueError, match="'args/2' is a Pjit.*data=False"):
        fit.save(tmp_path / "fit.npz")
    fit.save(tmp_path / "fit.npz", data=False)
    with pytest.raises(ValueError, match="has no arguments of the program.*args="):
        inference.Fit.load(tmp_path / "fit.npz", objective)
    as_it_was(fit, tmp_path / "fit.npz", objective, args=(X, Y, jnp.square))


SERVE = """
import sys
class Alone:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("lapilli", "numpyro", "optax", "equinox"):
            raise ImportError(name)
sys.meta_path.insert(0, Alone())
import jax, jax.export, numpy as np
served = jax.export.deserialize(open(sys.argv[1], "rb").read())
keys = jax.random.key_data(jax.random.split(jax.random.key(0), 4))
draws = served.call(keys, {"x": np.load(sys.argv[2])})
np.savez(sys.argv[3], **draws["posterior"], **draws["predictive"])
"""


@pytest.mark.slow
def test_an_exported_fit_draws_the_same_with_jax_alone(saved, tmp_path):
    fit, _ = saved
    fit.export(tmp_path / "served", X)
    new = np.array([0.3, -2.0, 1.0, 4.0], np.float32)  # as many rows as no array had before
    np.save(tmp_path / "x.npy", new)
    files = [str(tmp_path / name) for name in ("served", "x.npy", "draws.npz")]
    subprocess.run([sys.executable, "-c", SERVE, *files], check=True)
    predicted = fit.predict(KEY, new, num_samples=4)
    with np.load(files[2]) as draws:
        assert set(draws.files) == {"slope", "kind", "y"}
        np.testing.assert_allclose(draws["y"], predicted["y"], rtol=1e-6)


@pytest.mark.slow
def test_a_table_as_long_as_the_rows_stays_so_long_in_an_exported_fit(tmp_path):
    def model(x, group, table, y=None):
        slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("y", dist.Normal(slope * x + table[group], 0.1), obs=y)

    def guide(x, group, table, y=None):
        ppl.sample("slope", dist.Normal(ppl.param("at", 0.0), 1.0))

    group, table = np.arange(6), np.arange(6, dtype=np.float32)
    fit = fitted(inference.elbo(model, guide), (X, group, table, Y), num_steps=1)
    fit.export(tmp_path / "served", X, group, table)
    served = jax.export.deserialize((tmp_path / "served").read_bytes())
    keys = jax.random.key_data(jax.random.split(KEY, 2))
    new = {"x": X[:3], "group": group[3:], "table": table}
    drawn = served.call(keys, new)["predictive"]["y"]
    np.testing.assert_allclose(drawn, fit.predict(KEY, num_samples=2, **new)["y"], rtol=1e-6)


@pytest.mark.slow
def test_kept_sites_leave_the_data_of_the_fit_out_of_the_file(tmp_path):
    many = np.linspace(0.0, 1.0, 100_000, dtype=np.float32)
    fit = fitted(args=(many, many), num_steps=1)
    fit.export(tmp_path / "served", X, keep="*")
    assert os.path.getsize(tmp_path / "served") < 100_000


@pytest.mark.slow
def test_a_program_that_must_know_its_rows_is_exported_for_one_number(tmp_path):
    @ppl.model
    def model(y):
        slope = ppl.sample("slope", dist.Normal(0.0, 1.0))

        def step(last, y):
            ppl.sample("y", dist.Normal(slope * last, 1.0), obs=y)
            return y, None

        ppl.scan(step, 0.0, jnp.cumsum(y) if y.shape[0] == 6 else y)

    def guide(y):
        ppl.sample("slope", dist.Normal(ppl.param("loc", 0.0), 1.0))

    fit = fitted(inference.elbo(model, guide), (Y,), num_steps=1)
    with pytest.raises(
        ValueError, match="(?s)any number of rows, the leading axis of 'y'.*symbolic_rows=False"
    ):
        fit.export(tmp_path / "served")
    fit.export(tmp_path / "served", symbolic_rows=False)
    served = jax.export.deserialize((tmp_path / "served").read_bytes())
    keys = jax.random.key_data(jax.random.split(KEY, 2))
    drawn = served.call(keys, {"y": Y})["predictive"]["y"]
    np.testing.assert_allclose(drawn, fit.predict(KEY, num_samples=2)["y"], rtol=1e-6)


@pytest.mark.slow
def test_a_program_that_decides_by_its_number_of_rows_is_caught(tmp_path):
    """An open number of rows is unequal to 6 without an error."""

    def model(y):
        slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", y.shape[0]):
            ppl.sample("y", dist.Normal(5.0 if y.shape[0] == 7 else slope, 1.0), obs=y)

    guide = lambda y: ppl.sample("slope", dist.Normal(ppl.param("loc", 0.0), 1.0))
    fit = fitted(inference.elbo(model, guide), (Y,), num_steps=1)
    with pytest.raises(
        ValueError, match=r"site 'y' is drawn otherwise.*'y': \(7,\).*symbolic_rows"
    ):
        fit.export(tmp_path / "served")
    assert not (tmp_path / "served").exists()


def test_export_names_the_package_that_it_needs(saved, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ImportError, match=r"flatbuffers is missing.*lapilli\[export\]"):
        saved[0].export(tmp_path / "served", X)


def test_values_that_a_program_records_belong_to_it(tmp_path):
    def bound_of(factor):
        def model(x, y=None):
            slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
            ppl.deterministic("doubled", factor * slope)

        return inference.elbo(
            model, lambda x, y=None: ppl.sample("slope", dist.Normal(ppl.param("loc", 0.0), 1.0))
        )

    fitted(bound_of(2.0), unobserved="allow").save(tmp_path / "fit.npz")
    inference.Fit.load(tmp_path / "fit.npz", bound_of(2.0))
    with pytest.raises(ValueError, match="model, 'doubled': another computation of its value"):
        inference.Fit.load(tmp_path / "fit.npz", bound_of(3.0))


@pytest.mark.slow(reason="an export and what reads it")
def test_the_guide_alone_is_exported_as_an_encoder_is_served(saved, tmp_path):
    fit, _ = saved
    with pytest.raises(
        ValueError, match="Fit.export: only must be 'posterior' or None, got 'guide'"
    ):
        fit.export(tmp_path / "served", X, only="guide")
    fit.export(tmp_path / "served", X, only="posterior")
    served = jax.export.deserialize((tmp_path / "served").read_bytes())
    keys = jax.random.key_data(jax.random.split(KEY, 3))
    drawn = served.call(keys, {"x": X[:4]})
    assert list(drawn) == ["posterior"]
    whole = tmp_path / "whole"
    fit.export(whole, X)
    both = jax.export.deserialize(whole.read_bytes()).call(keys, {"x": X[:4]})
    assert same(drawn["posterior"], both["posterior"])
    assert os.path.getsize(tmp_path / "served") < os.path.getsize(whole)
