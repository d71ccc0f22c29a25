"""Keys of addresses: distinct, of either kind and generator, statistically independent, and without a Threefry call."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from lapilli import ppl
from lapilli.ppl.traces._keys import fold_name

NAMES = ["a", "b", "ab", "ba", "z", "z_1", "scan_0", "cond_0", ""]
KEYS = {
    "typed": jax.random.key(0),
    "raw": jax.random.PRNGKey(0),
    "rbg": jax.random.key(0, impl="rbg"),
    "zero": jax.random.wrap_key_data(jnp.zeros(2, jnp.uint32)),
}


@pytest.mark.parametrize("kind", KEYS)
def test_addresses_have_keys_of_their_own(kind):
    """Paths of length 0 to 2, in either order."""
    key = KEYS[kind]
    keys = [key, *(fold_name(key, n) for n in NAMES)]
    keys += [fold_name(fold_name(key, m), n) for m, n in itertools.product(NAMES, repeat=2)]
    assert {k.dtype for k in keys} == {key.dtype} and {k.shape for k in keys} == {key.shape}
    data = np.stack([k if kind == "raw" else jax.random.key_data(k) for k in keys])
    assert len(np.unique(data, axis=0)) == len(data)


def test_no_name_of_a_site_shares_a_key_with_what_is_no_site():
    """A site called as the statement beside it is: its draw is not the statement's noise."""
    kinds = ("site", "key", "plate", "region")
    keys = [fold_name(KEYS["typed"], n, kind=k) for n in NAMES for k in kinds]
    data = np.stack([jax.random.key_data(k) for k in keys])
    assert len(np.unique(data, axis=0)) == len(data)


@pytest.mark.fast("rng:u")
@pytest.mark.parametrize("site", ["rng:u", "u", "rows", "cond_1", "particles_1", "prng_key_0"])
def test_draws_of_a_site_are_no_noise_of_statements(site):
    def normals():
        z = ppl.sample(site, dist.Normal(0.0, 1.0))
        noise = jax.random.normal(ppl.rng_key("u"))
        unnamed = jax.random.normal(numpyro.prng_key())
        inner = ppl.cond(True, lambda: jax.random.normal(ppl.rng_key("v")), lambda: 0.0)
        with ppl.plate("rows", 10, subsample_size=5) as rows:
            pass
        return z, jnp.stack([noise, unnamed, inner, 1.0 * rows[0]])

    run = lambda k: ppl.as_program(normals).simulate(k).retval
    z, others = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 10_000))
    # Correlations of independent numbers: |r| sqrt(n) > 4.5 once in 150,000.
    assert np.abs(np.corrcoef(z, others.T)[0, 1:]).max() * 100 < 4.5


def test_raw_and_typed_keys_agree():
    np.testing.assert_array_equal(
        jax.random.key_data(fold_name(KEYS["typed"], "a")), fold_name(KEYS["raw"], "a")
    )


def test_numbers_of_addresses_and_seeds_are_not_correlated():
    """Normal draws of 30 addresses under 30 seeds: all pairs of addresses and all pairs of seeds."""
    names = [f"x{i}" for i in range(30)]
    draw = jax.vmap(
        lambda k: jnp.stack([jax.random.normal(fold_name(k, n), (200,)) for n in names])
    )
    x = np.asarray(draw(jax.vmap(jax.random.key)(jnp.arange(30))))
    for rows in (x.transpose(1, 0, 2).reshape(30, -1), x.reshape(30, -1)):
        z = (rows @ rows.T / np.sqrt(rows.shape[1]))[np.triu_indices(30, 1)]
        assert np.abs(z).max() < 4.9  # 870 standard normals exceed it with probability 1e-3
        assert abs((z**2).mean() - 1) < 4.5 * np.sqrt(2 / len(z))


def test_no_generator_is_called():
    jaxpr = str(jax.make_jaxpr(lambda k: fold_name(fold_name(k, "a"), "b"))(KEYS["typed"]))
    assert "random_fold_in" not in jaxpr and "threefry" not in jaxpr
