"""A hundred groups of 1 to 50 rows, from simulations of single rows: the closed form of normal laws, with and without holes."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl
from lapilli.inference.simulators import reference_table

GROUPS, MOST, SPREAD = 100, 50, 0.7  # SPREAD of places around the centre; noise of rows is 1
KEY = jax.random.key(0)


def groups(x, seen=None):
    """A simulator of rows in groups; the noise is a point mass's."""
    centre = ppl.sample("centre", dist.Normal(0.0, 1.0))
    with ppl.plate("groups", x.shape[0], dim=-2):
        place = ppl.sample("place", dist.Normal(centre, SPREAD))
        with ppl.plate("rows", x.shape[1], dim=-1):
            noise = jax.random.normal(ppl.rng_key("noise"), x.shape)
            ppl.sample("x", dist.Delta(place + noise), obs=x, obs_mask=seen)


def drawn(seed):
    """Rows of 100 groups, and which are there: the first 1 to 50 of each."""
    rng = np.random.default_rng(seed)
    place = 0.3 + SPREAD * rng.normal(size=(GROUPS, 1))
    counts = rng.integers(1, MOST + 1, (GROUPS, 1))
    return place + rng.normal(size=(GROUPS, MOST)), np.arange(MOST) < counts


def exact(x, seen):
    """Mean and covariance of (centre, places), normal laws all."""
    precision = np.zeros((GROUPS + 1, GROUPS + 1))
    precision[0, 0] = 1 + GROUPS / SPREAD**2
    precision[0, 1:] = precision[1:, 0] = -1 / SPREAD**2
    precision[1:, 1:] = np.diag(1 / SPREAD**2 + seen.sum(1))
    covariance = np.linalg.inv(precision)
    return covariance[:, 1:] @ np.where(seen, x, 0).sum(1), covariance


def learned_moments(model, x, seen):
    """Means and standard deviations of centre and places by two quadratures: a place given the centre, then the centre.

    The learned log-density of each group's rows is read off the program itself, at every place of a grid.
    """
    places, centres = np.linspace(-4.5, 4.5, 901), np.linspace(-0.7, 1.3, 201)
    holes = {"x_unobserved": jnp.zeros(x.shape)}

    @jax.jit
    def rows(place):
        values = {"centre": 0.0, "place": jnp.full((GROUPS, 1), place), **holes}
        return model.trace(values, x, seen).log_probs["x_observed"].sum(-1)

    log_rows = np.asarray(jax.lax.map(rows, jnp.asarray(places)), float)  # [places, groups]
    log_prior = -0.5 * ((places[:, None] - centres) / SPREAD) ** 2  # [places, centres]
    joint = log_rows[:, :, None] + log_prior[:, None]
    peak = joint.max(0)
    weights = np.exp(joint - peak)
    mass = weights.sum(0)
    log_centre = (peak + np.log(mass)).sum(0) - centres**2 / 2
    on_centre = np.exp(log_centre - log_centre.max())
    on_centre /= on_centre.sum()
    of_places = (weights / mass) @ on_centre  # [places, groups]
    moments = lambda at, w: (at @ w, ((at**2) @ w - (at @ w) ** 2) ** 0.5)
    centre, place = moments(centres, on_centre), moments(places, of_places)
    return np.append(centre[0], place[0]), np.append(centre[1], place[1])


@pytest.fixture(scope="module")
def learned():
    """A hundred thousand rows: their own error of a slope is .003, a fiftieth of the narrowest posterior."""
    table = reference_table(groups, (np.zeros((1, 1)),), num_simulations=100_000, key=KEY)
    return inference.surrogate(table, progress=False)


@pytest.mark.slow(reason="a training on many rows")
@pytest.mark.parametrize("holes", [False, True], ids=["whole", "half of the cells missing"])
@pytest.mark.parametrize("seed", range(3))
def test_a_hierarchy_from_single_rows_is_the_closed_form(learned, seed, holes):
    """Means within 5% of the posterior's width on average, and widths within 5% each."""
    x, seen = drawn(seed)
    if holes:
        seen = seen & (np.random.default_rng(10 + seed).uniform(size=x.shape) < 0.5)
    mean, covariance = exact(x, seen)
    widths = np.diag(covariance) ** 0.5
    found_mean, found_widths = learned_moments(learned.model, x, seen)
    shifts = (found_mean - mean) / widths
    assert abs(shifts[0]) < 0.05 and np.sqrt((shifts**2).mean()) < 0.05
    assert np.abs(found_widths / widths - 1).max() < 0.05


def test_the_quadrature_of_a_known_law_is_the_closed_form():
    """What the test above compares with, on the program whose rows are normal by declaration."""

    @ppl.model
    def known(x, seen=None):
        centre = ppl.sample("centre", dist.Normal(0.0, 1.0))
        with ppl.plate("groups", x.shape[0], dim=-2):
            place = ppl.sample("place", dist.Normal(centre, SPREAD))
            with ppl.plate("rows", x.shape[1], dim=-1):
                ppl.sample("x", dist.Normal(place, 1.0), obs=x, obs_mask=seen)

    x, seen = drawn(0)
    mean, covariance = exact(x, seen)
    found_mean, found_widths = learned_moments(known, x, seen)
    assert np.allclose(found_mean, mean, atol=1e-3)
    assert np.allclose(found_widths, np.diag(covariance) ** 0.5, rtol=2e-3)
