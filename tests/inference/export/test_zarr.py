"""Draws in a Zarr folder: block by block the numbers of the tree in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import xarray

from lapilli import inference, ppl
from lapilli.inference.export import _arviz, _zarr
from lapilli.inference.fitting import Fit
from lapilli.inference.particles.parameters import PMMHResult

zarr = pytest.importorskip("zarr")

X = np.linspace(0.5, 3.0, 6, dtype=np.float32)
MASK = np.array([True, True, False, True, True, True])
KEY = jax.random.key(0)
CASES = ["fit", "draws", "weights", "chains"]


@ppl.model
def model(x):
    mu = ppl.sample("mu", dist.Normal(0, 1))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("x", dist.Normal(mu, 1).mask(MASK), obs=x)
    ppl.deterministic("positive", mu > 0)


@ppl.model
def guide(x):
    ppl.sample("mu", dist.Normal(0.9, 0.4))


def options(case):
    """A result, and how it is read."""
    draws = {"mu": np.random.default_rng(0).normal(size=70).astype(np.float32)}
    if case == "fit":
        bound = inference.elbo(model, guide)
        fit = Fit(bound, {}, {}, {}, {"value": np.zeros(0)}, (X,), 0, 0, None, "num_steps")
        return fit, {"coords": {"c_dim_0": list("abc")}}
    if case == "chains":
        two = {"mu": draws["mu"].reshape(2, 35)}
        result = PMMHResult(two, {}, np.zeros((2, 35)), np.ones((2, 35), bool), 1.0, np.eye(1))
        return result, {"model": model, "args": (X,)}
    more = (
        {"log_weights": np.linspace(0.0, 1.0, 70), "resample": "psis"} if case == "weights" else {}
    )
    return draws, {"model": model, "args": (X,), **more}


@pytest.mark.parametrize("case", CASES)
def test_blocks_are_the_tree_in_memory(case, tmp_path, monkeypatch):
    """To the bit: three blocks, the last one smaller, of draws, predictions and log-likelihoods, and of the prior."""
    monkeypatch.setattr(_arviz, "_BATCHES", 3)
    result, more = options(case)
    more |= {"key": KEY, "num_samples": 70, "batch_size": 10, "constant_data": {"c": np.ones(3)}}
    want = inference.to_arviz(result, **more)
    found = inference.to_arviz(result, **more, path=tmp_path / "run.zarr")
    assert set(found.children) == set(want.children)
    for name, group in want.children.items():
        told, wanted = (dict(x.attrs) for x in (found[name], group))
        del told["created_at"], wanted["created_at"]
        np.testing.assert_equal(told, wanted)
        assert dict(found[name].sizes) == dict(group.sizes)
        for variable, array in group.variables.items():
            np.testing.assert_array_equal(found[name][variable].values, array.values, variable)
            assert found[name][variable].dims == array.dims
    chunks = zarr.open_group(tmp_path / "run.zarr", mode="r")["log_likelihood/x"].chunks
    assert chunks == (want.posterior.sizes["chain"], 30, 5)  # a block of the five cells that count


def test_values_are_read_when_they_are_asked_for(tmp_path, monkeypatch):
    result, more = options("draws")
    tree = inference.to_arviz(result, key=KEY, **more, path=tmp_path / "run.zarr")
    assert not tree["posterior"]["mu"].variable._in_memory
    again = xarray.open_datatree(tmp_path / "run.zarr", engine="zarr")
    np.testing.assert_array_equal(again.posterior["mu"], tree.posterior["mu"])
    with pytest.raises(
        ValueError, match="is there already, and a folder is not overwritten. Delete it"
    ):
        inference.to_arviz(result, key=KEY, **more, path=tmp_path / "run.zarr")


def test_zarr_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(_zarr.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"zarr is not installed. Install lapilli\[zarr\]"):
        inference.to_arviz({"mu": np.zeros(3)}, path="run.zarr")


def test_cells_that_count_stay_in_all_blocks_though_their_log_probs_are_zero(tmp_path, monkeypatch):
    """What is uniform on (0, 1) has a log-density of 0, as a masked cell has."""
    monkeypatch.setattr(_arviz, "_BATCHES", 1)

    def certain(x):
        p = ppl.sample("p", dist.Normal(0, 1))
        with ppl.plate("rows", 3):
            ppl.sample("x", dist.Uniform(0.0, p).mask(jnp.array([True, True, False])), obs=x)

    draws = {"p": np.array([1.0, 1.0, 2.0, 2.0], np.float32)}
    tree = inference.to_arviz(
        draws, model=certain, args=(np.full(3, 0.5, np.float32),), batch_size=2, path=tmp_path / "run.zarr",
        groups=["log_likelihood"],
    )  # fmt: skip
    want = -np.log(np.repeat([1.0, 1.0, 2.0, 2.0], 2).reshape(1, 4, 2))
    np.testing.assert_allclose(tree["log_likelihood"]["x"], want, atol=1e-6)


def test_draws_that_arviz_reads_whole_are_refused(tmp_path):
    from numpyro.infer import MCMC, NUTS

    mcmc = MCMC(NUTS(model), num_warmup=5, num_samples=5, progress_bar=False)
    with pytest.raises(ValueError, match="ArviZ reads those of a NumPyro MCMC whole. Pass"):
        inference.to_arviz(mcmc, path=tmp_path / "run.zarr")
