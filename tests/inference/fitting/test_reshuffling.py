"""Orders of the rows of an epoch: permutations, each row equally likely at each place, pairs as of a uniform permutation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapilli.inference.fitting.data import _reshuffling
from lapilli.inference.fitting.data._reshuffling import MOST_SORTED, draw_order, entries

SORTED, SMALLEST = MOST_SORTED, MOST_SORTED + 1


def of_keys(size, count, num_keys, seed):
    """The first `count` entries of the orders of many keys."""
    draw = lambda key: entries(draw_order(key, size), size, jnp.int32(0), count)
    chunks = jax.random.split(jax.random.key(seed), num_keys).reshape(-1, num_keys // 10)
    draw = jax.jit(jax.vmap(draw))
    return np.concatenate([np.asarray(draw(keys)) for keys in chunks])


def excess(counts):
    """Pearson's statistic of counts that should be equal, in its standard deviations from its mean."""
    expected = counts.sum() / len(counts)
    statistic = ((counts - expected) ** 2 / expected).sum()
    return (statistic - (len(counts) - 1)) / np.sqrt(2 * (len(counts) - 1))


def of_pairs(orders, size, places):
    """The greatest excess over pairs of places of the differences of their rows, which are equally often each but 0."""
    pairs = itertools.combinations(places, 2)
    counts = [np.bincount((orders[:, i] - orders[:, j]) % size, minlength=size) for i, j in pairs]
    assert all(c[0] == 0 for c in counts)
    return max(excess(c[1:]) for c in counts)


@pytest.mark.parametrize("size", [1, 2, SORTED, SMALLEST, 1000, 1024, 4093, 65_536, 100_003])
def test_an_order_is_a_permutation(size):
    order = draw_order(jax.random.key(size), size)
    rows = np.asarray(entries(order, size, jnp.int32(0), size))
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(np.sort(rows), np.arange(size))


@pytest.mark.parametrize("size", [SORTED, SMALLEST, 4093])
def test_parts_of_an_order_are_read_without_the_rest(size):
    order = draw_order(jax.random.key(0), size)
    whole = np.asarray(entries(order, size, jnp.int32(0), size))
    for start in (0, 7, size - 20):
        part = entries(order, size, jnp.int32(start), 20)
        np.testing.assert_array_equal(part, whole[start : start + 20])


@pytest.mark.parametrize("size", [10**6, 10**8 + 7, 2**31 - 1])
def test_large_sizes_have_distinct_rows_in_bounds_and_take_no_memory(size):
    order = draw_order(jax.random.key(1), size)
    assert order.size < 20
    rows = np.asarray(entries(order, size, jnp.int32(size - 5000), 5000))
    assert len(np.unique(rows)) == 5000 and rows.min() >= 0 and rows.max() < size
    # Quartiles of the range: 5000 rows, z of each quarter's share below 4.5.
    shares = np.bincount(rows // (size // 4 + 1), minlength=4) / 5000
    assert np.abs(shares - 0.25).max() < 4.5 * np.sqrt(0.25 * 0.75 / 5000)


# Probabilities that are off by 4 % in root mean square raise the excess by 7: 100,000 keys, 257 rows. Rows 0 and 16 begin with
# the same left half, and 0, 15, 16, 17 are at the corners of the halves.
def test_each_row_is_as_likely_at_each_place_and_pairs_are_uniform():
    orders = of_keys(SMALLEST, 18, 100_000, 0)
    for place in (0, 1, 17):
        assert excess(np.bincount(orders[:, place], minlength=SMALLEST)) < 4.5
    assert of_pairs(orders, SMALLEST, (0, 1, 15, 16, 17)) < 4.5


def test_the_count_of_pairs_sees_too_few_rounds(monkeypatch):
    monkeypatch.setattr(_reshuffling, "NUM_ROUNDS", 4)
    assert of_pairs(of_keys(SMALLEST, 18, 50_000, 0), SMALLEST, (0, 1, 16, 17)) > 20


def test_a_row_is_as_likely_at_each_place_by_the_shift_alone(monkeypatch):
    # Whatever the network does: here nothing.
    monkeypatch.setattr(_reshuffling, "_network", lambda keys, size, values: values)
    orders = of_keys(SMALLEST, 4, 100_000, 1)
    assert excess(np.bincount(orders[:, 3], minlength=SMALLEST)) < 4.5


@pytest.mark.parametrize("kind", ["sorted", "alternating", "blocks"])
def test_sums_over_a_batch_vary_as_without_replacement(kind):
    # The variance of a batch's mean is s^2 / n (1 - n / N) in a uniform permutation; 20,000 keys give it to 1 %.
    size, n, num_keys = 1000, 50, 20_000
    x = np.arange(size)
    x = {"sorted": x, "alternating": x % 2, "blocks": x // 32 % 2}[kind].astype(float)
    means = x[of_keys(size, n, num_keys, 2)].mean(1)
    variance = x.var(ddof=1) / n * (1 - n / size)
    assert abs(means.mean() - x.mean()) < 4.5 * np.sqrt(variance / num_keys)
    assert abs(means.var() / variance - 1) < 4.5 * np.sqrt(2 / num_keys)
