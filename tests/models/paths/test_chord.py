"""The chord: a straight line for one point, of the least energy for others, as its formula says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapilli.models import paths
from lapilli.models.paths._chord import Separation


@pytest.fixture(scope="module")
def ring():
    rng = np.random.default_rng(0)
    angles = 2 * np.pi * rng.integers(8, size=300) / 8
    x = np.stack([np.cos(angles), np.sin(angles)], 1) * 4 + 0.25 * rng.normal(size=(300, 2))
    return paths.separation(x / np.sqrt(np.mean(x**2)), jax.random.key(0), num_angles=60, num_draws=500)  # fmt: skip


@pytest.mark.parametrize("scale", [[1.0, 100.0], [1.0, 0.5], [np.nan, 1.0]])
def test_data_have_a_mean_square_of_one(scale):
    """Of data 100 times as wide lambda was 1 at every angle, whatever their law."""
    x = np.random.default_rng(0).normal(size=(400, 2)) * scale
    with pytest.raises(ValueError, match=r"'data' \(shape \(400, 2\)\) has a mean square of"):
        paths.separation(x, jax.random.key(0))


def test_the_energy_is_that_of_the_units():
    """Normal columns of variances 1.9 and .1: lambda is the mean of s^2 v^2 / (1 + s^2 v), and the wide one decides."""
    x, v = np.random.default_rng(0).normal(size=(4000, 2)), np.array([1.9, 0.1])
    x = (x - x.mean(0)) / x.std(0) * np.sqrt(v)
    found = paths.separation(x, jax.random.key(0), num_angles=12, num_draws=2000)
    s2 = np.tan(found.angles[:8, None]) ** 2
    want = (s2 * v**2 / (1 + s2 * v)).mean(1)
    # The standard deviation of E[x|..]^2 is below 3: 4.5 standard errors, and the law of 4,000 rows in place of the normal one.
    np.testing.assert_allclose(
        found.values[:8], np.maximum(want, np.sin(found.angles[:8]) ** 2), atol=0.12
    )


def test_one_point_asks_for_straight_lines():
    """Lambda = 1: a point is told from noise at once, and conditional optimal transport is best, with an energy of 2."""
    angles = np.linspace(0, np.pi / 2, 200)
    found = Separation(angles, np.ones(200))
    path = found.chord()
    t = jnp.linspace(0, 1, 11)
    np.testing.assert_allclose(jax.vmap(path.beta)(t), t, atol=2e-4)
    np.testing.assert_allclose(jax.vmap(path.alpha)(t), 1 - t, atol=2e-4)
    assert abs(found.energy(path) - 2) < 0.01


def test_the_chord_has_the_least_energy_and_that_of_its_formula(ring):
    path = ring.chord()
    least = ring.energy(path)
    opening = ring.lengths[-1]
    assert abs(least - 4 * np.sin(opening / 2) ** 2) < 0.05 * least  # 60 angles
    for other in (paths.linear(), paths.trigonometric()):
        assert least < ring.energy(other)
    # Euler and Lagrange: no path beside it has less, to first order nor to second.
    for bump in (0.1, -0.1):
        bent = lambda t, b=bump: t + b * t * (1 - t)
        parts = [lambda t, part=part, bent=bent: part(bent(t)) for part in (path.alpha, path.beta)]
        beside = paths.Interpolant(*parts)
        assert least < ring.energy(beside)


def test_ends_of_the_chord(ring):
    path = ring.chord()
    assert abs(path.alpha(1.0)) < 1e-3 and abs(path.beta(1.0) - 1) < 1e-3
    assert abs(path.alpha(0.0) - 1) < 1e-6 and abs(path.beta(0.0)) < 1e-6


def test_the_chord_solves_the_equation_of_euler_and_lagrange():
    """In the radius and the angle phi = int sqrt(c) the energy is that of the flat plane: no acceleration there, to 1e-3."""
    angles = np.linspace(0, np.pi / 2, 400)
    found = Separation(angles, np.sin(angles) ** 2 + 0.5 * np.cos(angles) ** 2 * np.sin(angles))
    path = found.chord()
    t = np.linspace(0.02, 0.98, 49)
    with jax.enable_x64(True):
        a, b = (np.asarray(jax.vmap(part)(jnp.asarray(t))) for part in (path.alpha, path.beta))
    angle = np.interp(np.arctan2(b, a), angles, found.lengths)
    place = np.hypot(a, b) * np.stack([np.cos(angle), np.sin(angle)])
    slope = np.gradient(place, t, axis=1)
    assert np.abs(slope - slope.mean(1, keepdims=True)).max() < 1e-3 * np.hypot(*slope.mean(1))
