"""Roots of covariances and what is computed of them: values, derivatives of any order, and digits in single precision."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import ppl
from lapilli.ppl.gaussian.beliefs._roots import compressed, free_log_det, free_solved, lower

RNG = np.random.default_rng(5)


def assert_derivatives_agree(f, g, highest, rtol):
    """Of two functions of a number, their values and derivatives up to an order at .1: one compilation."""

    def derivatives(h):
        return [(h := jax.grad(h) if order else h)(0.1) for order in range(highest + 1)]

    found, right = jax.jit(lambda: (derivatives(f), derivatives(g)))()
    np.testing.assert_allclose(np.stack(found), np.stack(right), rtol=rtol)


@pytest.mark.parametrize("is_double", [False, True])
def test_triangles(is_double):
    with jax.enable_x64(is_double):
        a = jnp.asarray(RNG.normal(size=(2, 3, 5)), float)
        tril = lower(a)
        tol = {"rtol": 1e-10 if is_double else 1e-5, "atol": 1e-12 if is_double else 1e-6}
        np.testing.assert_allclose(tril @ tril.mT, a @ a.mT, **tol)
        assert (np.triu(tril, 1) == 0).all() and (np.diagonal(tril, axis1=-2, axis2=-1) > 0).all()
        root = compressed(a)
        assert root.shape == (2, 3, 3)
        np.testing.assert_allclose(root @ root.mT, a @ a.mT, **tol)


@pytest.mark.slow
def test_derivatives_of_free_roots_are_those_of_the_covariance():
    """First and second derivatives of functions of A A', also through the inverse and the determinant."""
    with jax.enable_x64(True):
        a, da = (jnp.asarray(RNG.normal(size=(3, 5))) for _ in range(2))
        x = jnp.asarray(RNG.normal(size=3))

        def by_root(t):
            root = compressed(a + t * da)
            return (
                (free_solved(root, x[:, None]) ** 2).sum()
                + free_log_det(root)
                + ((root.T @ x) ** 2).sum()
            )

        def by_covariance(t):
            b = a + t * da
            covariance = b @ b.T
            _, log_det = jnp.linalg.slogdet(covariance)
            return x @ jnp.linalg.solve(covariance, x) + 0.5 * log_det + x @ covariance @ x

        assert_derivatives_agree(by_root, by_covariance, 3, 1e-8)


@pytest.mark.parametrize(
    "seed, highest",
    [
        (0, 2),
        pytest.param(0, 3, marks=pytest.mark.slow),
        pytest.param(1, 3, marks=pytest.mark.slow),
    ],
)
def test_blocks_of_a_root_may_be_used_apart(seed, highest):
    """The root of numbers above that of the basis: a normal law given the first numbers, and derivatives of it."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        a, da = (jnp.asarray(rng.normal(size=(5, 7))) for _ in range(2))
        x, y = jnp.asarray(rng.normal(size=2)), jnp.asarray(rng.normal(size=3))

        def by_root(t):
            root = compressed(a + t * da, 2)
            top, gain, rest = root[:2, :2], root[2:, :2], root[2:, 2:]
            mean = (gain @ free_solved(top, x[:, None]))[:, 0]
            return free_log_det(top) + jnp.sin(mean).sum() + y @ rest @ rest.T @ y

        def by_covariance(t):
            b = a + t * da
            c = b @ b.T
            gain = jnp.linalg.solve(c[:2, :2], c[:2, 2:]).T
            _, log_det = jnp.linalg.slogdet(c[:2, :2])
            rest = c[2:, 2:] - gain @ c[:2, 2:]
            return 0.5 * log_det + jnp.sin(gain @ x).sum() + y @ rest @ y

        assert_derivatives_agree(by_root, by_covariance, highest, 1e-7)


def test_a_singular_root_has_a_derivative():
    """Known starting values: the covariance is singular, its functions are smooth."""
    with jax.enable_x64(True):
        a, da = (jnp.asarray(RNG.normal(size=(3, 5))) for _ in range(2))
        x, singular = jnp.asarray(RNG.normal(size=3)), a.at[0].set(a[1])

        def by_root(t):
            return ((compressed(singular + t * da).T @ x) ** 2).sum()

        def by_covariance(t):
            b = singular + t * da
            return x @ (b @ b.T) @ x

        np.testing.assert_allclose(jax.grad(by_root)(0.0), jax.grad(by_covariance)(0.0), rtol=1e-10)


def stiff(y, noise):
    """A system whose states are known to between 1 and 1e-3 of their scale, seen through two mixed sensors."""
    move = jnp.array([[1.0, 0.1, 0.0], [0.0, 1.0, 0.1], [0.0, 0.0, 0.9]])
    sensors = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1e-2]])

    def step(z, y):
        z = ppl.sample("z", dist.Normal(move @ z, jnp.array([1.0, 1e-2, 1e-3])).to_event(1))
        ppl.sample("y", dist.Normal(sensors @ z, noise).to_event(1), obs=y)
        return z, None

    ppl.scan(step, jnp.zeros(3), y)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [1.0, 1e-3])
def test_single_precision_keeps_its_digits(noise):
    """A covariance of condition number 1e6 and more: what rounding of the data and of the densities leaves, not its square."""
    y = np.cumsum(RNG.normal(size=(40, 1)), 0) + noise * RNG.normal(size=(40, 2))
    left = ppl.eliminate(stiff, "z")
    with jax.enable_x64(True):
        exact = jax.jit(left.log_density)({}, jnp.asarray(y.astype(np.float32), float), noise)
        means = jax.jit(left.posterior_marginals)(
            {}, jnp.asarray(y.astype(np.float32), float), noise
        )["z"]
    found = jax.jit(left.log_density)({}, jnp.asarray(y, jnp.float32), noise)
    single = jax.jit(left.posterior_marginals)({}, jnp.asarray(y, jnp.float32), noise)["z"]
    np.testing.assert_allclose(found, exact, rtol=1e-3)
    np.testing.assert_allclose(single.scale, means.scale, rtol=1e-2)
    away = np.asarray(single.loc) - np.asarray(means.loc)
    assert (np.abs(away) < 0.1 * np.asarray(means.scale)).all()
