"""Indices out of range are found where they are known, and only where what is read counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapilli.ppl.inputs import heard, suspects

TABLE = 1.0 + jnp.arange(3.0) ** 2
MATRIX = jnp.arange(12.0).reshape(3, 4)


def found(fn, table, *args):
    """Values out of range that count."""
    closed = jax.make_jaxpr(fn)(table, *args)
    known = [None, *args]
    lookups = suspects(closed, known)
    return [x.value for x in heard(closed, [table, *args], known)] if lookups else []


# Ways to look up rows, how far the index is moved, and whether numbers from the end, and beyond it, are read silently.
WAYS = {
    "index": (lambda e, g: e[g], 0, True, True),
    "index of rows": (lambda e, g: jnp.stack([e, e], 1)[g], 0, True, True),
    "second axis": (lambda e, g: jnp.stack([e, e])[:, g], 0, True, True),
    "two axes": (lambda e, g: jnp.outer(e, e)[g, g], 0, True, True),
    "take": (lambda e, g: jnp.take(e, g), 0, True, False),
    "take_along_axis": (lambda e, g: jnp.take_along_axis(e, g, 0), 0, True, False),
    "codes from 1": (lambda e, g: e[g - 1], -1, True, True),
    "moved up": (lambda e, g: e[2 * g - g + 1], 1, True, True),
    "through floats": (lambda e, g: e[(g * 1.0).astype(int)], 0, True, True),
    "vmap": (lambda e, g: jax.vmap(lambda i: e[i])(g), 0, True, True),
    "jit": (lambda e, g: jax.jit(lambda e, g: e[g])(e, g), 0, True, True),
    "checkpoint": (lambda e, g: jax.checkpoint(lambda e, g: e[g])(e, g), 0, True, True),
    "reshaped": (lambda e, g: e[g.reshape(2, 3)], 0, True, True),
    "a slice of it": (lambda e, g: e[g[:-1]], 0, True, True),
    "scan": (lambda e, g: jax.lax.scan(lambda c, g: (c, e[g]), 0.0, g)[1], 0, True, True),
    "scan, moved": (lambda e, g: jax.lax.scan(lambda c, g: (c, e[g - 1]), 0.0, g)[1], -1, True, True),
    "fori_loop": (
        lambda e, g: jax.lax.fori_loop(0, 6, lambda i, total: total + e[g[i]] * (i + 1.0), 0.0), 0, True, True
    ),
    "fori_loop, moved": (
        lambda e, g: jax.lax.fori_loop(1, 6, lambda i, total: total + e[g[i - 1] - 1] * i, 0.0), -1, True, True
    ),
    "fori_loop in a scan": (
        lambda e, g: jax.lax.scan(
            lambda c, g: (jax.lax.fori_loop(0, 3, lambda i, c: c + e[g[i]] * (i + 1.0), c), None), 0.0, g.reshape(2, 3)
        )[0],
        0, True, True,
    ),
    "scan of scans": (
        lambda e, g: jax.lax.scan(
            lambda c, g: jax.lax.scan(lambda c, i: (c, e[i]), c, g), 0.0, g.reshape(2, 3)
        )[1],
        0,
        True,
        True,
    ),
    "scan of rows": (
        lambda e, g: jax.lax.scan(lambda c, g: (c, e[g]), 0.0, g.reshape(3, 2))[1], 0, True, True
    ),
    "dynamic slice": (lambda e, g: jax.lax.dynamic_slice_in_dim(e, g[0], 1), 0, True, True),
    "added to": (lambda e, g: jnp.zeros(3).at[g].add(1.0 + jnp.arange(6.0)), 0, True, False),
    "set": (lambda e, g: jnp.zeros(3).at[g].set(1.0 + jnp.arange(6.0)), 0, True, False),
    # What is asked for.
    "segments": (lambda e, g: jax.ops.segment_sum(jnp.arange(6.0), g, 3), 0, False, False),
    "added zeros": (lambda e, g: jnp.zeros(3).at[g].add(1.0 * (g >= 0)), 0, False, False),
    "clipped": (lambda e, g: e[jnp.clip(g, 0, 2)], 0, False, False),
    "mode clip": (lambda e, g: jnp.take(e, g, mode="clip"), 0, False, False),
    "mode wrap": (lambda e, g: jnp.take(e, g, mode="wrap"), 0, False, False),
    "mode fill": (lambda e, g: e.at[g].get(mode="fill", fill_value=0.0), 0, True, False),
    "one-hot": (lambda e, g: jax.nn.one_hot(g, 3) @ e, 0, False, False),
    "left out": (lambda e, g: jnp.where((g >= 0) & (g < 3), e[g], 0.0), 0, False, False),
    "multiplied by zero": (lambda e, g: e[g] * ((g >= 0) & (g < 3)), 0, False, False),
    "not used": (lambda e, g: (e[g], e.sum())[1], 0, False, False),
    "behind a condition": (
        lambda e, g: jax.lax.cond((g >= 0).all(), lambda: e[g], lambda: 0.0 * e[g * 0]), 0, False, True
    ),
    "in a branch": (
        lambda e, g: jax.lax.cond(e.sum() > 0, lambda: e[g], lambda: 0.0 * e[g * 0]), 0, True, True
    ),
    "in a branch that is not taken": (
        lambda e, g: jax.lax.cond(e.sum() < 0, lambda: e[g], lambda: 0.0 * e[g * 0]), 0, False, False
    ),
    "one of three branches": (
        lambda e, g: jax.lax.switch(g.size - 4, [lambda: 0.0 * e[g * 0], lambda: e[:1] * g, lambda: e[g]]), 0, True, True
    ),
    "in a loop": (
        lambda e, g: jax.lax.while_loop(lambda c: c[0] < e[0] + 2, lambda c: (c[0] + 1, c[1] + e[g]), (0, 0.0 * g))[1],
        0, True, True,
    ),
    "in a loop that is not run": (
        lambda e, g: jax.lax.while_loop(lambda c: c[0] < e[0] - 2, lambda c: (c[0] + 1, c[1] + e[g]), (0, 0.0 * g))[1],
        0, False, False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_silent_lookup_is_found_and_no_other(way):
    fn, shift, reads_before, reads_beyond = WAYS[way]
    rng = np.random.default_rng(len(way))
    run = lambda e, g: [fn(e, g)]
    cases = {"inside": (0, 3), "before": (-2, 2), "beyond": (1, 5)}
    for case, (low, high) in cases.items():
        g = rng.integers(low, high, 6).astype(np.int32)
        g[0] = {"inside": 1, "before": -1, "beyond": 4}[case]
        g[-1] = 0  # which "a slice of it" does not read
        values = found(run, TABLE, g - shift)
        expected = {"inside": False, "before": reads_before, "beyond": reads_beyond}[case]
        assert bool(values) == expected, (case, g, values)
        if expected:
            assert values[0] in g and not 0 <= values[0] < 3


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "int32", "uint32"])
def test_all_types_of_integers(kind):
    g = np.array([0, 5, 1], kind)
    assert found(lambda e, g: [e[g]], TABLE, g) == [5]


FROM_THE_END = {
    "the last one": lambda e: e[-1],
    "slices": lambda e: jnp.concatenate([e[-2:], e[::-1]]),
    "numbers that are computed": lambda e: e[jnp.arange(3) - 1],
    "a whole turn": lambda e: jnp.tile(e, 2)[np.arange(6) - 1],
    "a whole turn in rows": lambda e: jnp.stack([e, e], 1).repeat(2, 0)[np.arange(6) - 2],
    "the last two": lambda e: e[np.array([-2, -1])],
    "back from the last": lambda e: e[jnp.array([-1, -2])],
    "in a scan": lambda e: jax.lax.scan(
        lambda c, t: (c + e[t - 1], None), 0.0, jnp.arange(3)
    )[0],
    "in a loop": lambda e: jax.lax.fori_loop(0, 3, lambda i, c: c * 0.5 + e[i - 1], 0.0),
}  # fmt: skip


@pytest.mark.parametrize("way", FROM_THE_END)
def test_numbers_of_a_program_count_from_the_end(way):
    assert found(lambda e: [FROM_THE_END[way](e)], TABLE) == []


def closed_over(codes):
    """Ways to read rows by data that a program has without an argument."""
    kind = codes.dtype.type
    from_one, sent = codes + kind(1), jnp.asarray(codes)
    return [
        lambda e: e[codes],
        lambda e: e[sent],
        lambda e: e[jnp.asarray(from_one) - 1],
        lambda e: jnp.stack([e, e])[:, codes],
        lambda e: jax.vmap(lambda i: e[i])(sent),
        lambda e: jax.lax.scan(lambda c, i: (c, e[i]), 0.0, sent)[1],
        lambda e: jax.lax.fori_loop(0, codes.size, lambda i, c: c + e[sent[i]] * (i + 1.0), 0.0),
        lambda e: e[jnp.concatenate([sent, sent[:1]])],
    ]


@pytest.mark.slow_for("1", "2", "3")
@pytest.mark.parametrize("seed", range(4))
def test_codes_that_a_program_closes_over_are_data(seed):
    """Few of them, and none twice: what is left is that one is missing beside others that are not."""
    rng = np.random.default_rng(seed)
    table = 1.0 + jnp.arange(4.0) ** 2
    for kind in (np.int32, np.int64, np.int8):
        codes = rng.permutation(4)[: rng.integers(1, 3)]
        codes = rng.permutation([*codes, -1]).astype(kind)
        for n, read in enumerate(closed_over(codes)):
            assert set(found(lambda e, read=read: [read(e)], table)) == {-1}, (n, codes)
            there = closed_over(np.abs(codes))[n]
            assert found(lambda e, there=there: [there(e)], table) == [], (n, codes)
    assert found(lambda e: [e[np.array([0, 3])]], TABLE) == [3]
    # Three rows of three groups may be in order by accident.
    assert found(lambda e: [e[np.array([-1, 0, 1])]], TABLE) == [-1]
    # More than there are to look up, or one twice: no order of entries.
    assert found(lambda e: [e[np.array([-1, -2, -3, -1])]], TABLE) == [-1]


def test_tables_that_begin_with_equal_numbers_are_told_apart():
    g = np.array([0, -1])
    assert found(lambda e, g: [e[g]], jnp.zeros(3), g) == [-1]
    assert found(lambda e, g: [e[g]], jnp.ones((3, 2), int) * jnp.arange(3)[:, None], g) == [-1]


def test_indices_that_are_drawn_or_learned_are_not_known():
    def run(e, key, g):
        z = jax.random.categorical(key, e)
        return [e[z], e[jnp.argmax(e)], e[g + z]]

    closed = jax.make_jaxpr(run)(TABLE, jax.random.key(0), np.array([7]))
    assert not suspects(closed, [None, None, np.array([7])])


def test_a_matrix_is_looked_up_by_axis():
    g, h = np.array([0, 2]), np.array([3, 1])
    assert found(lambda e, g, h: [e[g, h]], MATRIX, g, h) == []
    assert found(lambda e, g, h: [e[h, g]], MATRIX, g, h) == [3]
    pairs = np.array([[0, 3], [2, 4]])
    assert found(lambda e, p: [e[p[:, 0], p[:, 1]]], MATRIX, pairs) == [4]


def test_a_value_of_a_trace_outside_is_not_known():
    """A scan whose body reads a parameter, looked through inside of `jax.jit`; the index beside it is found all the same."""
    seen = []

    def outer(parameter):
        def program(table, index):
            step = lambda carry, i: (carry, parameter * table[i])
            return jax.lax.scan(step, 0.0, index)[1]

        closed = jax.make_jaxpr(program)(TABLE, jnp.array([0, 5]))
        seen.extend(x.value for x in suspects(closed, [None, np.array([0, 5])]))
        return parameter

    jax.jit(outer)(1.0)
    assert seen == [5]


def test_a_key_that_a_program_makes_is_not_known():
    """A scan whose body draws with it: no number of NumPy, and the index beside it is found all the same."""

    def program(table, index):
        key = jax.random.key(0)
        step = lambda carry, i: (carry, table[i] + jax.random.normal(jax.random.fold_in(key, i)))
        return jax.lax.scan(step, 0.0, index)[1]

    index = np.array([0, 5])
    closed = jax.make_jaxpr(program)(TABLE, index)
    assert [x.value for x in suspects(closed, [None, index])] == [5]
