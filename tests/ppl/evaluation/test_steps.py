"""Loops evaluated at all steps at once, plates at all rows: time and rows in front of the lanes."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import ppl
from lapilli.ppl.estimation import _sweep
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


STATES, ROWS = 4, 3
data = jnp.linspace(-1.0, 2.0, 2 * ROWS).reshape(ROWS, 2)
params = {
    "logits": jnp.sin(jnp.arange(float(ROWS * STATES))).reshape(ROWS, STATES),
    "table": jnp.cos(jnp.arange(float(STATES * STATES))).reshape(STATES, STATES),
}


def observed(p, k):
    """Events, a function of JAX, a column that broadcasts, and a number alike in all rows."""
    loc = jax.nn.softplus(p["table"][k, :2]) + k[:, None] * data
    return (dist.Normal(loc, 0.5).to_event(1).log_prob(data) + p["table"][0, 0] * data[:, 0]).sum()


def one_site(p):
    with ppl.plate("rows", ROWS):
        k = ppl.sample("k", dist.Categorical(logits=p["logits"]), strategy="enum")
    return observed(p, k)


def two_sites(p):
    with ppl.plate("rows", ROWS):
        k = ppl.sample("k", dist.Categorical(logits=p["logits"]), strategy="enum")
        m = ppl.sample("m", dist.Categorical(logits=p["table"][k]), strategy="enum")
    return observed(p, m) + (jnp.sin(1.0 + k) * m).sum()


def two_plates(p):
    with ppl.plate("others", 2):
        m = ppl.sample("m", dist.Categorical(logits=p["table"][:2]), strategy="enum")
    return one_site(p) * 2 + jnp.sin(p["logits"][0, 0] * m).sum()


def beside_draws(p):
    with ppl.plate("rows", ROWS):
        k = ppl.sample("k", dist.Categorical(logits=p["logits"]), strategy="enum")
        b = ppl.sample("b", dist.Bernoulli(logits=p["table"][k, 0]), strategy="mvd")
        z = ppl.sample("z", dist.Normal(p["table"][k, 1], 1.0), strategy="reinforce")
    return observed(p, k) + (b * jnp.tanh(z) * data[:, 0]).sum()


@pytest.mark.slow
@pytest.mark.parametrize("program", [one_site, two_sites, two_plates, beside_draws])
def test_rows_in_front_of_lanes_change_no_number(program, monkeypatch):
    found, rows = [], []
    put = _sweep.Sweep.put_rows_first
    monkeypatch.setattr(_sweep.Sweep, "put_rows_first", lambda s: (put(s), rows.append(s.rows)))
    for vector in (STATES, STATES + 1):
        monkeypatch.setattr(_sweep, "VECTOR", vector)
        rows.clear()
        estimate = ppl.expectation(program).value_and_grad(params, jax.random.key(1))
        found.append(jax.tree.leaves(estimate))
        assert (max(rows) > 0) is (vector == STATES)
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_sums_by_row_run_over_the_last_axis():
    """A mixture's log-densities stand as [rows, lanes], as by hand."""
    gradient = ppl.expectation(one_site).grad
    jaxpr = str(jax.make_jaxpr(gradient)(params, jax.random.key(1)))
    assert f"f32[{ROWS},{STATES},2]" in jaxpr
