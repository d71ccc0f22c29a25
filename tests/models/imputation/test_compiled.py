"""`impute` compiles once for programs and series of equal shapes, and anew where the programs mean something else."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _compilations import compilations

from lapilli import ppl
from lapilli.models import imputation

SLOPE = 1.0


def toy():
    """X ~ N(SLOPE z, 1) for each cell, z ~ N(0, 1) of a series; with the prior as guide."""

    @ppl.model
    def model(data):
        with ppl.plate("rows", len(data.valid)):
            z = ppl.sample("z", dist.Normal(0.0, 1.0))
            loc = jnp.broadcast_to(SLOPE * z[:, None, None], jnp.shape(data.values))
            loc = ppl.deterministic("x_loc", loc + ppl.param("shift", 0.0))
            law = dist.Normal(loc, 1.0).to_event(2)
            x = ppl.sample("x", law, obs=data.values, obs_mask=jnp.asarray(data.observed))
            del x

    @ppl.model
    def guide(data):
        with ppl.plate("rows", len(data.valid)):
            ppl.sample("z", dist.Normal(jnp.zeros(len(data.valid)), 1.0))

    return model, guide


def series(num, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(num, 3, 1))
    values[rng.random(values.shape) < 0.3] = np.nan
    return imputation.series(values)


def run(model, guide, data, shift=0.0, key=None):
    key = jax.random.key(0) if key is None else key
    model = model.bind({"shift": jnp.asarray(shift)})
    return imputation.impute(
        model, guide, data, key, num_particles=4, num_imputations=2, batch_size=8
    )


def test_impute_compiles_once_while_the_programs_mean_the_same(monkeypatch):
    model, guide = toy()
    first = run(model, guide, series(11), 1.0)
    with compilations() as count:
        moved = run(model, guide, series(11, 1), 2.0)
        made_anew = run(*toy(), series(11), 1.0)  # another function, of the same meaning
    assert count() == 0
    np.testing.assert_array_equal(made_anew.x, first.x)
    assert not np.allclose(moved.x_loc, first.x_loc)
    monkeypatch.setitem(globals(), "SLOPE", 3.0)  # the same function, of another meaning
    with compilations() as count:
        steep = run(model, guide, series(11), 1.0)
    assert count() >= 1
    np.testing.assert_allclose(steep.x_loc - 1.0, 3 * (first.x_loc - 1.0), rtol=1e-5, atol=1e-6)


def test_with_own_keys_a_series_does_not_depend_on_the_others():
    model, guide = toy()
    data, keys = series(9), jax.random.split(jax.random.key(3), 9)
    whole = run(model, guide, data, key=keys)
    some = np.array([7, 2, 5, 0, 1, 3, 8, 4])
    part = run(model, guide, data.rows(some), key=keys[some])
    for name in ("x", "log_weights"):
        np.testing.assert_allclose(
            getattr(part, name), getattr(whole, name)[:, :, some], rtol=1e-6, atol=1e-6
        )
    assert np.unique(whole.x_loc[:, :, 0, 0]).size == whole.x_loc[:, :, 0, 0].size


def test_keys_of_another_number_are_refused():
    with pytest.raises(ValueError, match="argument 'key' holds 4 keys for 5 series. Give one"):
        run(*toy(), series(5), key=jax.random.split(jax.random.key(0), 4))
