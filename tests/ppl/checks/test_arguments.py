"""Derivatives in arguments and in closed-over values: unbiased, or refused as those in parameters are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl

KEY, X = jax.random.key(0), 1.3


def moving(t, x):
    return t * ppl.sample("u", dist.Uniform(0.0, x)) ** 2


def shape(t, x):
    return t * ppl.sample("g", dist.Gamma(x, 1.0))


def threshold(t, x):
    u = jax.random.uniform(ppl.rng_key("u"))
    return t * jnp.where(u < jax.nn.sigmoid(x), 1.0, 0.0)


def shifted(t, x):
    law = dist.TransformedDistribution(
        dist.Exponential(1.0), dist.transforms.AffineTransform(x["low"], 1.0)
    )
    return t * ppl.sample("u", law)


REFUSED = {
    "support": (moving, "reinforce", X, "argument 0, args.0.*Site 'u': the support of Uniform"),
    "transformed support": (shifted, "reinforce_loo", {"low": X}, r"args\[0\]\['low'\].*Site 'u': the support"),
    "weak derivative": (shape, "mvd", X, "argument 0.*Site 'g': strategy 'mvd' gives no derivative in 'concentration'"),
    "noise below a threshold": (threshold, None, X, r"argument 0.*rng_key\('u'\)"),
}  # fmt: skip
WAYS = {
    "eager": lambda f: jax.grad(f)(X),
    "forward": lambda f: jax.jvp(f, (X,), (1.0,)),
    "grad of jit": lambda f: jax.grad(jax.jit(f))(X),
    "jit of grad": lambda f: jax.jit(jax.grad(f))(X),
    "vmap of grad": lambda f: jax.vmap(jax.grad(f))(jnp.array([X, X])),
    "scan": lambda f: jax.grad(lambda x: jax.lax.scan(lambda c, _: (c + f(x), None), 0.0, None, 2)[0])(X),
}  # fmt: skip


def in_place(x, value):
    return {"low": value} if isinstance(x, dict) else value


@pytest.mark.fast("noise below a threshold-forward", "support-forward", "support-grad of jit")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", REFUSED)
def test_unsound_derivatives_in_arguments_are_refused(name, way):
    fn, strategy, x, words = REFUSED[name]
    objective = ppl.expectation(fn, strategies=strategy)
    objective.value(0.3, KEY, x)  # the value itself is sound, and gives the search numbers to try
    with pytest.raises(ValueError, match=f"(?s)A derivative in .*{words}.*stop_gradient"):
        WAYS[way](lambda v: objective.value(0.3, KEY, in_place(x, v)))


@pytest.mark.parametrize("name", ["support", "weak derivative"])
def test_values_beside_a_gradient_are_checked_too(name):
    fn, strategy, x, words = REFUSED[name]
    objective = ppl.expectation(fn, strategies=strategy)
    with pytest.raises(ValueError, match=words):
        jax.grad(lambda v: objective.value_and_grad(0.3, KEY, v)[0])(x)


@pytest.mark.parametrize("way", ["eager", "jit of grad"])
@pytest.mark.parametrize("fn", [moving, threshold])
def test_unsound_derivatives_in_closed_over_values_are_refused(fn, way):
    def value(x):
        return ppl.expectation(
            lambda t: fn(t, x), strategies={"u": "reinforce"} if fn is moving else None
        ).value(0.3, KEY)

    with pytest.raises(ValueError, match="A derivative in a value that the function closes over"):
        WAYS[way](value)


@pytest.mark.slow
def test_inside_another_program():
    inner = ppl.expectation(moving, strategies="reinforce")
    outer = ppl.expectation(
        lambda t: inner.value(1.0, KEY, ppl.sample("z", dist.Normal(t, 0.1)) + 2.0)
    )
    with pytest.raises(ValueError, match="A derivative in argument 0"):
        outer.grad(0.3, KEY)


def test_without_numbers_a_threshold_is_not_believed():
    objective = ppl.expectation(threshold)
    with pytest.raises(ValueError, match="no values are known for a search.*outside of jit"):
        jax.jit(lambda k: jax.grad(lambda x: objective.value(0.3, k, x))(X))(KEY)


@pytest.mark.parametrize("way", ["eager", "jit of grad", "grad of jit"])
def test_stopped_arguments_are_constants(way):
    objective = ppl.expectation(moving, strategies="reinforce")
    value = lambda x: x * objective.value(0.3, KEY, jax.lax.stop_gradient(x))
    np.testing.assert_allclose(WAYS[way](value), objective.value(0.3, KEY, X), rtol=1e-5)


def test_other_arguments_may_be_differentiated_beside_an_unsound_one():
    objective = ppl.expectation(lambda t, x, y: y * moving(t, x), strategies="reinforce")
    got = jax.grad(lambda y: objective.value(0.3, KEY, X, y))(2.0)
    np.testing.assert_allclose(got, objective.value(0.3, KEY, X, 1.0), rtol=1e-5)
    with pytest.raises(ValueError, match="argument 0"):
        jax.grad(lambda x: objective.value(0.3, KEY, x, 1.0))(X)


def test_sound_derivatives_in_arguments_are_unbiased():
    """d/dx of t sigmoid(x) by the score: a bias of 0.002 is 7 standard errors."""
    objective = ppl.expectation(
        lambda t, x: t * ppl.sample("b", dist.Bernoulli(logits=x)), strategies="reinforce"
    )
    each = jax.jit(jax.vmap(lambda k: jax.grad(lambda x: objective.value(0.3, k, x))(X)))
    grads = each(jax.random.split(KEY, 200_000))
    s = jax.nn.sigmoid(X)
    assert abs(grads.mean() - 0.3 * s * (1 - s)) < 4.5 * grads.std() / 200_000**0.5


def test_hyperparameters_of_a_bound_may_be_differentiated():
    """d/dx of log N(z; 0, e^x) is z^2 e^(-2 x) - 1; z^2 from two values of the bound at the same noise."""

    def model(x):
        ppl.sample("z", dist.Normal(0.0, jnp.exp(x)))

    def guide(x):
        ppl.sample("z", dist.Normal(ppl.param("m", 0.0), 1.0))

    bound = inference.elbo(model, guide)
    value = lambda x, k: bound.value({"m": jnp.array(0.4)}, k, x)
    got = jax.grad(value)(0.2, KEY)
    square = 2 * (0.7 - (value(0.0, KEY) - value(0.7, KEY))) / (1 - np.exp(-1.4))
    np.testing.assert_allclose(got, square * np.exp(-0.4) - 1, rtol=1e-3)


@pytest.mark.slow
def test_rules_hold_no_tracers():
    objective = ppl.expectation(
        lambda t, x: t * ppl.sample("b", dist.Bernoulli(logits=x)), strategies="enum"
    )
    with jax.checking_leaks():
        jax.jit(jax.grad(lambda x: objective.value(0.3, KEY, x)))(X)


def test_nothing_is_left_of_the_check_where_nobody_differentiates():
    objective = ppl.expectation(lambda t, x: t * ppl.sample("z", dist.Normal(x, 1.0)))
    text = jax.jit(lambda t, k, x: objective.value(t, k, x)).lower(0.3, KEY, X).as_text()
    assert "custom" not in text.replace("custom_call", "")
