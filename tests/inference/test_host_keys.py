"""Keys made on the host are those of `jax.random`, to the bit."""

import jax
import numpy as np
import pytest

from lapilli.inference._host_keys import default_key, fold_in, split

words = lambda key: np.asarray(jax.random.key_data(key)).tolist()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("seed", range(5))
def test_splits_and_folds_are_those_of_jax(seed, impl):
    rng = np.random.default_rng(seed)
    key = jax.random.wrap_key_data(
        rng.integers(0, 2**32, 2 if impl == "threefry2x32" else 4, np.uint32), impl=impl
    )
    for number in (1, 2, 4, 7):
        assert list(map(words, split(key, number))) == list(
            map(words, jax.random.split(key, number))
        )
    for data in (0, 3, 2**32 - 1):
        assert words(fold_in(key, data)) == words(jax.random.fold_in(key, data))
    assert split(key)[0].dtype == key.dtype and words(default_key()) == words(jax.random.key(0))


def test_traced_raw_and_unpartitionable_keys_go_to_jax():
    key = jax.random.key(3)
    expected = words(jax.random.split(key, 3)[1])
    assert words(jax.jit(lambda key: split(key, 3)[1])(key)) == expected
    assert split(jax.random.PRNGKey(3), 3)[1].tolist() == expected
    with jax.threefry_partitionable(False):
        assert words(split(key, 3)[1]) == words(jax.random.split(key, 3)[1])
