"""Rewards that are none are named before anything is computed with them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from _tilts import KEY, bits, normal

from lapilli import inference, ppl


def guide():
    ppl.sample("x", dist.Normal(ppl.param("m", 0.0), 1.0))


def silent():
    ppl.sample("x", dist.Normal(0.0, 1.0))


def nan_somewhere(x):
    return jnp.where(x > 0, jnp.nan, x)


BAD = {
    "is NaN at .* of 32 draws": nan_somewhere,
    "is infinite at .* of 32 draws": lambda x: jnp.where(x > 0, jnp.inf, 0.0),
    "is -inf at all of 1000 draws": lambda x: x > 20.0,
    r"has shape \(3,\)": lambda x: x * jnp.ones(3),
    "returned str, which is no number": lambda x: "good",
    "returned complex64": lambda x: x * 1j,
    "makes NumPy's arrays": lambda x: np.sin(np.asarray(x)),
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_reward_is_named_when_a_fit_begins(message):
    made = inference.tilt(normal, BAD[message])
    with pytest.raises((ValueError, TypeError), match=message):
        inference.fit(inference.elbo(made, guide), optax.sgd(0.1), (), num_steps=2, key=KEY)


@pytest.mark.parametrize("run", ["simulate", "smc", "grad"])
def test_it_is_named_wherever_it_is_met_first(run):
    made = inference.tilt(normal, nan_somewhere)
    with pytest.raises(ValueError, match="is NaN"):
        if run == "simulate":
            made.simulate(KEY)
        elif run == "smc":
            inference.smc(made, KEY, num_particles=10)
        else:
            jax.jit(inference.elbo(made, guide).value_and_grad)({"m": jnp.zeros(())}, KEY)


def test_a_model_that_returns_nothing_is_named():
    with pytest.raises(ValueError, match="the model returns nothing"):
        inference.tilt(silent, lambda x: x).simulate(KEY)


def test_a_constraint_that_few_draws_meet_is_none_to_refuse():
    rare = inference.tilt(
        normal, lambda x: x > 2.0
    )  # 2.3 %: 32 draws all miss it in every second run
    assert rare.log_density({"x": 2.1}) > -jnp.inf
    event = inference.tilt(normal, lambda x: x > 20.0, num_tried=0)
    assert event.log_density({"x": 21.0}) > -jnp.inf


def test_a_reward_is_tried_once():
    calls = []

    def counted(x):
        calls.append(1)
        return x

    made = inference.tilt(normal, counted)
    made.log_density({"x": 0.0})
    first = len(calls)
    made.log_density({"x": 0.0})
    assert len(calls) == first + 1


@pytest.mark.slow_for("<lambda>1", "<lambda>2")
@pytest.mark.parametrize(
    "reward",
    [lambda x: jnp.where(x > 0.3, 1.0, 0.0), lambda x: jnp.round(x), lambda x: jnp.sign(x - 0.2)],
)
def test_a_reward_that_jumps_has_no_pathwise_gradient(reward):
    objective = inference.elbo(inference.tilt(normal, reward), guide)
    params = objective.init(KEY)
    with pytest.raises(ValueError, match="'x'"):
        objective.value_and_grad(params, KEY)
    served = inference.elbo(inference.tilt(normal, reward), guide, strategies="reinforce")
    assert jnp.isfinite(served.value_and_grad(params, KEY)[1]["m"])


def test_a_reward_outside_of_jax_has_no_pathwise_gradient():
    def outside(x):
        return jax.pure_callback(
            lambda x: np.float32(np.sin(x)),
            jax.ShapeDtypeStruct((), jnp.float32),
            x,
            vmap_method="sequential",
        )

    made = inference.tilt(normal, outside)
    with pytest.raises(Exception, match="(?i)callback|derivative|jvp"):
        inference.elbo(made, guide).value_and_grad({"m": jnp.zeros(())}, KEY)
    served = inference.elbo(made, guide, strategies="reinforce_loo", num_replicates=2)
    assert jnp.isfinite(served.value_and_grad({"m": jnp.zeros(())}, KEY)[1]["m"])


def test_rewards_of_strings_may_be_whole_numbers():
    assert (
        inference.tilt(bits, lambda x: x.sum()).simulate(KEY).log_probs["reward"].dtype
        == jnp.zeros(()).dtype
    )
