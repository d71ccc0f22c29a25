"""Observations with leading axes that their law does not have count one by one, as NumPyro counts them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import log_density

from lapilli import ppl

KEY = jax.random.key(0)
Y = jnp.array([0.3, 1.0, 2.0])


def scalar(y=Y):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def events(y=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    obs = jnp.arange(15.0).reshape(5, 3)
    numpyro.sample("y", dist.MultivariateNormal(z + jnp.zeros(3), jnp.eye(3)), obs=obs)


def columns():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z * jnp.arange(3.0), 1.0), obs=jnp.ones((5, 3)))


def weighted():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.handlers.scale(scale=1 + jnp.arange(3.0)), numpyro.handlers.mask(mask=Y > 0.5):
        numpyro.sample("y", dist.Normal(z, 1.0), obs=Y)


def mixed():
    b = numpyro.sample("z", dist.Bernoulli(0.3))
    numpyro.sample("y", dist.Normal(1.0 * b, 1.0), obs=Y)


@pytest.mark.slow_for("events", "columns")
@pytest.mark.parametrize("model", [scalar, events, columns, weighted, mixed])
def test_the_density_is_numpyros(model):
    z = jnp.asarray(1) if model is mixed else jnp.asarray(0.4)
    theirs = log_density(model, (), {}, {"z": z})[0]
    program = ppl.model(model)
    np.testing.assert_allclose(program.log_density({"z": z}), theirs, rtol=1e-6)
    drawn = program.predict(KEY, {"z": z})["y"]
    assert drawn.shape == program.trace({"z": z}).observed["y"].shape and jnp.ptp(drawn) > 0


def test_such_observations_are_integrated_and_summed():
    conjugate = dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3) + 1.0).log_prob(Y)
    np.testing.assert_allclose(ppl.eliminate(scalar, "z").log_density({}), conjugate, rtol=1e-5)
    each = [log_density(mixed, (), {}, {"z": jnp.asarray(b)})[0] for b in (0, 1)]
    np.testing.assert_allclose(ppl.eliminate(mixed, "z").log_density({}), jnp.logaddexp(*each), rtol=1e-5)  # fmt: skip


def across():
    z = ppl.sample("z", dist.Normal(jnp.zeros((3, 1)), 1.0).to_event(2))
    ppl.sample("y", dist.Normal(z, 1.0), obs=Y)


def in_a_plate():
    with ppl.plate("rows", 3):
        ppl.sample("y", dist.Normal(0.0, 1.0), obs=jnp.ones((2, 3)))


def one_for_many():
    with ppl.plate("rows", 3):
        ppl.sample("y", dist.Normal(0.0, 1.0), obs=0.3)


def in_steps():
    ppl.scan(lambda c, _: (ppl.sample("y", dist.Normal(c, 1.0), obs=Y), None), 0.0, None, 3)


@pytest.mark.parametrize("model", [across, in_a_plate, one_for_many, in_steps])
def test_what_would_count_an_observation_twice_is_refused(model):
    with pytest.raises(ValueError, match="'y': the observation has shape .*Nothing is broadcast"):
        ppl.model(model).simulate(KEY)


def test_a_latent_site_is_conditioned_on_a_value_of_its_own_shape():
    with pytest.raises(ValueError, match="'z': the observation has shape .*Nothing is broadcast"):
        ppl.condition(scalar, {"z": jnp.zeros(3)}).simulate(KEY)
