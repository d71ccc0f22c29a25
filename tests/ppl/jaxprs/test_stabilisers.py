"""Stop-gradients that change no derivative are told from those that do; the rule is never wrong about a sum that counts."""

import jax
import jax.numpy as jnp
import pytest

from lapilli.ppl.jaxprs._opened import has_other_derivative
from lapilli.ppl.jaxprs._stabilisers import stabilisers

stop = jax.lax.stop_gradient
A, SQUARE, LINE = jnp.ones((3, 4)), jnp.ones((3, 3)), jnp.ones(3)


def counts(fn, x):
    """How many stop-gradients a function has, and how many of them change nothing."""
    jaxpr = jax.make_jaxpr(fn)(x).jaxpr
    names = [eqn.primitive.name for eqn in jaxpr.eqns]
    return names.count("stop_gradient"), len(stabilisers(jaxpr))


def weighted(x):
    m = stop(x.max(0))
    return jnp.log((jnp.exp(x - m) * 0.3 + 2 * jnp.exp(x - m)).sum(0)) + m


def ratio(x):
    m = stop(x.max(0))
    return jnp.exp(x - m).sum(0) / jnp.exp(x - m).sum(0)


NEUTRAL = {
    "log-sum-exp": (lambda x: jax.nn.logsumexp(x, axis=0), A),
    "of all": (jax.nn.logsumexp, A),
    "with axes kept": (lambda x: jax.nn.logsumexp(x, axis=1, keepdims=True), A),
    "weighted": (weighted, A),
    "ratio": (ratio, A),
    "difference": (lambda x: (m := stop(x)) - m, SQUARE),
}
COUNTING = {
    "factor": (lambda x: x * stop(x), A),
    "straight through": (lambda x: x - stop(x) + x, A),
    "not put back": (lambda x: jnp.exp(x - stop(x.max())).sum(), A),
    "put back twice": (lambda x: jax.nn.logsumexp(x) + (m := stop(x.max())) + m, A),
    "sum over axes of its own": (
        lambda x: jnp.log(jnp.exp(x - (m := stop(x))).sum(0)) + m.sum(0), A,
    ),
    "another mean": (lambda x: jnp.exp(x - (m := stop(x.max(0)))).sum(0) / jnp.exp(x - m).sum(), A),
    "across": (lambda x: (m := stop(x))[:, None] - m[None, :], LINE),
    "transposed": (lambda x: (m := stop(x)) - m.T, SQUARE),
    "sum of unlike factors": (lambda x: jnp.log(jnp.exp(x - (m := stop(x))) + 1) + m, A),
    "compared": (lambda x: jnp.where(x < stop(x.max()), x, 0.0), A),
}  # fmt: skip


@pytest.mark.fast("difference", "ratio")
@pytest.mark.parametrize("name", NEUTRAL)
def test_what_cancels_changes_nothing(name):
    number, neutral = counts(*NEUTRAL[name])
    assert number == neutral > 0
    # The claim itself: with and without, the derivative is the same.
    fn, x = NEUTRAL[name]
    x = jax.random.normal(jax.random.key(0), x.shape)
    slope = jax.grad(lambda x: fn(x).sum())(x)
    step = 1e-2 * jax.random.normal(jax.random.key(1), x.shape)
    change = fn(x + step).sum() - fn(x - step).sum()
    assert jnp.allclose((slope * step).sum(), change / 2, atol=1e-4)


@pytest.mark.parametrize("name", COUNTING)
def test_what_counts_is_told(name):
    number, neutral = counts(*COUNTING[name])
    assert neutral < number


def test_inside_of_calls():
    jaxpr = jax.make_jaxpr(jax.nn.log_softmax)(LINE).jaxpr
    assert not any(map(has_other_derivative, jaxpr.eqns))
    jaxpr = jax.make_jaxpr(jax.jit(lambda x: x * stop(x)))(LINE).jaxpr
    assert any(map(has_other_derivative, jaxpr.eqns))
