"""Where an elimination has no digits left its user is told in words, with the condition number, wherever the number is met."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from lapilli import inference, ppl
from lapilli.inference.fitting.training._nonfinite import _first_bad_site

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
NOISE = 1e-3


def regression(x, y, width):
    beta = ppl.sample("beta", dist.Normal(jnp.zeros(x.shape[1], x.dtype), width).to_event(1))
    with ppl.plate("rows", len(x)):
        ppl.sample("y", dist.Normal(x @ beta, NOISE), obs=y)


LEFT = ppl.eliminate(regression, "beta")


def alike(size, rows=4):
    """Two columns that are one but for a share, under a prior that says nothing."""
    x = RNG.normal(size=(rows, 2))
    x[:, 1] = x[:, 0] + size * x[:, 1]
    return x.astype(np.float32), RNG.normal(size=rows).astype(np.float32)


@pytest.mark.fast("1e-07")
@pytest.mark.parametrize("size", [1e-7, 3e-7, 1e-6])
def test_moments_that_are_not_numbers_come_with_their_condition_number(size):
    """Within a factor of three of the ratio of the prior's width to the narrowest direction's scale, by singular values."""
    x, y = alike(size)
    least = NOISE / np.linalg.svd(np.float64(x), compute_uv=False).max()
    with pytest.warns(UserWarning) as told:
        found = LEFT.posterior_marginals({}, x, y, np.float32(1e4))["beta"]
    assert np.isnan(found.scale).any()
    (text,) = [str(w.message) for w in told]
    assert (
        "eliminate[beta]: posterior_marginals holds NaN. Single precision has no digits left of 'beta'"
        in text
    )
    assert (
        "Use double precision, jax.config.update('jax_enable_x64', True), or narrower priors"
        in text
    )
    said = float(text.split(" is ")[1].split(". ")[0])
    assert 1 / 3 < said / (1e4 / least) < 3


WAYS = {
    "posterior": lambda *args: LEFT.posterior(KEY, {}, *args, num_samples=2),
    "mode": lambda *args: LEFT.mode({}, *args),
    "predict": lambda *args: inference.predict(LEFT, {}, KEY, *args, num_samples=2),
}


@pytest.mark.fast("mode")
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_meet_it_tells(way):
    with pytest.warns(UserWarning, match="no digits left of 'beta', whose condition number"):
        WAYS[way](*alike(1e-7), np.float32(1e4))


def test_numbers_are_given_without_a_word():
    x, y = alike(1.0)
    found = LEFT.posterior_marginals({}, x, y, np.float32(10))["beta"]
    assert np.isfinite(found.scale).all() and np.isfinite(
        LEFT.log_density({}, x, y, np.float32(10))
    )


def test_nan_of_the_data_is_called_that():
    x, y = alike(1.0)
    y = np.where(y == y[0], np.nan, y)
    with (
        numpyro.validation_enabled(False),
        pytest.warns(UserWarning, match="So it is in double precision: look for NaN in the data"),
    ):
        LEFT.log_density({}, x, y, np.float32(10))


def learned(x, y):
    regression(x, y, ppl.param("width", jnp.float32(1e4)))


OBJECTIVE = inference.elbo(ppl.eliminate(learned, "beta"), lambda x, y: None)


def test_the_site_at_which_a_fit_stops_tells():
    params = {"width": jnp.float32(1e4)}
    site, text, _ = _first_bad_site(OBJECTIVE, params, KEY, alike(1e-7))
    assert site == "model.y" and "no digits left of 'beta'" in text


@pytest.mark.slow  # the gradient of an elimination
def test_a_fit_that_stops_tells():
    with pytest.raises(inference.fitting.NonFiniteError, match="no digits left of 'beta'"):
        inference.fit(OBJECTIVE, optax.adam(0.1), alike(1e-7), num_steps=1, progress=False)
