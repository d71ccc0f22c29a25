"""Arguments of a program, split into arrays and what is none."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from lapilli import ppl
from lapilli.inference._arguments import Arguments, in_jax
from lapilli.inference.posteriors.forms._maps import maps_of


def test_what_is_no_array_stays_as_it_was():
    split = Arguments((np.zeros(3), "a"))
    assert [x.shape for x in split.arrays((np.ones(2), "a"))] == [(2,)]
    with pytest.raises(
        ValueError, match=r"Non-array arguments are \[None, 'b'\], but \[None, 'a'\] came before"
    ):
        split.arrays((np.zeros(3), "b"))
    with pytest.raises(ValueError, match="Pass arguments of one structure"):
        split.arrays(([np.zeros(3)], "a"))


@pytest.mark.parametrize("is_moving", [False, True], ids=["fixed", "moving"])
def test_supports_are_read_where_a_plate_draws_the_rows_of_an_array_of_numpy(is_moving):
    """NumPyro's minibatch, `obs=y[rows]`: rows are traced while supports are read, and arrays of NumPy take no traced index."""

    def model(y):
        top = numpyro.sample("top", dist.HalfNormal(1.0))
        numpyro.sample("x", dist.Uniform(0.0, top if is_moving else 2.0))
        with numpyro.plate("rows", 6, subsample_size=2) as rows:
            numpyro.sample("y", dist.Normal(top, 1.0), obs=y[rows])

    at = {"top": jnp.array(1.5), "x": jnp.array(0.5)}
    args = (np.arange(6.0, dtype=np.float32),)
    _, maps, inverse = maps_of("infer", ppl.as_program(model), args, at, has_steps=False)
    _, there = maps(inverse(at))
    np.testing.assert_allclose([there["top"], there["x"]], [1.5, 0.5], rtol=1e-5)
    found = in_jax((args[0], "a", {"n": 3}))
    assert isinstance(found[0], jax.Array) and found[1:] == ("a", {"n": 3})
