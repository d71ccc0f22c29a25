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
