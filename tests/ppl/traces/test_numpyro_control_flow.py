"""Control flow of numpyro.contrib under our recorders: history, reverse=True, cond."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import cond, scan
from numpyro.infer.util import log_density

from lapilli import inference, ppl

KEY = jax.random.key(0)
Y = jnp.array([0.3, -0.2, 1.1, 0.7])
P = jnp.array([[0.8, 0.2], [0.3, 0.7]])


def second_order(y, history):
    """A hidden chain whose state is drawn given the two before it, as NumPyro's examples/hmm_enum.py has it."""
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(2)))

    def step(carry, y):
        before, last = carry
        x = numpyro.sample(
            "x",
            dist.Categorical(0.5 * P[before] + 0.3 * P[last] + 0.2 * p),
            infer={"enumerate": "parallel"},
        )
        numpyro.sample("y", dist.Normal(2.0 * x, 1.0), obs=y)
        return (last, x), None

    scan(step, (0, 0), y, history=history)


@pytest.mark.slow(reason="a chain for each history to compile")
@pytest.mark.parametrize("history", [0, 1, 2])
def test_a_hidden_chain_is_summed_whatever_history_says(history):
    p = jnp.array([0.4, 0.6])
    program = ppl.eliminate(ppl.as_program(second_order), ["x"])
    joint = [
        ppl.as_program(lambda y: second_order(y, 1)).log_density(
            {"p": p, "x": jnp.array(states)}, Y
        )
        for states in itertools.product(range(2), repeat=4)
    ]
    expected = jax.scipy.special.logsumexp(jnp.stack(joint))
    np.testing.assert_allclose(program.log_density({"p": p}, Y, history), expected, rtol=1e-5)


def backward(y, scan=scan):
    """The walk begins at the last observation."""

    def step(z, y):
        z = numpyro.sample("z", dist.Normal(0.5 * z + y, 1.0))
        numpyro.sample("y", dist.Normal(z, 0.5), obs=y)
        return z, (z, y)

    return scan(step, 1.0, y, reverse=True)


Z = {"z": jnp.array([0.1, -0.4, 0.9, 0.2])}


@pytest.mark.parametrize("which", [scan, ppl.scan], ids=["numpyro", "ppl"])
def test_a_reversed_scan_has_numpyros_density_and_order(which):
    program = ppl.as_program(lambda y: backward(y, which))
    theirs = log_density(lambda y: backward(y, which), (Y,), {}, Z)[0]
    np.testing.assert_allclose(program.log_density(Z, Y), theirs, rtol=1e-6)
    trace = program.simulate(KEY, Y)
    last, (zs, ys) = trace.retval
    np.testing.assert_array_equal(ys, Y)
    # Sites stand in the order of the steps, results beside their inputs.
    np.testing.assert_array_equal(trace.choices["z"], zs[::-1])
    np.testing.assert_array_equal(trace.observed["y"], Y[::-1])
    assert last == zs[0]
    again = program.log_density(trace.choices, Y)
    np.testing.assert_allclose(again, trace.log_density, rtol=1e-6)


@pytest.mark.slow
def test_particles_step_through_a_reversed_scan():
    """The chain is linear and Gaussian, its evidence that of the joint Normal."""

    def model(y):
        def step(z, y):
            z = ppl.sample("z", dist.Normal(0.5 * z, 1.0))
            ppl.sample("y", dist.Normal(z, 0.5), obs=y)
            return z, None

        ppl.scan(step, 1.0, y, reverse=True)

    steps = 1.0 + np.arange(4)
    noise = np.array([[0.5 ** (i - j) if j <= i else 0.0 for j in range(4)] for i in range(4)])
    law = dist.MultivariateNormal(0.5**steps, noise @ noise.T + 0.25 * np.eye(4))
    exact = law.log_prob(Y[::-1])
    runs = jax.vmap(lambda key: inference.smc(model, key, Y, num_particles=2_000).log_evidence)(
        jax.random.split(KEY, 50)
    )
    ratio = np.exp(np.asarray(runs) - float(exact))
    # 4.5 standard errors, false-alarm rate 6.8e-6; a forward scan has another evidence by more than 0.1 nats.
    assert abs(ratio.mean() - 1.0) < 4.5 * ratio.std() / np.sqrt(len(ratio))
    assert ratio.std() < 0.1 and abs(law.log_prob(Y) - exact) > 0.1


def test_a_longer_reversed_scan_goes_on_from_nothing():
    draws = {"z": Z["z"][None]}
    with pytest.raises(ValueError, match=r"reverse=True.*\['z'\].*runs forward"):
        inference.predict(backward, draws, KEY, jnp.append(Y, 0.5))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_cond_is_that_of_the_branch_taken(sign):
    def model(x):
        return cond(
            x > 0,
            lambda x: numpyro.sample("w", dist.Normal(x, 1.0)),
            lambda x: numpyro.sample("w", dist.Normal(0.0, 2.0)),
            x,
        )

    x = jnp.asarray(sign)
    choices = {"w": jnp.asarray(0.4)}
    expected = (dist.Normal(x, 1.0) if sign > 0 else dist.Normal(0.0, 2.0)).log_prob(0.4)
    program = ppl.as_program(model)
    np.testing.assert_allclose(program.log_density(choices, x), expected, rtol=1e-6)
