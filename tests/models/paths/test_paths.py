"""A path's velocity is the derivative of its position; geodesics stay on their manifold; refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapilli.models import diffusion, paths

INTERPOLANTS = {
    "linear": paths.linear(),
    "linear, noise": paths.linear(0.8),
    "trigonometric": paths.trigonometric(),
    "trigonometric, noise": paths.trigonometric(0.5),
    "VP": paths.of_noising(diffusion.VP()),
    "EDM": paths.of_noising(diffusion.EDM(), margin=0.01),
}


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


ON = {"sphere": (paths.sphere(), unit), "torus": (paths.torus(), lambda x: (x + jnp.pi) % (2 * jnp.pi) - jnp.pi)}  # fmt: skip


def ends(key, num=8, size=3):
    keys = jax.random.split(key, 3)
    return [jax.random.normal(k, (num, size)) for k in keys]


@pytest.mark.parametrize("name", [*INTERPOLANTS, *ON])
def test_velocity_is_the_derivative_of_the_position(key, name):
    x0, x1, z = ends(key)
    path, on = (INTERPOLANTS[name], lambda x: x) if name in INTERPOLANTS else ON[name]
    x0, x1 = on(x0), on(x1)
    with jax.enable_x64(True):
        x0, x1, z = (jnp.asarray(np.asarray(v), jnp.float64) for v in (x0, x1, z))
        for t in (0.2, 0.6):
            position = lambda t: jax.vmap(path.position, (None, 0, 0, 0))(jnp.float64(t), x0, x1, z)
            _, u = jax.vmap(path.at, (None, 0, 0, 0))(jnp.float64(t), x0, x1, z)
            want = (position(t + 1e-5) - position(t - 1e-5)) / 2e-5
            np.testing.assert_allclose(u, want, rtol=1e-6, atol=1e-6 * float(jnp.abs(want).max()))


def test_geodesics_stay_on_their_manifold_at_constant_speed(key):
    x0, x1, _ = ends(key)
    x0, x1 = unit(x0), unit(x1)
    x1 = x1.at[0].set(unit(x0[0] + 1e-4 * x1[0]))  # ends that nearly meet
    for t in (0.0, 0.3, 1.0):
        x, u = jax.vmap(paths.sphere().at, (None, 0, 0))(t, x0, x1)
        np.testing.assert_allclose(jnp.linalg.norm(x, axis=1), 1, atol=2e-6)
        np.testing.assert_allclose(jnp.sum(x * u, 1), 0, atol=2e-6)
        angle = 2 * jnp.arcsin(jnp.linalg.norm(x1 - x0, axis=1) / 2)
        np.testing.assert_allclose(jnp.linalg.norm(u, axis=1), angle, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("bad", [0, 1])
def test_ends_on_a_sphere_are_unit_vectors(key, bad):
    """Ends of other lengths were joined by a curve that leaves the sphere and does not arrive."""
    x0, x1, _ = (unit(x)[0] for x in ends(key))
    pair = [x0, x1]
    pair[bad] = 2 * pair[bad]
    with pytest.raises(ValueError, match=r"the ends, of shape \(3,\), have the lengths .*2"):
        paths.sphere().at(0.5, *pair)
    for x in jax.jit(paths.sphere().at)(0.5, *pair):
        assert jnp.isnan(x).all()
    for x in jax.jit(paths.sphere().at)(0.5, x0, x1):
        assert jnp.isfinite(x).all()


def test_a_torus_is_crossed_the_shorter_way():
    x, u = paths.torus().at(0.5, jnp.array([3.0, 0.5]), jnp.array([-3.0, -0.5]))
    np.testing.assert_allclose(u, [2 * np.pi - 6, -1.0], rtol=1e-5)
    np.testing.assert_allclose(jnp.abs(x), [np.pi, 0.0], atol=1e-5)


def test_a_path_refuses_what_it_cannot_join(key):
    with pytest.raises(ValueError, match="ends of one point have shapes"):
        paths.linear().at(0.5, jnp.zeros(2), jnp.zeros(3))
    with pytest.raises(ValueError, match="has noise between its ends"):
        paths.linear(0.5).at(0.5, jnp.zeros(2), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"noise z has shape \(1,\), and a point \(2,\)"):
        paths.linear(0.5).at(0.5, jnp.zeros(2), jnp.zeros(2), jnp.ones(1))
    with pytest.raises(ValueError, match="noise must be >= 0"):
        paths.linear(-1.0)


def test_a_mixture_has_rows_of_means_and_a_variance():
    # Two means of one coordinate are no mean of two.
    with pytest.raises(ValueError, match=r"means have shape \(2,\).*means\[:, None\]"):
        paths.Mixture([-1.0, 1.0], 0.5)
    with pytest.raises(ValueError, match="variance is -0.2, which the noise of a path would hide"):
        paths.Mixture([[1.0]], -0.2)
