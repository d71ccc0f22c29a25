"""JAX's modes of debugging: what works without them works with them, and gives the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from _mixed_calls import SERIES, X, Y, arrays, calls, drift, line, line_guide, mixture

from lapilli import inference, ppl

MODES = {
    "rank_promotion": lambda: jax.numpy_rank_promotion("raise"),
    "debug_nans": lambda: jax.debug_nans(True),
}
# Here nothing is compiled, or each trace is looked through when it ends: small programs only.
SLOWER = {
    "disable_jit": lambda: jax.disable_jit(),
    "checking_leaks": lambda: jax.checking_leaks(),
}
ROWS = np.stack([X, X**2, np.ones_like(X)], 1)


@ppl.model
def plane(x, y=None):
    slopes = ppl.sample("slopes", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    scale = ppl.sample("scale", dist.LogNormal(-1.0, 0.5))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(x @ slopes, scale), obs=y)


@ppl.model
def hidden(y):
    def step(k, y):
        k = ppl.sample("k", dist.Categorical(jnp.array([[0.9, 0.1], [0.2, 0.8]])[k]))
        ppl.sample("y", dist.Normal(jnp.array([-1.0, 1.0])[k], 1.0), obs=y)
        return k, None

    ppl.scan(step, 0, y)


def more_calls():
    key, kinds = jax.random.key, ppl.eliminate(hidden, "k")
    fit = lambda i: inference.fit(
        plane, args=(ROWS, Y), num_steps=5, key=key(i), progress=False, k_hat="skip"
    )
    return {
        "fit, all by itself": lambda i: fit(i).params,
        "smc, with a tail": lambda i: (
            inference.smc(plane, key(i), ROWS, Y + 1.0, num_particles=32).log_weights
        ),
        "tempered_smc": lambda i: (
            inference.tempered_smc(plane, key(i), ROWS, Y, num_particles=16).log_evidence
        ),
        "eliminate, a chain": lambda i: (
            kinds.posterior(key(i), {}, SERIES),
            kinds.mode({}, SERIES)[0],
        ),
    }


@pytest.mark.slow  # all is compiled anew in each mode
@pytest.mark.parametrize("mode", MODES)
def test_all_kinds_of_calls_run_and_give_the_same(mode):
    plain = calls() | more_calls()
    expected = {name: arrays(call(1)) for name, call in plain.items()}
    with MODES[mode]():
        for name, call in (calls() | more_calls()).items():
            found = arrays(call(1))
            for ours, theirs in zip(found, expected[name], strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=name)


@ppl.model
def alike(y):
    """Particles of equal weights: an evidence that no draw decides."""

    def step(carry, y):
        ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(0.0, 1.0), obs=y)
        return carry, None

    ppl.scan(step, 0.0, y)


def few_calls():
    """Name -> a call: a fit, eliminations, particles, what is chosen by itself."""
    key = jax.random.key
    level, kinds = ppl.eliminate(drift, "level"), ppl.eliminate(mixture, "k")
    data = (X[:4], Y[:4])
    fit = lambda i: inference.fit(
        inference.elbo(line, line_guide),
        optax.adam(0.05),
        data,
        num_steps=2,
        key=key(i),
        progress=False,
        k_hat="skip",
    )
    return {
        "fit": lambda i: (fit(i).params, fit(i).history),
        "predict": lambda i: fit(i).predict(key(i), X[:3], num_samples=2),
        "gradient": lambda i: jax.grad(lambda m: level.log_density({}, m + SERIES[:3]))(0.1 * i),
        "eliminate, normal": lambda i: level.posterior(key(i), {}, SERIES[:3]),
        "eliminate, discrete": lambda i: kinds.posterior(key(i), {"p": jnp.float32(0.3)}, X[:3]),
        "smc": lambda i: inference.smc(alike, key(i), SERIES[:3], num_particles=4).log_evidence,
        "infer": lambda i: (
            inference.infer(
                line, data, key=key(i), num_samples=8, methods=["eliminate", "nuts"], progress=False
            ).choices
        ),
    }


@pytest.mark.slow  # nothing is compiled in one, and all is checked in the other
@pytest.mark.parametrize("mode", SLOWER)
def test_small_programs_run_and_give_the_same(mode):
    expected = {name: arrays(call(1)) for name, call in few_calls().items()}
    with SLOWER[mode]():
        for name, call in few_calls().items():
            for ours, theirs in zip(arrays(call(1)), expected[name], strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4, err_msg=name)


def bounds():
    """Values and gradients of a bound, and of a chain that is integrated out."""
    level = ppl.eliminate(drift, "level")
    bound = inference.elbo(line, line_guide)
    params = {"loc": jnp.float32(0.1), "scale": jnp.float32(-0.1)}
    moved = lambda m: level.log_density({}, m + SERIES[:3])
    found = bound.value_and_grad(params, jax.random.key(0), X[:4], Y[:4])
    return arrays((found, jax.value_and_grad(moved)(0.1)))


@pytest.fixture(scope="module")
def expected():
    return bounds()


@pytest.mark.slow_for("checking_leaks", "disable_jit")  # ten and two times the other modes
@pytest.mark.parametrize("mode", MODES | SLOWER)
def test_bounds_and_their_gradients_in_each_mode(mode, expected):
    with (MODES | SLOWER)[mode]():
        found = bounds()
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
