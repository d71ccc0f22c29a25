"""Minibatches of files that are mapped into memory: the rows of data in memory, and never all of them at once."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

from lapilli import inference, ppl
from lapilli.inference._arguments import is_mapped
from lapilli.inference.fitting.data import _minibatches
from lapilli.inference.fitting.storage import _checkpoint

NUM, KEY = 3000, jax.random.key(0)


def model(x, y):
    w = ppl.sample("w", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", len(x)):
        ppl.sample("y", dist.Normal(x[:, 0] * w, 1.0), obs=y)


def guide(x, y):
    ppl.sample("w", dist.Normal(ppl.param("loc", 0.0), 0.1))


@pytest.fixture(scope="module")
def objective():
    return inference.elbo(model, guide)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    path = tmp_path_factory.mktemp("mapped") / "rows"
    data = np.memmap(path, np.float64, "w+", shape=(NUM, 50))
    data[:] = np.random.default_rng(0).normal(size=data.shape)
    data.flush()
    return np.memmap(path, np.float64, "r", shape=data.shape)


def fitted(objective, x, num_steps=40, **options):
    args = (x, np.asarray(x[:, 0] * 2.0, np.float32))
    settings = {"subsample": {"rows": 7}, "k_hat": "skip", "progress": False} | options
    return inference.fit(objective, optax.adam(0.05), args, num_steps=num_steps, **settings)


def test_rows_and_so_fits_are_those_of_memory_and_the_file_is_not_copied(
    objective, mapped, monkeypatch
):
    expected = fitted(objective, np.array(mapped, np.float32))
    monkeypatch.setattr(_minibatches, "MOST_STEPS", 16)  # several device calls
    before = sum(x.shape == mapped.shape for x in jax.live_arrays())
    copies = []
    see = lambda info: copies.append(sum(x.shape == mapped.shape for x in jax.live_arrays()))
    found = fitted(objective, mapped, callbacks=[see], callback_every=10)
    np.testing.assert_array_equal(found.params["loc"], expected.params["loc"])
    np.testing.assert_array_equal(found.history["value"], expected.history["value"])
    assert max(copies) <= before  # arrays of all rows


def test_a_run_is_resumed_to_the_bit(objective, mapped, tmp_path):
    whole = fitted(objective, mapped)
    path = tmp_path / "run"
    fitted(objective, mapped, 13, checkpoint=path)
    found = fitted(objective, mapped, 40, checkpoint=path)
    np.testing.assert_array_equal(found.params["loc"], whole.params["loc"])


def test_a_hash_in_parts_is_that_of_the_whole(mapped, monkeypatch):
    expected = _checkpoint.fingerprint([np.array(mapped, np.float32)])
    monkeypatch.setattr(_checkpoint, "_PART", 1000)
    assert _checkpoint.fingerprint([mapped]) == expected


@pytest.mark.slow  # two more programs
def test_seeds_have_the_rows_of_memory(objective, mapped):
    expected = fitted(objective, np.array(mapped, np.float32), num_seeds=2)
    found = fitted(objective, mapped, num_seeds=2)
    np.testing.assert_array_equal(found.params["loc"], expected.params["loc"])


def test_what_is_a_view_of_a_file(mapped):
    assert is_mapped(mapped) and is_mapped(np.asarray(mapped[3:, 1]))
    assert not is_mapped(np.ones(3)) and not is_mapped(jnp.ones(3))
