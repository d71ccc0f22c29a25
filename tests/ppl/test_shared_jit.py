"""Programs that are traced to the same text are compiled once, and nothing of them is kept."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _compilations import compilations

from lapilli.ppl import _shared_jit
from lapilli.ppl._shared_jit import compiled_alone, shared_call, shared_jit


@pytest.fixture(autouse=True)
def no_executables(monkeypatch):
    monkeypatch.setattr(_shared_jit, "_executables", type(_shared_jit._executables)())


def scaled(factor):
    """A new function in each call."""
    return shared_jit(lambda x: {"y": jax.lax.scan(lambda c, _: (c * factor, None), x, None, 3)[0]})


@pytest.mark.parametrize(
    "factor", [2.0, np.float32(2.0), jnp.arange(3.0), np.arange(5000.0, dtype=np.float32)],
    ids=["number", "NumPy's", "array", "large"],
)  # fmt: skip
def test_equal_programs_are_compiled_once(factor):
    x = jnp.ones(np.shape(factor) or (3,))
    first = scaled(factor)(x)["y"]
    with compilations() as num_compiled:
        second = scaled(factor)(x)["y"]
    assert num_compiled() == 0
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, np.asarray(x) * np.asarray(factor) ** 3, rtol=1e-6)


def test_the_counter_sees_what_jax_compiles_twice():
    make = lambda: jax.jit(lambda x: jnp.sin(x) * 2.0)
    make()(jnp.ones(3))
    with compilations() as num_compiled:
        make()(jnp.ones(3))
    assert num_compiled() == 1


@pytest.mark.parametrize("size", [3, 5000])
def test_other_arrays_in_an_equal_program_are_inputs(size):
    x = jnp.ones(size)
    for kind in (jnp.asarray, np.asarray):
        for factor in (2.0, 3.0):
            y = scaled(kind(np.full(size, factor, np.float32)))(x)["y"]
            np.testing.assert_allclose(y, factor**3)
    factor = jnp.full(size, 4.0, jnp.float32)
    with compilations() as num_compiled:
        y = scaled(factor)(x)["y"]
    assert num_compiled() == 0
    np.testing.assert_allclose(y, 64.0)


def test_other_numbers_and_other_unused_inputs_are_other_programs():
    x = jnp.ones(3)
    assert float(scaled(2.0)(x)["y"][0]) == 8.0 and float(scaled(3.0)(x)["y"][0]) == 27.0
    first = lambda: shared_jit(lambda x, unused: x + 1.0)
    for unused in (jnp.ones(2), jnp.ones(4), jnp.int32(0)):
        np.testing.assert_array_equal(first()(x, unused), [2.0, 2.0, 2.0])


def test_one_function_serves_all_structures_and_types():
    double = shared_jit(lambda tree: jax.tree.map(lambda x: x * 2, tree))
    assert double(3) == 6 and double(1.5) == 3.0
    assert double({"a": np.float32(1.0), "b": [jnp.int32(2)]}) == {"a": 2.0, "b": [4]}
    assert double(jnp.int8(3)).dtype == jnp.int8
    key = shared_jit(lambda key: jax.random.split(key))(jax.random.key(0))
    assert (
        jax.random.key_data(key) == jax.random.key_data(jax.random.split(jax.random.key(0)))
    ).all()
    with jax.enable_x64(True):
        assert double(np.float64(1e-300)).dtype == np.float64
    assert double(np.float64(1.0)).dtype == np.float32


def test_what_a_callback_does_is_not_shared():
    seen = []

    def calling(name):
        def fn(x):
            jax.debug.callback(lambda x: seen.append(name), x)
            return x + 1.0

        return shared_jit(fn)

    for name in ("one", "two"):
        calling(name)(jnp.ones(3))
        jax.effects_barrier()
    assert seen == ["one", "two"]


def test_donated_memory_is_used():
    grow = shared_jit(lambda state, x: (state + x, x), donate_argnums=(0,))
    state, x = jnp.zeros(3), jnp.ones(3)
    new, _ = grow(state, x)
    assert state.is_deleted() and not x.is_deleted()
    np.testing.assert_array_equal(new, 1.0)


def test_under_a_transformation_it_is_traced():
    fn = shared_jit(lambda x: x**2)
    assert float(jax.grad(fn)(3.0)) == 6.0
    np.testing.assert_array_equal(jax.vmap(fn)(jnp.arange(3.0)), [0.0, 1.0, 4.0])

    @jax.jit
    def outer(x):
        return shared_jit(lambda y: x * y)(2.0)  # closes over a tracer

    assert float(outer(3.0)) == 6.0


WHOLE = compiled_alone(lambda x: jnp.cumsum(jnp.sinh(x)) ** 3 - x.min())


@pytest.mark.parametrize("run", [WHOLE, lambda x: shared_call(lambda x: jnp.cosh(x).sum() / x, x)])
def test_a_function_is_one_program_outside_of_a_trace_and_part_of_what_is_traced(run):
    x = jnp.arange(1.0, 8.0)
    with compilations() as num_compiled:
        found = run(x)
    assert num_compiled() == 1
    traced = {eqn.primitive.name for eqn in jax.make_jaxpr(run)(x).eqns}
    assert {"sinh", "cosh"} & traced
    np.testing.assert_allclose(jax.jit(run)(x), found, rtol=1e-6)


def test_nothing_of_a_program_is_kept():
    class Data:
        def __init__(self, seed):
            self.x = jax.random.normal(jax.random.key(seed), (10_000,))

    def run(seed):
        data = Data(seed)
        total = shared_jit(lambda y: (data.x * y).sum())
        total(2.0)
        return weakref.ref(data), weakref.ref(data.x)

    refs = [ref for seed in range(3) for ref in run(seed)]
    gc.collect()
    assert not any(ref() is not None for ref in refs)
    assert len(_shared_jit._executables) == 1


def test_the_last_used_are_kept(monkeypatch):
    monkeypatch.setattr(_shared_jit, "MOST_KEPT", 2)
    for factor in (1.0, 2.0, 1.0, 3.0):
        scaled(factor)(jnp.ones(3))
    assert len(_shared_jit._executables) == 2
    with compilations() as num_compiled:
        scaled(1.0)(jnp.ones(3))
    assert num_compiled() == 0
