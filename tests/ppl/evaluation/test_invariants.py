"""What no replacement reaches is computed once."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

from lapilli import ppl
from lapilli.ppl.jaxprs._interpreter import inner_jaxprs

PARAMS = {"w": jnp.array([0.3, -0.2, 0.5]), "c": jnp.array(0.7)}


def cost(p):
    """`tanh` is upstream of both sites, `sin` between them, `cos` downstream of both."""
    upstream = jnp.tanh(p["w"])
    with ppl.plate("rows", 3):
        first = ppl.sample("first", dist.Bernoulli(logits=upstream))
        between = jnp.sin(p["c"] * first)
        second = ppl.sample("second", dist.Bernoulli(logits=upstream + between))
    return (jnp.cos(first + second * p["c"]) * between + upstream).sum()


def count_of(jaxpr, name):
    """Equations of a primitive, also inside others."""
    inner = [i for eqn in jaxpr.eqns for i in inner_jaxprs(eqn)]
    return sum(e.primitive.name == name for e in jaxpr.eqns) + sum(count_of(i, name) for i in inner)


@pytest.mark.parametrize(
    ("strategies", "counts"),
    # A replay of the first site sees all that lies behind it, one of the second the last step only. Lanes are one evaluation,
    # and a replay has its own, also of what only they reach.
    [
        ({"*": "mvd"}, (1, 2, 3)),
        ({"*": "reinforce"}, (1, 1, 1)),
        ({"first": "enum", "second": "mvd"}, (1, 2, 2)),
        ({"*": "enum"}, (1, 1, 1)),
    ],
    ids=["mvd", "reinforce", "enum and mvd", "enum"],
)
def test_evaluations_share_what_no_replacement_reaches(strategies, counts, key):
    value = ppl.expectation(cost, strategies=strategies).value
    jaxpr = jax.make_jaxpr(value)(PARAMS, key).jaxpr
    assert tuple(count_of(jaxpr, name) for name in ("tanh", "sin", "cos")) == counts


def test_a_program_is_the_same_every_time(key):
    """In the order of a set it would be another one in each process, which no compilation cache knows."""
    trace = lambda: str(
        jax.make_jaxpr(ppl.expectation(cost, strategies="mvd").value_and_grad)(PARAMS, key)
    )
    assert len({trace() for _ in range(8)}) == 1
