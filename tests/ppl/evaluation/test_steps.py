"""Loops evaluated at all steps at once: time in front of the lanes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapilli.ppl.evaluation._steps import at_all_steps
from lapilli.ppl.jaxprs._axis_rules import shape_of

TIME, LANES = 4, (2, 3)
x = jnp.arange(float(TIME))
a, b = (1.0 + jnp.arange(float(n)) for n in LANES)


def in_lanes(scale: jax.Array) -> jax.Array:
    """At [i, j, t]: scale * x_t * sin(a_i x_t + b_j)."""

    def one(a: jax.Array, b: jax.Array) -> jax.Array:
        step = lambda moving, still: [still[2] * moving * jnp.sin(still[0] * moving + still[1])]
        return at_all_steps(step, TIME, x, (a, b, scale), (a, b))[0]

    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(a, b)


def directly(scale: jax.Array) -> jax.Array:
    return scale * x * jnp.sin(a[:, None, None] * x + b[:, None])


def test_steps_in_lanes_are_all_of_them() -> None:
    np.testing.assert_allclose(in_lanes(jnp.asarray(2.0)), directly(jnp.asarray(2.0)), rtol=1e-5)


def test_time_stands_in_front_of_the_lanes() -> None:
    jaxpr = jax.make_jaxpr(in_lanes)(2.0)
    (sine,) = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "sin"]
    assert shape_of(sine.outvars[0]) == (TIME, *LANES)


@pytest.mark.parametrize("transform", [jax.grad, jax.jacfwd], ids=["grad", "jacfwd"])
def test_batches_of_derivatives_outside_of_the_lanes(transform) -> None:
    scales = jnp.array([0.5, 2.0])
    found, expected = (
        jax.vmap(transform(lambda s, f=f: f(s).sum()))(scales) for f in (in_lanes, directly)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
