"""The hash of a traced program: equal however it is written down, different for another number, operation or array."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapilli.inference.fitting.storage._structure import hashed

SHAPE = jax.ShapeDtypeStruct((3,), jnp.float32)
UNARY = [jnp.sin, jnp.tanh, lambda x: jax.nn.softplus(x), lambda x: jax.lax.cumsum(x), jnp.square]


def drawn(rng):
    """A random program: statements (result, kind, operands, number), and the last result."""
    statements, known = [], ["x", "y"]
    for i in range(rng.randint(4, 9)):
        kind = rng.choice(["unary", "add", "scale", "array", "scan", "cond"])
        operands = [rng.choice(known), rng.choice(known)]
        number = np.float32(rng.uniform(0.5, 2.0)).item()
        statements.append((f"v{i}", kind, operands, number, rng.randrange(len(UNARY))))
        known.append(f"v{i}")
    return statements


def used(statements):
    """The statements that the last result depends on."""
    live, found = {statements[-1][0]}, []
    for statement in reversed(statements):
        if statement[0] in live:
            found.append(statement)
            live |= set(statement[2] if statement[1] == "add" else statement[2][:1])
    return found[::-1]


def applied(statement, as_array):
    name, kind, _, number, which = statement
    if kind == "unary":
        return UNARY[which]
    if kind == "add":
        return lambda a, b: a + b
    if kind == "scale":
        return lambda a: a * (jnp.float32(number) if as_array else number)
    if kind == "array":
        array = np.arange(3, dtype=np.float32) + np.float32(number)
        return lambda a: a + (jnp.asarray(array) if as_array else array)
    if kind == "scan":
        return lambda a: jax.lax.scan(lambda c, x: (c * number + x, c), 0.0, a)[1]
    return lambda a: jax.lax.cond(a[0] > 0, lambda a: a * number, lambda a: a, a)


def written(statements, rng=None):
    """The program as a function; with `rng` in another order, with other names, parts in jit, and numbers kept otherwise."""
    statements, again = list(statements), rng or random.Random(0)
    if rng is not None:
        ready, rest, order = {"x", "y"}, statements, []
        while rest:
            able = [s for s in rest if set(s[2]) <= ready]
            one = again.choice(able)
            order.append(one)
            ready.add(one[0])
            rest = [s for s in rest if s is not one]
    else:
        order = statements

    def program(x, y):
        values = {"x": x, "y": y}
        for statement in order:
            fn = applied(statement, rng is not None and again.random() < 0.5)
            if rng is not None and again.random() < 0.5:
                fn = jax.jit(fn)
                values[f"unused {statement[0]}"] = jnp.exp(x) * 7.0
            operands = statement[2] if statement[1] == "add" else statement[2][:1]
            values[statement[0]] = fn(*(values[name] for name in operands))
        return values[statements[-1][0]]

    return program


def hash_of(program):
    return hashed(program, SHAPE, SHAPE)


@pytest.mark.parametrize(
    "seed", [*range(5), *(pytest.param(s, marks=pytest.mark.slow) for s in range(5, 200))]
)
def test_equal_however_it_is_written_down_and_different_for_another_number(seed):
    rng = random.Random(seed)
    statements = drawn(rng)
    one = hash_of(written(statements))
    assert all(hash_of(written(statements, random.Random(i))) == one for i in range(3))
    live = used(statements)
    numbered = [s for s in live if s[1] not in ("unary", "add")]
    for statement in numbered:
        name, kind, operands, number, which = statement
        other = (name, kind, operands, number + 1e-6, which)
        changed = [other if s is statement else s for s in statements]
        assert hash_of(written(changed)) != one
    for statement in (s for s in live if s[1] == "unary"):
        other = (*statement[:4], (statement[4] + 1) % len(UNARY))
        assert hash_of(written([other if s is statement else s for s in statements])) != one
    for statement in (s for s in statements if s not in live):
        other = (*statement[:3], statement[3] + 1.0, statement[4])
        assert hash_of(written([other if s is statement else s for s in statements])) == one


def test_inputs_are_told_by_their_names():
    square = lambda inputs: inputs["a"] ** 2
    both = lambda x: {"a": x, "b": x}
    assert hashed(square, both(SHAPE)) != hashed(lambda i: i["b"] ** 2, both(SHAPE))
    more = {"0": SHAPE, **both(SHAPE)}
    assert hashed(square, both(SHAPE)) == hashed(square, more)


def callback(factor):
    def host(x):
        return np.sin(x) * factor

    return lambda x, y: jax.pure_callback(host, SHAPE, x)


def test_functions_of_the_host_count_with_what_they_close_over():
    other = lambda x, y: jax.pure_callback(lambda x: np.cos(x), SHAPE, x)
    assert hash_of(callback(1.0)) == hash_of(callback(1.0))
    assert len({hash_of(f) for f in (callback(1.0), callback(2.0), other)}) == 3


def test_keys_dtypes_and_large_arrays_count():
    def noise(seed, size=3):
        return lambda x, y: x + jax.random.normal(jax.random.key(seed), (size,))

    assert hash_of(noise(0)) == hash_of(noise(0)) != hash_of(noise(1))
    array = np.zeros((1000, 3), np.float32)
    changed = array.copy()
    changed[500, 1] = 1e-30  # NumPy's text leaves it out
    in_a_scan = lambda a: lambda x, y: jax.lax.scan(lambda c, row: (c + row, None), x, a)[0]
    assert hash_of(in_a_scan(array)) != hash_of(in_a_scan(changed))
    closed = lambda a: lambda x, y: jax.lax.fori_loop(0, 3, lambda i, c: c + jnp.asarray(a)[i], x)
    assert hash_of(closed(array)) != hash_of(closed(changed))
