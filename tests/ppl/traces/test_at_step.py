"""handlers.condition and substitute of NumPyro around a scan: a slice for each step, as in NumPyro's own scan."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import condition, substitute
from numpyro.infer.util import log_density

from lapilli import inference, ppl

KEY = jax.random.key(0)
Y = jnp.array([0.3, -0.2, 1.1, 0.7])
VALUES = {"a": jnp.asarray(0.5)}


def autoregression(y, scan=scan):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))

    def step(last, _):
        value = numpyro.sample("y", dist.Normal(a * last, 1.0))
        return value, None

    with condition(data={"y": y}):
        scan(step, 0.0, jnp.arange(4))


def written_out(a, y):
    before = jnp.append(0.0, y[:-1])
    return dist.Normal(0.0, 1.0).log_prob(a) + dist.Normal(a * before, 1.0).log_prob(y).sum()


@pytest.mark.parametrize("which", [scan, ppl.scan], ids=["numpyro", "ppl"])
def test_each_step_gets_its_slice(which):
    program = ppl.as_program(lambda y: autoregression(y, which))
    expected = written_out(0.5, Y)
    np.testing.assert_allclose(program.log_density(VALUES, Y), expected, rtol=1e-6)
    trace = program.simulate(KEY, Y)
    np.testing.assert_array_equal(trace.observed["y"], Y)
    assert trace.sites["y"].kind == "observed"
    if which is scan:
        np.testing.assert_allclose(
            log_density(autoregression, (Y,), {}, VALUES)[0], expected, rtol=1e-6
        )


@pytest.mark.slow
def test_handlers_around_the_program_act_alike():
    outer = condition(_bare, {"y": Y})
    np.testing.assert_allclose(
        ppl.as_program(outer).log_density(VALUES), written_out(0.5, Y), rtol=1e-6
    )
    value = inference.elbo(outer, lambda: ppl.sample("a", dist.Delta(0.5))).value({}, KEY)
    np.testing.assert_allclose(value, written_out(0.5, Y), rtol=1e-6)
    run = inference.smc(outer, KEY, num_particles=3)
    assert np.isfinite(run.log_evidence)


def _bare():
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))

    def step(last, _):
        return numpyro.sample("y", dist.Normal(a * last, 1.0)), None

    scan(step, 0.0, jnp.arange(4))


def test_a_function_of_the_site_and_values_without_time():
    """`condition_fn` gets the message; a value of the site's own shape holds at every step."""
    fn = lambda site: 2.0 if site["name"] == "y" else None
    program = ppl.as_program(condition(_bare, condition_fn=fn))
    expected = written_out(0.5, jnp.full(4, 2.0))
    np.testing.assert_allclose(program.log_density(VALUES), expected, rtol=1e-6)


def test_substituted_values_stay_latent_and_plates_keep_their_axis():
    def model(y):
        def step(c, y):
            with ppl.plate("rows", 2):
                z = ppl.sample("z", dist.Normal(c, 1.0))
                ppl.sample("y", dist.Normal(z, 1.0), obs=y)
            return z.mean(), None

        ppl.scan(step, 0.0, y)

    y = jnp.zeros((3, 2))
    z = jnp.arange(6.0).reshape(3, 2)
    trace = ppl.as_program(substitute(model, {"z": z})).simulate(KEY, y)
    np.testing.assert_array_equal(trace.choices["z"], z)
    assert trace.sites["z"].kind == "latent"


def test_nested_scans_slice_twice():
    def model():
        def outer(c, _):
            inner = lambda c, _: (ppl.sample("y", dist.Normal(0.0, 1.0)), None)
            return ppl.scan(inner, c, None, length=3)[0], None

        ppl.scan(outer, 0.0, None, length=2)

    y = jnp.arange(6.0).reshape(2, 3)
    program = ppl.as_program(condition(model, {"y": y}))
    expected = dist.Normal(0.0, 1.0).log_prob(y).sum()
    np.testing.assert_allclose(program.log_density({}), expected, rtol=1e-6)
    np.testing.assert_array_equal(program.simulate(KEY).observed["y"], y)


def test_data_of_another_length_are_refused():
    with pytest.raises(
        ValueError, match=r"Site 'y': handlers.condition.*of 4 steps.*\(5,\).*\(4,\)"
    ):
        ppl.as_program(autoregression).log_density(VALUES, jnp.zeros(5))
