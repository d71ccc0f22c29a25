"""Random numbers that do not come from a run are found, whichever way they come."""

import random

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

from lapilli import inference, ppl
from lapilli.ppl.inputs import own_noise

KEY = jax.random.key(0)
Y = np.linspace(-1.0, 1.0, 4, dtype=np.float32)


def guide(y, key=None):
    ppl.sample("b", dist.Normal(ppl.param("loc", 0.0), 1.0))


def model_of(noise):
    def model(y, key=None):
        b = ppl.sample("b", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", 4):
            ppl.sample("y", dist.Normal(b + noise(key), 1.0), obs=y)

    return model


def network(_):
    return ppl.module("net", eqx.nn.Linear(1, 4, key=jax.random.key(0)))(jnp.ones(1))


CALLS = {
    "predict": lambda m, a: inference.predict(m, {"b": np.zeros(3)}, KEY, *a),
    "simulate": lambda m, a: ppl.as_program(m).simulate(KEY, *a),
    "objective": lambda m, a: inference.elbo(m, guide).grad({"loc": 0.0}, KEY, *a),
    "fit": lambda m, a: inference.fit(m, args=a, num_steps=1, progress=False, k_hat="skip"),
    "fit of an objective": lambda m, a: inference.fit(
        inference.elbo(m, guide), optax.sgd(0.1), a, num_steps=1, progress=False
    ),
    "smc": lambda m, a: inference.smc(m, KEY, *a, num_particles=2),
    "tempered_smc": lambda m, a: inference.tempered_smc(m, KEY, *a, num_particles=2),
}


@pytest.mark.parametrize(
    "noise",
    [
        lambda key: jax.random.normal(jax.random.key(3), (4,)),
        lambda key: jax.random.normal(jax.random.PRNGKey(3), (4,)),
        lambda key: jax.random.gamma(jax.random.fold_in(key, 1), 2.0, (4,)),
        lambda key: 1.0 * jax.random.permutation(key, 4),
    ],
    ids=["constant", "raw", "argument", "permutation"],
)
@pytest.mark.parametrize("call", ["objective", "fit", "smc", "tempered_smc", "predict"])
def test_a_key_that_is_not_the_runs_is_refused(noise, call):
    with pytest.raises(
        ValueError, match=r"line \d+ of 'test_own_noise.py' draws random numbers.*rng_key"
    ):
        CALLS[call](model_of(noise), (Y, jax.random.key(7)))


@pytest.mark.parametrize(
    "noise",
    [
        lambda _: np.random.normal(size=4),
        lambda _: float(np.random.uniform()),
        lambda _: random.gauss(0.0, 1.0),
    ],
    ids=["array", "number", "python"],
)
@pytest.mark.parametrize("call", ["simulate", "objective", "fit", "smc", "tempered_smc"])
def test_numbers_of_numpy_and_python_are_refused(noise, call):
    with pytest.raises(ValueError, match="gives another value each time it is run.*rng_key"):
        CALLS[call](model_of(noise), (Y,))


def test_a_generator_of_numpys_own_is_seen_by_fit():
    noise = lambda _: np.random.default_rng().normal(size=4)
    for call in ("fit", "fit of an objective"):
        with pytest.raises(ValueError, match="gives another value each time it is run"):
            CALLS[call](model_of(noise), (Y,))


FIXED = np.random.default_rng(0).normal(size=4)


@pytest.mark.parametrize(
    "noise",
    [
        lambda _: jax.random.normal(ppl.rng_key("noise"), (4,)),
        lambda _: FIXED,
        lambda _: np.random.default_rng(0).normal(size=4),
        network,
        lambda _: ppl.param("w", lambda key: jax.random.normal(key, (4,))),
        lambda _: ppl.param("w", np.random.normal(size=4)),
    ],
    ids=["rng_key", "constant", "seeded", "network", "start by key", "start by NumPy"],
)
@pytest.mark.parametrize("call", ["simulate", "fit of an objective", "smc"])
def test_noise_of_the_run_constants_and_starts_pass(noise, call):
    CALLS[call](model_of(noise), (Y,))


def test_another_thread_may_draw_meanwhile(monkeypatch):
    def drawn_elsewhere(_):
        np.random.normal()  # as a thread that loads data would
        return 0.0

    CALLS["simulate"](model_of(drawn_elsewhere), (Y,))


def test_loops_and_branches_are_looked_into():
    own = jax.random.key(1)

    def scan(key, x):
        return jax.lax.scan(lambda c, _: (c, x + jax.random.normal(own)), 0.0, None, length=2)[1]

    def split(key, x):
        def step(key, _):
            key, now = jax.random.split(key)
            return key, jax.random.normal(now)

        return jax.lax.scan(step, key, None, length=2)[1]

    def branch(key, x):
        return jax.lax.cond(x > 0, lambda: jax.random.normal(own), lambda: jax.random.normal(key))

    def loop(key, x):
        return jax.lax.fori_loop(0, x.astype(int), lambda i, c: c + jax.random.normal(own), 0.0)

    count = lambda fn: len(own_noise(jax.make_jaxpr(fn)(KEY, 1.0), [True, False]))
    assert [count(fn) for fn in (scan, split, branch, loop)] == [1, 0, 1, 1]
