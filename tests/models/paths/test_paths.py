"""Every path has its ends, its velocity is the derivative, and it carries the laws between them: the continuity equation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from _stats import assert_unbiased
from lapilli.models import diffusion, paths

NUM = 40_000
TIMES = jnp.array([0.15, 0.4, 0.7, 0.9])
MEANS = jnp.array([-0.5, 1.0]), jnp.array([2.0, 0.3])
SDS = 0.6, 1.3

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
def test_ends_are_reached(key, name):
    x0, x1, z = ends(key)
    path, on = (INTERPOLANTS[name], lambda x: x) if name in INTERPOLANTS else ON[name]
    x0, x1 = on(x0), on(x1)
    at = lambda t: jax.vmap(path.position, (None, 0, 0, 0))(jnp.float32(t), x0, x1, z)
    end = x1
    start = x0 if name not in ("VP", "EDM") else path.alpha(0.0) * x0 + path.beta(0.0) * x1
    np.testing.assert_allclose(at(0.0), start, atol=2e-6)
    tolerance = 2e-3 if name in ("VP", "EDM") else 2e-6  # std of the process at 0
    np.testing.assert_allclose(at(1.0), end, atol=tolerance * 3)


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


def exact(path):
    """The field between isotropic normals."""
    ends = (paths.Mixture(MEANS[i][None], SDS[i] ** 2) for i in (0, 1))
    return paths.mixture_field(path, *ends)


def variance_of(path, t):
    noise = path.variance(t) if path.variance is not None else 0.0
    return path.alpha(t) ** 2 * SDS[0] ** 2 + path.beta(t) ** 2 * SDS[1] ** 2 + noise


@pytest.mark.slow_for("linear", "trigonometric", "trigonometric, noise", "EDM")
@pytest.mark.parametrize("name", INTERPOLANTS)
def test_the_exact_field_leaves_what_cannot_be_predicted(key, name):
    """The rest u - b(t, x_t) is orthogonal to functions of x_t: b is E[u | x_t], and the loss there E Var(u | x_t)."""
    path = INTERPOLANTS[name]
    keys = jax.random.split(key, 3)
    x0, x1 = (MEANS[i] + SDS[i] * jax.random.normal(keys[i], (NUM, 2)) for i in (0, 1))
    z = jax.random.normal(keys[2], x0.shape)
    field = exact(path)

    @jax.jit
    def products(t):
        x, u = jax.vmap(path.at, (None, 0, 0, 0))(t, x0, x1, z)
        left = u - jax.vmap(field.velocity, (None, 0))(t, x)
        unit = (x - x.mean(0)) / x.std(0)
        return jnp.stack([left, left * unit, left * unit**2, left * unit[:, ::-1]], 1) / left.std()

    for t in TIMES[::2]:
        assert_unbiased(products(t), jnp.zeros((4, 2)))


@pytest.mark.slow_for("linear", "trigonometric", "trigonometric, noise", "EDM")
@pytest.mark.parametrize("name", INTERPOLANTS)
def test_the_field_carries_means_and_variances(name):
    """d/dt E f(x_t) = E[grad f . b] for f linear and quadratic, in closed form at many times."""
    path = INTERPOLANTS[name]
    velocity = exact(path).velocity
    with jax.enable_x64(True):

        def moments(t):
            return path.alpha(t) * MEANS[0] + path.beta(t) * MEANS[1], variance_of(path, t)

        for t in jnp.asarray(TIMES, jnp.float64):
            (mean, variance), (d_mean, d_variance) = jax.jvp(moments, (t,), (jnp.ones_like(t),))
            np.testing.assert_allclose(d_mean, velocity(t, mean), rtol=1e-5, atol=1e-6)
            slope = jax.jacfwd(lambda x, t=t: velocity(t, x))(mean)  # the field is affine
            np.testing.assert_allclose(slope, d_variance / (2 * variance) * np.eye(2), rtol=1e-5, atol=1e-6)  # fmt: skip


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


def test_a_torus_is_crossed_the_shorter_way():
    x, u = paths.torus().at(0.5, jnp.array([3.0, 0.5]), jnp.array([-3.0, -0.5]))
    np.testing.assert_allclose(u, [2 * np.pi - 6, -1.0], rtol=1e-5)
    np.testing.assert_allclose(jnp.abs(x), [np.pi, 0.0], atol=1e-5)


def test_a_path_refuses_what_it_cannot_join(key):
    with pytest.raises(ValueError, match="ends of one point have shapes"):
        paths.linear().at(0.5, jnp.zeros(2), jnp.zeros(3))
    with pytest.raises(ValueError, match="has noise between its ends"):
        paths.linear(0.5).at(0.5, jnp.zeros(2), jnp.zeros(2))
    with pytest.raises(ValueError, match="noise must be >= 0"):
        paths.linear(-1.0)
