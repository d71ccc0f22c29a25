"""Keys of addresses: distinct, of either kind and generator, statistically independent, and without a Threefry call."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapilli.ppl._keys import fold_name

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
