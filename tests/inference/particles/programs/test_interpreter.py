"""Streams: draws of all particles from one key are independent between particles and have the right law."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from _stats import assert_unbiased
from lapilli.inference.particles.programs._interpreter import map_particles
from lapilli.ppl.traces._keys import fold_name

N = 20_000
X = jnp.arange(3.0)


def key_loop(key, x):
    """A raw scan over keys split inside the particle."""
    step = lambda c, k: (c + jax.random.normal(k), None)
    return jax.lax.scan(step, x, jax.random.split(key, 3))[0]


# name -> (function of one particle, mean, variance) at x = 0, 1, 2
LAWS = {
    "normal": (lambda k, x: x + jax.random.normal(k), X, 1.0),
    "two keys": (
        lambda k, x: sum(jax.random.normal(k) for k in jax.random.split(k)) + x, X, 2.0,
    ),
    "mapped keys": (
        lambda k, x: jax.vmap(jax.random.normal)(jax.random.split(k, 4)).sum() + x, X, 4.0,
    ),
    "folded": (lambda k, x: jax.random.normal(jax.random.fold_in(k, 7)) + x, X, 1.0),
    "address": (
        lambda k, x: sum(jax.random.normal(fold_name(k, n)) for n in ("a", "b")) + x, X, 2.0,
    ),
    "folded with the particle's number": (
        lambda k, x: jax.random.normal(jax.random.fold_in(k, x.astype(int))) + x, X, 1.0,
    ),
    "loop over keys": (key_loop, X, 3.0),
    "gamma": (lambda k, x: dist.Gamma(2.0 + x, 1.0).sample(k), 2 + X, 2 + X),
    "beta": (lambda k, x: dist.Beta(1.0 + x, 1.0).sample(k), (1 + X) / (2 + X), (1 + X) / ((2 + X) ** 2 * (3 + X))),
    "poisson": (lambda k, x: dist.Poisson(1.0 + x).sample(k) * 1.0, 1 + X, 1 + X),
    "binomial": (lambda k, x: dist.Binomial(5, 0.2).sample(k) + x, 1 + X, 0.8),
    "categorical": (lambda k, x: dist.CategoricalLogits(jnp.zeros(3)).sample(k) + x, 1 + X, 2 / 3),
    "branch": (
        lambda k, x: jax.lax.cond(x > 0.5, jax.random.normal, jax.random.uniform, k) + x,
        jnp.array([0.5, 1.0, 2.0]), jnp.array([1 / 12, 1.0, 1.0]),
    ),
}  # fmt: skip


@pytest.mark.fast("categorical", "folded")
@pytest.mark.parametrize("name", LAWS)
def test_particles_are_independent_and_have_the_law_of_one(name, key):
    """Mean, variance and correlations between particles; the replicates come from another map around."""
    fn, mean, variance = LAWS[name]
    draw = jax.jit(jax.vmap(lambda key: map_particles(fn, 3)(key, X)))
    x = np.asarray(draw(jax.random.split(key, N)), float)
    centred = x - np.asarray(mean)
    assert_unbiased(x, np.asarray(mean))
    assert_unbiased(centred**2, np.broadcast_to(variance, 3))
    assert_unbiased(centred * np.roll(centred, 1, axis=1), np.zeros(3))
    # ... and between replicates: neighbours of the outer map.
    assert_unbiased(centred[::2] * centred[1::2], np.zeros(3))


@pytest.mark.fast("normal")
@pytest.mark.parametrize("name", ["normal", "gamma", "loop over keys"])
def test_batches_are_independent(name, key):
    fn, mean, _ = LAWS[name]
    draw = jax.jit(jax.vmap(lambda key: map_particles(fn, 6, batch_size=3)(key, jnp.tile(X, 2))))
    x = np.asarray(draw(jax.random.split(key, N)), float) - np.tile(np.asarray(mean), 2)
    assert_unbiased(x[:, :3] * x[:, 3:], np.zeros(3))


def test_shared_values_are_computed_once():
    calls = []
    table = jnp.arange(5.0)

    def fn(key, x):
        shared = jnp.cumsum(table)
        calls.append(1)
        return x * shared[-1]

    np.testing.assert_allclose(map_particles(fn, 3)(jax.random.key(0), X), 10 * X)
    assert len(calls) == 1


def test_the_key_of_an_address_is_one_for_all_particles():
    fn = lambda key, x: x + jax.random.normal(fold_name(key, "a"))
    jaxpr = str(jax.make_jaxpr(map_particles(fn, 3))(jax.random.key(0), X))
    assert jaxpr.count("random_bits") == 1 and "random_fold_in" not in jaxpr


def test_values_equal_for_all_particles_get_a_particle_axis():
    out = map_particles(lambda key, x: (jnp.float32(2.0), x), 3)(jax.random.key(0), X)
    assert out[0].shape == (3,) and out[1].shape == (3,)


def test_a_draw_without_arguments_of_particles(key):
    assert map_particles(jax.random.normal, 4)(key).shape == (4,)


def test_gradients_pass():
    def total(m):
        return map_particles(lambda k: (m + jax.random.normal(k)) ** 2, 5)(jax.random.key(0)).sum()

    np.testing.assert_allclose(
        jax.grad(total)(0.5), (total(0.5 + 1e-2) - total(0.5 - 1e-2)) / 2e-2, rtol=1e-3
    )
