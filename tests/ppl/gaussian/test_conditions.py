"""Condition numbers and single precision: moments of integrated sites against double precision on the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import ppl

RNG = np.random.default_rng(0)
NUM = 60


def regression(x, y, width, noise):
    beta = ppl.sample("beta", dist.Normal(0.0, width).expand([x.shape[1]]).to_event(1))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(x @ beta, noise), obs=y)


def designs():
    """Columns in units of their own: condition numbers from 1e2 to 1e6, equilibrated ones up to 1e3."""
    iq, hs = RNG.normal(100, 15, NUM), RNG.integers(0, 2, NUM)
    ones = np.ones(NUM)
    return {
        "interaction": np.stack([ones, hs, iq, hs * iq], 1),
        "powers": np.stack([np.linspace(1, 60, NUM) ** k for k in range(4)], 1),
        "units": RNG.normal(size=(NUM, 4)) * 10.0 ** np.array([-3, -1, 1, 3]),
        "twins": np.stack([ones, ones + 1e-3 * RNG.normal(size=NUM), RNG.normal(size=NUM), hs], 1),
    }


@pytest.fixture(scope="module")
def fitted():
    left = ppl.eliminate(regression, "beta")
    return jax.jit(lambda *args: left.posterior_marginals({}, *args)["beta"])


def exact(x, y, width, noise):
    """By the singular values of the whitened rows and the prior, in double precision."""
    rows = np.concatenate([x / noise, np.eye(x.shape[1]) / width])
    scaled = np.linalg.norm(rows, axis=0)
    u, s, v = np.linalg.svd(rows / scaled, full_matrices=False)
    mean = v.T @ (u[: len(y)].T @ (y / noise) / s) / scaled
    return mean, np.linalg.norm(v.T / s, axis=1) / scaled


@pytest.mark.parametrize("width", [10.0, 1e4])
@pytest.mark.parametrize("name", ["interaction", "powers", "units", "twins"])
def test_moments_of_a_regression_in_its_own_units(fitted, name, width):
    x = designs()[name].astype(np.float32)
    for noise in (18.0, 0.1):
        y = (x @ (20 / np.abs(x).max(0)) + noise * RNG.normal(size=NUM)).astype(np.float32)
        found = fitted(x, y, width, np.float32(noise))
        mean, scale = exact(x.astype(float), y.astype(float), width, float(np.float32(noise)))
        np.testing.assert_allclose(found.scale, scale, rtol=1e-3)
        rounding = np.spacing(np.abs(mean).astype(np.float32))  # of what is returned
        assert (np.abs(found.loc - mean) < 0.02 * scale + rounding).all()


def test_draws_have_these_moments():
    x = designs()["interaction"].astype(np.float32)
    y = (x @ np.array([-11.0, 51.0, 0.97, -0.48]) + 18 * RNG.normal(size=NUM)).astype(np.float32)
    left = ppl.eliminate(regression, "beta")
    draw = jax.jit(lambda key: left.posterior(key, {}, x, y, 1e3, 18.0, num_samples=4000)["beta"])
    draws = np.asarray(draw(jax.random.key(0)), float)
    mean, scale = exact(x.astype(float), y.astype(float), 1e3, 18.0)
    assert (np.abs(draws.mean(0) - mean) < 4.5 * scale / np.sqrt(4000)).all()
    np.testing.assert_allclose(draws.std(0) / scale, 1, atol=4.5 / np.sqrt(2 * 4000))


def test_what_rounding_has_made_is_not_a_number(fitted):
    """Two columns that are one up to the seventh digit, under a prior that says nothing."""
    x = designs()["twins"].astype(np.float32)
    x[:, 1] = x[:, 0] + np.float32(2e-7) * (np.arange(NUM) % 2)
    found = fitted(x, x @ np.ones(4, np.float32), 1e4, np.float32(1e-3))
    assert np.isnan(found.scale[:2]).all() and np.isnan(found.loc[:2]).all()
    assert np.isfinite(found.scale[2:]).all()


def test_a_series_of_no_steps():
    def walk(y):
        def step(x, y):
            x = ppl.sample("x", dist.Normal(x, 1.0))
            ppl.sample("y", dist.Normal(x, 0.5), obs=y)
            return x, x

        x, xs = ppl.scan(step, ppl.sample("start", dist.Normal(0.0, 1.0)), y)
        ppl.sample("end", dist.Normal(x + xs.sum(), 0.5), obs=0.3)

    left, y = ppl.eliminate(walk, ["start", "x"]), jnp.zeros(0)
    want = dist.Normal(0.0, 1.25**0.5).log_prob(0.3)
    np.testing.assert_allclose(left.log_density({}, y), want, rtol=1e-6)
    found = left.posterior_marginals({}, y)
    np.testing.assert_allclose(found["start"].loc, 0.24, rtol=1e-6)
    assert left.posterior(jax.random.key(0), {}, y, num_samples=3)["x"].shape == (3, 0)
