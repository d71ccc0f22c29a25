"""Values that are no arrays of numbers are refused at their site, before any arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pandas as pd
import pytest

from lapilli import inference, ppl

KEY = jax.random.key(0)


@ppl.model
def model(x):
    z = ppl.sample("z", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", 3):
        ppl.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    ppl.sample("z", dist.Normal(ppl.param("m", 0.0), 1.0))


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (["a", "b", "c"], "a list"),
        ([1.0, 2.0, 3.0], "a list"),
        (np.array(["a", "b", "c"]), "a <U1 array"),
        (np.array([1.0, "b", 2.0], object), "a object array"),
        (pd.Series(["a", "b", "c"]), "a Series"),
    ],
    ids=["text", "list", "text-array", "objects", "series"],
)
def test_what_is_no_array_of_numbers_is_refused(value, what):
    with pytest.raises(TypeError, match=f"Site 'x': the value is {what}.*jnp.asarray.*np.unique"):
        model.log_density({"z": 0.0}, value)


def test_frames_of_numbers_are_arrays_to_fit():
    of = lambda x: inference.fit(
        inference.elbo(model, guide), optax.adam(0.1), (x,), num_steps=2, key=KEY, progress=False
    )
    series = pd.Series([1, 2, 3], dtype="int64")
    assert of(series).params["m"] == of(np.array([1.0, 2.0, 3.0])).params["m"]
    assert of(np.float64([1, 2, 3])).params["m"] == of(jnp.array([1.0, 2.0, 3.0])).params["m"]
