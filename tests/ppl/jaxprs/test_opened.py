"""Control variates whose value and slope are of one function, whatever the cost's own derivatives: exact means by quadrature."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import ppl
from lapilli.ppl.jaxprs._opened import opened, with_true_derivatives

KEY, T = jax.random.key(0), 0.3
stop = jax.lax.stop_gradient


@jax.custom_jvp
def slow(x):
    return x


slow.defjvp(lambda primals, tangents: (primals[0], 0.1 * tangents[0]))


@jax.custom_vjp
def reversed_square(x):
    return x**2


reversed_square.defvjp(lambda x: (x**2, x), lambda x, g: (-2 * x * g,))
by_terms = jax.custom_jvp(jnp.sin)
by_terms.defjvps(lambda t, ans, x: 7 * t)


@jax.custom_gradient
def no_slope(x):
    return jnp.exp(x), lambda g: 0 * g


def looped(b):
    return jax.lax.scan(lambda c, _: (c + stop(b) * c, None), 1.0, None, 3)[0]


COSTS = {
    "stop": lambda b: 2 * b + stop(3 * b),
    "straight through": lambda b: 2 * (b + stop(jnp.tanh(b) - b)),
    "custom_jvp": lambda b: 2 * slow(b) ** 2,
    "custom_vjp": lambda b: 2 * reversed_square(b + 1),
    "defjvps around a function of JAX": lambda b: by_terms(2 * b),
    "custom_gradient": no_slope,
    "in a scan": looped,
    "in a branch": lambda b: jax.lax.cond(T > 0, lambda x: x + stop(x**2), jnp.negative, b),
    "in jit": jax.jit(lambda b: b * stop(b) + slow(b)),
    "nested": lambda b: jax.checkpoint(lambda x: slow(stop(x) * x))(b),
    "functions of JAX": lambda b: jax.nn.relu(b - 0.3) + jax.nn.softplus(b) + jax.nn.logsumexp(jnp.stack([b, 2 * b])),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Rebar(ppl.Rebar):
    """The uniform number is data."""

    u: object = None

    def uniforms(self, distribution, key, shape):
        return jnp.broadcast_to(self.u, shape)


class Relax(ppl.Relax):
    def uniforms(self, distribution, key, shape):
        return jnp.broadcast_to(self.weights["u"], shape)


def mean(fn, make):
    """The mean of the gradient over the uniform number: Gauss-Legendre nodes below and above the threshold 1 - p."""
    x, w = np.polynomial.legendre.leggauss(24)
    edge = float(jax.nn.sigmoid(-T))
    u = np.concatenate([edge * (x + 1) / 2, edge + (1 - edge) * (x + 1) / 2])
    w = np.concatenate([edge * w / 2, (1 - edge) * w / 2])

    def cost(t, u):
        return fn(1.0 * ppl.sample("b", dist.Bernoulli(logits=t), strategy=make(u)))

    objective = ppl.expectation(cost)
    grads = jax.jit(jax.vmap(lambda u: objective.grad(T, KEY, u)))(jnp.asarray(u, jnp.float32))
    return float(w @ np.asarray(grads, float))


def exact(fn):
    p = float(jax.nn.sigmoid(T))
    return p * (1 - p) * float(fn(1.0) - fn(0.0))


@pytest.mark.fast("custom_gradient", "defjvps around a function of JAX", "in jit")
@pytest.mark.parametrize("name", COSTS)
def test_rebar_has_the_mean_of_every_score_function(name):
    got = mean(COSTS[name], lambda u: Rebar(0.8, 1.0, u=u))
    np.testing.assert_allclose(got, exact(COSTS[name]), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["stop", "custom_jvp", "custom_vjp"])
def test_a_learned_control_variate_may_have_derivatives_of_its_own(name):
    control = lambda weights, z: COSTS[name](jax.nn.sigmoid(z)) + 0 * weights["u"]
    got = mean(lambda b: 3 * b, lambda u: Relax(control, {"u": u}))
    np.testing.assert_allclose(got, exact(lambda b: 3 * b), rtol=2e-4)


@pytest.mark.slow
def test_values_stay_and_slopes_are_those_of_values():
    for name, fn in COSTS.items():
        true = with_true_derivatives(fn)
        np.testing.assert_allclose(true(0.4), fn(0.4), rtol=1e-6, err_msg=name)
        by_difference = (fn(0.41) - fn(0.39)) / 0.02
        np.testing.assert_allclose(jax.grad(true)(0.4), by_difference, rtol=2e-3, err_msg=name)


def test_programs_with_true_derivatives_are_left_alone():
    closed = jax.make_jaxpr(
        lambda b: jax.nn.silu(b) + jax.scipy.special.xlogy(b, b) + jnp.logaddexp(b, 1.0)
    )(0.3)
    assert opened(closed) is closed


def test_a_value_that_cannot_be_differentiated_is_refused():
    @jax.custom_vjp
    def root(x):
        return jax.lax.while_loop(lambda s: jnp.abs(s**2 - x) > 1e-6, lambda s: (s + x / s) / 2, x)

    root.defvjp(lambda x: (root(x), x), lambda x, g: (g / (2 * jnp.sqrt(x)),))
    objective = ppl.expectation(
        lambda t: root(1.0 + ppl.sample("b", dist.Bernoulli(logits=t))),
        strategies="rebar",
        check_jumps=False,
    )
    with pytest.raises(ValueError, match="Site 'b': strategy 'rebar' differentiates .*'mvd'"):
        objective.grad(T, KEY)


@pytest.mark.parametrize("wrap", ["eager", "jit", "inside"])
def test_half_pathwise_derivatives_refuse_a_stop_downstream(wrap):
    def cost(t):
        z = ppl.sample("z", dist.Gamma(jnp.exp(t), 1.0))
        return z + stop(z**2)

    inside = lambda t: ppl.draw(ppl.as_program(cost), t).retval
    objective = ppl.expectation(
        inside if wrap == "inside" else cost, strategies="rejection_reparam"
    )
    with pytest.raises(
        ValueError,
        match="Site 'z': strategy 'rejection_reparam'.*stop_gradient downstream.*'implicit'",
    ):
        (jax.jit(objective.grad) if wrap == "jit" else objective.grad)(T, KEY)


def test_a_stop_that_the_draw_does_not_reach_is_no_matter():
    def cost(t):
        z = ppl.sample("z", dist.Gamma(jnp.exp(t), 1.0))
        unused = stop(z)
        return z * stop(t) + 0.0 * t if unused is not None else z

    ppl.expectation(cost, strategies="rejection_reparam").ready(T)
