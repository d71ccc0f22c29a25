"""NaN of which a whole number is made is found where it is known, and only where that number counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapilli.ppl.inputs import heard, suspects

TABLE = 1.0 + jnp.arange(4.0) ** 2
NAN = np.float32("nan")


def found(fn, table, *args):
    """Where NaN counts."""
    closed = jax.make_jaxpr(fn)(table, *args)
    known = [None, *args]
    return (
        [x.place for x in heard(closed, [table, *args], known)] if suspects(closed, known) else []
    )


def loop(e, g):
    whole = g.astype(int)
    return jax.lax.fori_loop(0, 6, lambda i, total: total + e[whole[i]] * (i + 1.0), 0.0)


# What is made of six codes of 0 to 3.
WAYS = {
    "index": lambda e, g: e[g.astype(int)],
    "index, unsigned": lambda e, g: e[g.astype(jnp.uint8)],
    "index of rows": lambda e, g: jnp.outer(e, e)[g.astype(int)],
    "take": lambda e, g: jnp.take(e, g.astype(int)),
    "rounded": lambda e, g: e[jnp.round(g).astype(int)],
    "moved": lambda e, g: e[(g + 1.0).astype(int) - 1],
    "clipped": lambda e, g: e[jnp.clip(g, 0, 3).astype(int)],
    "one hot": lambda e, g: jax.nn.one_hot(g.astype(int), 4) @ e,
    "sums by group": lambda e, g: jax.ops.segment_sum(jnp.arange(1.0, 7.0), g.astype(int), 4) * e,
    "count": lambda e, g: e.sum() ** g.astype(int),
    "truth value": lambda e, g: jnp.where(g.astype(bool), e[0], e[1]),
    "branch": lambda e, g: jax.lax.switch(g[3].astype(int), [lambda: e[0], lambda: e[1], lambda: e[2]]),
    "vmap": lambda e, g: jax.vmap(lambda i: e[i.astype(int)])(g),
    "jit": lambda e, g: jax.jit(lambda e, g: e[g.astype(int)])(e, g),
    "scan": lambda e, g: jax.lax.scan(lambda c, i: (c, e[i.astype(int)]), 0.0, g)[1],
    "scan over rows": lambda e, g: jax.lax.scan(lambda c, i: (c, e[i.astype(int)]), 0.0, g.reshape(2, 3))[1],
    "loop": loop,
    "place of the largest": lambda e, g: e[jnp.argmax(g.reshape(2, 3), 1)],
    "place of the least": lambda e, g: e[jnp.argmin(g[2:])],
}  # fmt: skip
# What does without NaN, or does not read what is made of it.
IDIOMS = {
    "replaced before": lambda e, g: e[jnp.where(jnp.isnan(g), 0, g).astype(int)],
    "nan_to_num": lambda e, g: e[jnp.nan_to_num(g).astype(int)],
    "replaced behind": lambda e, g: e[jnp.where(jnp.isnan(g), 3, g.astype(int))],
    "left out": lambda e, g: jnp.where(jnp.isnan(g), 0.0, e[g.astype(int)]),
    "left out of a sum": lambda e, g: jnp.sum(e[g.astype(int)], where=~jnp.isnan(g)),
    "mask": lambda e, g: jnp.where(g > 0, e[0], e[1]) * (~jnp.isnan(g)),
    "which are there": lambda e, g: (~jnp.isnan(g)).astype(int) * e[0],
    "not read": lambda e, g: (g.astype(int), e.sum())[1],
    "times nothing": lambda e, g: e.sum() + 0 * e[g.astype(int)],
}


@pytest.mark.parametrize("way", WAYS)
def test_nan_that_becomes_a_whole_number_is_found(way):
    fn = lambda e, g: [WAYS[way](e, g)]
    rng = np.random.default_rng(0)
    for count in (0, 1, 2):
        g = rng.integers(0, 4, 6).astype(np.float32)
        g[[3, 5][:count]] = NAN
        assert bool(found(fn, TABLE, g)) == bool(count), (count, g)


@pytest.mark.parametrize("idiom", IDIOMS)
def test_nan_that_is_replaced_or_left_out_may_stay(idiom):
    fn = lambda e, g: [IDIOMS[idiom](e, g)]
    g = np.array([0, 1, NAN, 3, NAN, 2], np.float32)
    assert not found(fn, TABLE, g)


def test_nan_that_a_program_holds_is_found_too():
    g = jnp.array([0, NAN, 1])
    assert found(lambda e: [e[g.astype(int)]], TABLE) == [(1,)]


def test_all_of_them_may_be_nan():
    assert found(lambda e, g: [e[g.astype(int)]], TABLE, np.full(3, NAN)) == [(0,)]


def test_infinity_is_a_number_out_of_range():
    g = np.array([0, np.inf], np.float32)
    assert found(lambda e, g: [e[g.astype(int)]], TABLE, g) == [(1,)]


def test_what_is_drawn_is_not_known():
    def run(e, key, g):
        return [e[(g + jax.random.uniform(key)).astype(int)]]

    g = np.array([0, NAN], np.float32)
    assert not suspects(jax.make_jaxpr(run)(TABLE, jax.random.key(0), g), [None, None, g])
