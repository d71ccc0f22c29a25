"""What a call was given ends with it: no array and no program stays behind in a cache."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from _slope import new_programs

from lapilli import inference, ppl

KEY = jax.random.key(0)
STEPS = {"num_steps": 3, "progress": False, "k_hat": "skip"}
NUM_ROWS = 5000


def rows(seed):
    x = np.random.default_rng(seed).normal(size=NUM_ROWS).astype(np.float32)
    return x, 0.5 * x


def fit(seed, **options):
    objective = inference.elbo(*new_programs())
    inference.fit(objective, optax.adam(0.01), rows(seed), **STEPS, **options)
    return [weakref.ref(objective)]


def gradient(seed):
    objective = inference.elbo(*new_programs(), strategies={"slope": "reinforce"})
    x, y = map(jnp.asarray, rows(seed))
    params = objective.init(KEY, x, y)
    objective.value_and_grad(params, KEY, x, y)
    jax.jit(objective.value_and_grad)(params, KEY, x, y)
    return [weakref.ref(objective), weakref.ref(x)]


def second_derivative(seed):
    x = jnp.asarray(rows(seed)[0])
    expectation = ppl.expectation(lambda p: (ppl.sample("z", dist.Normal(p, 1.0)) * x).sum())
    jax.hessian(lambda p: expectation.value(p, KEY))(1.0)
    return [weakref.ref(expectation), weakref.ref(x)]


def predictions(seed):
    data = rows(seed)
    result = inference.fit(inference.elbo(*new_programs()), optax.adam(0.01), data, **STEPS)
    result.predict(KEY, data[0], num_samples=2)
    result.posterior(KEY, 2)
    return [weakref.ref(result)]


def particles(seed):
    shifts = jnp.asarray(rows(seed)[0])

    def series(ys):
        def step(z, y):
            z = ppl.sample("z", dist.Normal(0.9 * z + shifts.mean(), 1.0))
            ppl.sample("y", dist.Normal(z, 0.5), obs=y)
            return z, None

        ppl.scan(step, 0.0, ys)

    inference.smc(series, KEY, jnp.zeros(3), num_particles=4)
    return [weakref.ref(series), weakref.ref(shifts)]


CALLS = {
    "fit": fit,
    "gradient": gradient,
    "second_derivative": second_derivative,
    "predictions": predictions,
}
SLOW = {
    "minibatches": lambda seed: fit(seed, subsample={"rows": 100}),
    "seeds": lambda seed: fit(seed, num_seeds=2),
    "particles": particles,
}


@pytest.fixture(scope="module", autouse=True)
def only_new_objects():
    """What is there already is not looked through again: a collection takes seconds at the end of a long run of tests."""
    gc.collect()
    gc.freeze()


def large():
    gc.collect()
    return sum(x.size >= NUM_ROWS for x in jax.live_arrays())


@pytest.mark.parametrize(
    "call", [*CALLS.values(), *(pytest.param(c, marks=pytest.mark.slow) for c in SLOW.values())],
    ids=[*CALLS, *SLOW],
)  # fmt: skip
def test_no_data_and_no_object_outlives_a_call(call):
    before = large()
    refs = call(0)
    assert large() == before
    assert all(ref() is None for ref in refs)


def test_the_test_sees_what_a_cache_holds():
    cache = [jnp.zeros(NUM_ROWS)]
    assert large() >= 1
    cache.clear()


@pytest.mark.slow
def test_two_hundred_fits_of_new_programs_leave_the_process_as_large_as_ten():
    def size():
        gc.collect()
        with open("/proc/self/statm") as pages:
            return int(pages.read().split()[1]) * 4096

    for seed in range(10):
        fit(seed)
    before = size()
    for seed in range(200):
        fit(seed)
    # The data of 200 fits are 8 MB, what was compiled for them would be some hundreds.
    assert size() - before < 20e6
