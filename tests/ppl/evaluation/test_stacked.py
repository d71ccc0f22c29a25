"""Alike equations run as one: the same numbers, and a program whose size does not grow with its sites."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _long_programs import chain, size_of_gradient

from lapilli import inference
from lapilli.ppl.evaluation import passes, stacked
from lapilli.ppl.evaluation._stacked import (
    StackedSum,
    _scheduled,
    _with_long_sums,
    order_of,
    run_stacked,
)

OPERATIONS = (
    jnp.tanh,
    lambda x: 0.3 * x,
    lambda x: jnp.where(x > 0.1, x, 0.5 * x),
    lambda x: jax.nn.softplus(x),
    lambda x: x[::-1] if x.ndim else x,
    lambda x: jnp.sort(jnp.stack([x.sum(), x.sum() - 1.0]))[0],
    lambda x: jnp.cumsum(jnp.atleast_1d(x)),
)


def program(seed, num=20):
    """A function of a vector and a key: a block of random operations, repeated, with what is carried, shared and summed."""
    rng = np.random.default_rng(seed)
    block = rng.integers(len(OPERATIONS), size=4)
    reads, numbers = rng.integers(num, size=num), rng.normal(size=num).round(1)
    carries, is_dense = rng.random() < 0.7, rng.random() < 0.5

    def fn(x, key):
        total, carry, kept = jnp.zeros(()), x[0], []
        for i in range(num):
            y = x[i] if is_dense else x[reads[i]] * x[(i * 7) % num]
            y = y + numbers[i] * jax.random.normal(jax.random.fold_in(key, i), (2,))
            for number in block:
                y = OPERATIONS[number](y)
            if carries:
                carry = 0.9 * carry + y.sum()
                y = y * carry
            total = total + y.sum()
            kept.append(y.sum())
        return [total, jnp.stack(kept[:: 1 + seed % 3]), *kept[:2]]

    return fn, num


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 12))]
)  # slow: more of them; equation by equation
def test_values_and_gradients_are_those_of_the_program(seed):
    fn, num = program(seed)
    x, key = jnp.linspace(-1.0, 1.0, num), jax.random.key(seed)
    closed = jax.make_jaxpr(fn)(x, key)
    order = _scheduled(_with_long_sums(closed.jaxpr.eqns, closed.jaxpr.outvars))
    assert len(order) < len(closed.jaxpr.eqns)
    short = lambda *args: run_stacked(closed, args, order)
    loss = lambda fn: lambda x: sum(jnp.sum(out) for out in fn(x, key))
    expected, found = [(f(x, key), jax.grad(loss(f))(x)) for f in (fn, short)]
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * float(jnp.abs(a).max()))


def test_draws_are_the_same_to_the_bit():
    draws = lambda key: [jax.random.normal(jax.random.fold_in(key, i)) for i in range(40)]
    key = jax.random.key(1)
    assert [float(x) for x in draws(key)] == [float(x) for x in jax.jit(stacked(draws))(key)]


def sites(num):
    return inference.elbo(*chain(num), check_jumps=False)


def test_a_gradient_has_few_equations_more_for_a_site_more():
    size = lambda num: size_of_gradient(sites(num))
    assert (size(40) - size(20)) / 20 < 12
    with passes():
        assert (size(40) - size(20)) / 20 > 50


@pytest.mark.slow(reason="the program without the pass to compile")
def test_the_gradient_of_many_sites_is_that_without_the_pass():
    objective, key = sites(10), jax.random.key(3)
    params = objective.init(key, 0.5)
    value, grads = objective.value_and_grad(params, key, 0.5)
    with passes():
        expected, slow = sites(10).value_and_grad(params, key, 0.5)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for name in params:
        np.testing.assert_allclose(grads[name], slow[name], rtol=1e-4, atol=1e-5)


def test_what_is_not_halved_runs_as_it_stands():
    def different(x):
        for _ in range(50):
            x = jnp.concatenate([x, jnp.sin(x[:1]), jnp.cos(x[:1])])
        return [x]

    def printing(x):
        for _ in range(300):
            jax.debug.callback(lambda x: None, x[0])
        return [x]

    for fn in (different, printing):
        assert order_of(jax.make_jaxpr(fn)(jnp.ones(1))) is None


def test_groups_that_wait_for_each_other_run_in_parts():
    def crossed(x):  # one kind needs the other, and the other the one
        a = [jnp.tanh(x[i]) * 2.0 for i in range(40)]
        b = [jnp.tanh(jnp.sin(v) + a[0]) * 2.0 for v in a]
        return [jnp.stack(a + b + [jnp.tanh(jnp.sin(v)) for v in b])]

    x = jnp.linspace(0.0, 1.0, 40)
    np.testing.assert_allclose(stacked(crossed)(x)[0], crossed(x)[0], rtol=1e-6)


def test_partial_sums_that_are_read_stay():
    def walk(x):
        total, states = 0.0, []
        for i in range(50):
            total = total + jnp.sin(x[i]) * 2.0 - 1.0
            states.append(total)
        return [jnp.stack(states)]

    def plain(x):
        return [sum(jnp.sin(x[i]) * 2.0 for i in range(50))]

    x = jnp.linspace(0.0, 1.0, 50)
    np.testing.assert_allclose(stacked(walk)(x)[0], walk(x)[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stacked(plain)(x)[0], plain(x)[0], rtol=1e-6)
    order = order_of(jax.make_jaxpr(plain)(x))
    assert order is not None and any(
        isinstance(eqn, StackedSum) for group in order for eqn in group
    )
