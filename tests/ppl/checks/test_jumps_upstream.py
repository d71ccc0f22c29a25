"""Jumps in what a network or a flow reads, whose own output changes much: none is missed, what is continuous passes.

A guide under `sleep`: all draws are kept, and only parameters move a jump. At the start the last layers of the flow are zero, so
that no jump is to be seen there.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl
from lapilli.models import flows
from lapilli.ppl.analysis import read_together

X = jnp.asarray(np.random.default_rng(0).normal(size=5), jnp.float32)
# Pieces that jump in an element or in the order of a vector, each with one of its kind that does not.
PIECES = {
    "step": (lambda u: jnp.where(u > 0, 0.5, 0.0), lambda u: jax.nn.sigmoid(8 * u) / 2),
    "gap": (
        lambda u: jnp.where(u > 0, u, 0.3 * u - 0.2),
        lambda u: jnp.where(u > 0, u, 0.3 * u),
    ),
    "round": (lambda u: jnp.round(2 * u) / 2, lambda u: jnp.abs(u - jnp.round(u))),
    "sign": (jnp.sign, lambda u: jnp.sign(u) * u),
    "count": (
        lambda u: jnp.full(5, (u > 0).mean()),
        lambda u: jnp.full(5, jnp.maximum(u, 0).mean()),
    ),
    "argmax": (
        lambda u: jax.nn.one_hot(jnp.argmax(u * jnp.arange(1, 6)), 5),
        lambda u: jax.nn.softmax(9 * u),
    ),
}


def numbers(*shape):
    return ppl.param("v", lambda key: 0.6 * jax.random.normal(key, shape))


# Where the parameter stands that moves the jump: by itself, in an array with others, in a network.
PLACES = {
    "own": lambda piece, x: piece(x - numbers()),
    "element": lambda piece, x: piece(x - numbers(9)[3]) + 0.1 * jnp.tanh(numbers(9)[4:]),
    "matrix": lambda piece, x: piece(numbers(5, 5) @ x + numbers(5, 5)[0]),
    "beside": lambda piece, x: jnp.tanh(numbers(5, 5) @ x) + 0.3 * piece(numbers(5, 5) @ x),
    "added": lambda piece, x: x + 0.2 * piece(x - numbers()),
}
FLOWS = {"affine": flows.RealNVP, "spline": flows.NeuralSplineFlow}


def model():
    z = ppl.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    law = dist.Normal(z[0] + z[1] * jnp.arange(5.0) / 5, 0.5)
    ppl.sample("x", law.to_event(1), obs=X)


def loss_of(kind, place, piece):
    def guide(x):
        key = ppl.rng_key("init")
        flow = FLOWS[kind](2, key=key, context_size=5, width=16, num_layers=2)
        context = PLACES[place](piece, x)
        ppl.sample("z", ppl.module("flow", flow).law(context))

    return inference.sleep(model, guide, data_args=lambda drawn: (drawn["x"],))


def plan(loss):
    return loss.plan(loss.init(jax.random.key(0)))


CASES = [
    pytest.param(
        kind,
        place,
        piece,
        id=f"{kind}-{place}-{piece}",
        marks=() if (kind, place, piece) == ("affine", "added", "step") else pytest.mark.slow,
    )
    for kind in FLOWS
    for place in PLACES
    for piece in PIECES
]  # slow: 60 programs are compiled twice


@pytest.mark.slow(reason="a flow to compile and to search")
@pytest.mark.parametrize(("kind", "place", "piece"), CASES)
def test_a_jump_in_what_a_flow_reads_is_found(kind, place, piece):
    with pytest.raises(ValueError, match=r"jumps by.*check_jumps=False"):
        plan(loss_of(kind, place, PIECES[piece][0]))


@pytest.mark.parametrize(("kind", "place", "piece"), CASES)
def test_continuous_numbers_for_a_flow_pass(kind, place, piece):
    plan(loss_of(kind, place, PIECES[piece][1]))


@pytest.mark.slow
def test_a_spline_onto_a_box_passes():
    """Its density has a logarithm, a root and quotients at the ends of the box."""

    def box():
        z = ppl.sample("z", dist.Uniform(jnp.zeros(2), 1.0).to_event(1))
        noise = jax.random.normal(ppl.rng_key("noise"), (8,))
        made = z[0] + z[1] * noise
        ppl.sample("x", dist.Delta(made).to_event(1), obs=jnp.zeros(8))

    def guide(x):
        flow = flows.NeuralSplineFlow(2, key=ppl.rng_key("init"), context_size=2)
        context = jnp.stack([x.mean(), jnp.log(x.std() + 1e-3)])
        law = ppl.module("flow", flow).law(context)
        onto = dist.transforms.IndependentTransform(dist.transforms.SigmoidTransform(), 1)
        ppl.sample("z", dist.TransformedDistribution(law.base_dist, [*law.transforms, onto]))

    plan(inference.sleep(box, guide, data_args=lambda drawn: (drawn["x"],)))


def sets(fn, params):
    program = ppl.expectation(fn, check_jumps=False).ready(params)
    return program, read_together(program, ["params", *program.sites])


def test_sets_are_the_numbers_that_an_operation_reads():
    """Elements of slices and of what is shifted and scaled; all of what is multiplied; a site's elements."""

    def cost(params):
        v, w = params
        z = ppl.sample("z", dist.Normal(jnp.zeros(4), 1.0).to_event(1), strategy="reinforce")
        shifted = 2.0 * v + 1.0
        low = jnp.where(z[1] > shifted[2], 1.0, 0.0)
        high = jnp.where(z.sum() > (w @ v[:2]).sum(), 1.0, 0.0)
        return low + high

    _, (of_params, of_site) = sets(cost, (jnp.zeros(5), jnp.zeros((3, 2))))
    places = [np.flatnonzero(mask).tolist() for mask in of_params[1:]]
    assert of_params[0].all() and places == [[2], [0, 1, 5, 6, 7, 8, 9, 10]]
    assert [np.flatnonzero(mask).tolist() for mask in of_site[1:]] == [[1]]


def test_a_pathwise_value_brings_its_parameters_along():
    def jumping(v):
        z = ppl.sample("z", dist.Normal(v, 1.0).to_event(1), strategy="reparam")
        return jnp.where(z[1] > 0, z[1], 0.0)

    _, (of_params, of_site) = sets(jumping, jnp.zeros(3))
    for masks in (of_params, of_site):
        assert [np.flatnonzero(mask).tolist() for mask in masks[1:]] == [[1]]
