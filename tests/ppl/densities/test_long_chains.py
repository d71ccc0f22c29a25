"""Chains of many steps, and of none, that are summed out: the evidence against double precision on the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import ppl

NUM_STATES = 4
TABLE = 0.3 * np.random.default_rng(1).normal(size=(NUM_STATES, NUM_STATES)).astype(np.float32)


def chain(y):
    """Both what is seen and the moves come as tables of logarithms, so that nothing but the recursion rounds."""

    def step(before, y):
        s = ppl.sample("s", dist.Categorical(logits=jnp.zeros(NUM_STATES)))
        ppl.factor("move", jnp.asarray(TABLE)[before, s])
        ppl.factor("y", y[s])
        return s, None

    ppl.scan(step, 0, y)


def exact(y):
    """By normalised weights, from the logarithms that single precision has."""
    moves = np.exp(float(np.float32(-np.log(NUM_STATES))) + TABLE.astype(float))
    weights, log_z = np.eye(NUM_STATES)[0], 0.0
    for likelihood in np.exp(np.asarray(y, float)):
        weights = (weights @ moves) * likelihood
        log_z += np.log(weights.sum())
        weights = weights / weights.sum()
    return log_z


@pytest.mark.parametrize("num", [3_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("level", [0.0, -3.0])
def test_the_evidence_of_many_steps(num, level):
    y = np.random.default_rng(0).normal(level, 1.0, size=(num, NUM_STATES)).astype(np.float32)
    found = jax.jit(lambda y: ppl.eliminate(chain, "s").log_density({}, y))(y)
    want = exact(y)
    # Half a unit of what single precision returns, and the rounding of each step as independent noise: .001 for a million.
    unit = np.spacing(np.float32(abs(want)))
    assert abs(float(found) - want) < 0.51 * unit + 1e-6 * np.sqrt(num)


def test_a_chain_of_no_steps():
    y = jnp.zeros((0, NUM_STATES))
    left = ppl.eliminate(chain, "s")
    assert float(left.log_density({}, y)) == 0
    assert left.posterior(jax.random.key(0), {}, y)["s"].shape == (0,)
    assert left.posterior_probs({}, y)["s"].shape == (0, NUM_STATES)
    assert left.mode({}, y)[0]["s"].shape == (0,)


def many_states(num):
    """A chain of `num` states whose law is the same at each step."""

    def series(y):
        logits = jnp.sin(jnp.arange(float(num)))

        def step(s, y):
            s = ppl.sample("s", dist.Categorical(logits=logits + 0.01 * s))
            ppl.sample("y", dist.Normal(0.01 * s, 1.0), obs=y)
            return s, None

        ppl.scan(step, 0, y)

    return ppl.eliminate(series, "s")


def test_a_chain_of_more_than_256_states_is_summed_step_by_step():
    y = jnp.array([0.5, -1.0, 2.0])
    found = many_states(300).log_density({}, y)
    law = np.exp(np.sin(np.arange(300.0)))
    law /= law.sum()  # a shift of all logits moves nothing
    terms = law @ np.exp(-0.5 * (np.asarray(y) - 0.01 * np.arange(300.0)[:, None]) ** 2)
    np.testing.assert_allclose(found, np.log(terms / np.sqrt(2 * np.pi)).sum(), rtol=1e-5)


def test_a_chain_whose_windows_do_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"need 4097\^2 states at once \(the limit is 16777216\)"):
        many_states(4097).log_density({}, jnp.zeros(3))
