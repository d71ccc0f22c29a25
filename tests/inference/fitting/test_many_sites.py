"""Fits of many sites, and second fits of other lengths: what is compiled, and that the numbers are the same."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from _compilations import compilations

from lapilli import inference, ppl
from lapilli.inference.fitting import AutoMeanField

KEY = jax.random.key(0)


def toward(y):
    ppl.sample("y", dist.Normal(ppl.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)


def guide(y):
    scale = ppl.param("scale", 0.5, constraint=dist.constraints.positive)
    ppl.sample("z", dist.Normal(ppl.param("loc", 0.0), scale))


def test_a_fit_of_another_length_compiles_nothing_and_follows_its_own_cosine():
    objective, args = inference.elbo(toward, guide), (jnp.asarray(2.0),)
    settings = {"args": args, "progress": False, "k_hat": "skip"}
    inference.fit(objective, num_steps=30, **settings)
    with compilations() as num_compiled:
        found = inference.fit(objective, num_steps=50, **settings)
    assert num_compiled() == 0
    cosine = optax.adam(optax.cosine_decay_schedule(0.02, 50))
    expected = inference.fit(objective, cosine, num_steps=50, **settings)
    for name in found.params:
        np.testing.assert_allclose(found.params[name], expected.params[name], rtol=1e-5)


def normals(num):
    """`num` sites in straight code, the data three times as precise as the prior: means 3 y / 4, widths 1 / 2."""

    def model(y):
        for i in range(num):
            z = ppl.sample(f"z{i}", dist.Normal(0.0, 1.0))
            ppl.sample(f"y{i}", dist.Normal(z, 3**-0.5), obs=y[i])

    return model


def check_normals(num, y, fit):
    draws = fit.posterior(KEY, 500).choices
    means, widths = (
        np.array([getattr(draws[f"z{i}"], of)() for i in range(num)]) for of in ("mean", "std")
    )
    # 500 draws, and the noise of the last steps.
    assert np.abs(means - 0.75 * np.asarray(y)).max() < 0.5 * (4.5 / 500**0.5 + 0.15)
    assert np.abs(widths / 0.5 - 1).max() < 4.5 / 1000**0.5 + 0.15


@pytest.mark.slow(reason="a fit of many sites")
@pytest.mark.filterwarnings("ignore:fit. k-hat")  # many coordinates, each with some noise left
def test_a_mean_field_fit_is_the_posterior():
    num, y = 12, jnp.linspace(-2.0, 2.0, 12)
    mean_field = AutoMeanField(normals(num))
    fit = inference.fit(
        inference.elbo(normals(num), mean_field), args=(y,), num_steps=1500, progress=False
    )
    assert set(fit.params) == {"auto_loc", "auto_scale"}
    check_normals(num, y, fit)
    noise = np.random.default_rng(0).normal(size=(3, num))
    u, log_q = mean_field.draws(fit.params, noise)
    scale = (u[0] - u[1]) / (noise[0] - noise[1])
    loc = u[0] - scale * noise[0]
    expected = dist.Normal(loc, scale).log_prob(u).sum(1)
    np.testing.assert_allclose(log_q, expected, rtol=1e-4)
    np.testing.assert_allclose(loc, fit.params["auto_loc"], rtol=1e-4, atol=1e-4)


@pytest.mark.slow  # a minute on one core; without stacks it does not end
@pytest.mark.filterwarnings("ignore:fit")
@pytest.mark.parametrize("num", [200, 500])
def test_hundreds_of_sites_in_straight_code(num):
    y = jnp.linspace(-2.0, 2.0, num)
    fit = inference.fit(ppl.model(normals(num)), args=(y,), num_steps=1500, progress=False)
    u, _ = fit.objective.guide.fn.draws(
        fit.params, np.random.default_rng(0).normal(size=(500, num))
    )
    order = np.argsort([f"z{i}" for i in range(num)])
    assert np.abs(u.mean(0) - 0.75 * np.asarray(y)[order]).max() < 0.5 * (5 / 500**0.5 + 0.2)
    assert np.abs(u.std(0) / 0.5 - 1).max() < 5 / 1000**0.5 + 0.15
