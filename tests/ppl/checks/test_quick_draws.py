"""Approximate samplers and random keys of probes: near the law, and without what compiles slowly."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli.ppl.checks._quick_draws import with_quick_draws
from lapilli.ppl.checks._quick_keys import QUICK

KEY = jax.random.key(0)


def quickly(program, *args):
    quick = with_quick_draws(jax.make_jaxpr(program)(*args))
    return quick, jax.jit(lambda: jax.core.eval_jaxpr(quick.jaxpr, quick.consts, *args))()


def test_the_approximate_gamma_variates_are_near_the_law_and_need_no_loop():
    def program(key, a):
        _, x = jax.lax.scan(
            lambda c, k: (c, jax.random.gamma(k, a)), 0, jax.random.split(key, 5000)
        )
        return x, jax.random.dirichlet(key, a, (5000,))

    a = jnp.array([0.3, 1.0, 4.0])
    quick, (gammas, shares) = quickly(program, KEY, a)
    assert "random_gamma" not in str(quick)
    np.testing.assert_allclose(gammas.mean(0), a, rtol=0.1)
    np.testing.assert_allclose(gammas.var(0), a, rtol=0.2)
    np.testing.assert_allclose(shares.mean(0), a / a.sum(), rtol=0.1)


def test_normal_variates_are_near_the_law_and_need_no_polynomials():
    def program(key):
        k1, k2 = jax.random.split(key)
        x = jax.vmap(lambda k: dist.Normal(1.0, 2.0).sample(k, (50,)))(jax.random.split(k1, 100))
        return x, jax.random.multivariate_normal(k2, jnp.zeros(2), jnp.eye(2), (5000,))

    quick, (x, y) = quickly(program, KEY)
    assert "erf_inv" not in str(quick)
    spread = np.pi / np.sqrt(3) / 1.7  # of the Logistic law: 1.07
    found = [x.mean(), x.std(), y.mean(), y.std()]
    np.testing.assert_allclose(found, [1, 2 * spread, 0, spread], atol=0.08)


def test_quantiles_that_the_program_asks_for_stay_exact():
    law = dist.TruncatedNormal(0.0, 1.0, low=1.0, high=1.5)
    _, (x, q) = quickly(lambda k: (law.sample(k, (1000,)), dist.Normal().icdf(0.9)), KEY)
    assert ((x >= 1) & (x <= 1.5)).all()
    np.testing.assert_allclose(q, 1.2815516, rtol=1e-5)


KEYS = jax.random.split(jax.random.key(3, impl=QUICK), 200)


@pytest.mark.fast("False")
@pytest.mark.parametrize("is_double", [False, True])
def test_quick_keys_make_uniform_numbers(is_double):
    """Moments of numbers, of neighbours under one key, under neighbouring keys, and of keys that are split or folded again."""
    with jax.enable_x64(is_double):
        tables = [
            jax.vmap(lambda k: jax.random.uniform(k, (200,)))(KEYS),
            jax.vmap(lambda n: jax.random.uniform(jax.random.fold_in(KEYS[0], n), (200,)))(
                jnp.arange(200)
            ),
            jax.vmap(lambda k: jax.vmap(jax.random.uniform)(jax.random.split(k, 200)))(KEYS),
        ]
    for u in map(np.asarray, tables):
        assert u.dtype == (np.float64 if is_double else np.float32)
        assert abs(u.mean() - 0.5) < 4.5 / np.sqrt(12 * u.size)
        for shifted in (np.roll(u, 1, 0), np.roll(u, 1, 1)):
            assert abs(np.corrcoef(u.ravel(), shifted.ravel())[0, 1]) < 4.5 / np.sqrt(u.size)


@pytest.mark.parametrize("bit_width", [8, 16, 32])
def test_quick_keys_make_bits_of_each_width(bit_width):
    bits = np.asarray(jax.random.bits(KEYS[0], (20_000,), f"uint{bit_width}"))
    ones = [(bits >> n & 1).mean() for n in range(bit_width)]
    np.testing.assert_allclose(ones, 0.5, atol=4.5 * 0.5 / np.sqrt(20_000))
