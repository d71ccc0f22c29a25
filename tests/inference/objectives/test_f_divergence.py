"""f-divergences on a three-state model, by enumeration: values, gradients, bounds, and refusals."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl

KEY = jax.random.key(0)
P_X = jnp.array([0.15, 0.7, 0.4])
PARAMS = {"prior": jnp.array([0.2, -0.3, 0.1]), "logits": jnp.array([-0.4, 0.3, 0.5])}
LOG_SCALE = -0.8


@ppl.model
def model():
    z = ppl.sample("z", dist.Categorical(logits=ppl.param("prior", jnp.zeros(3))))
    ppl.sample("x", dist.Bernoulli(P_X[z]), obs=1)


@ppl.model
def guide():
    ppl.sample("z", dist.Categorical(logits=ppl.param("logits", jnp.zeros(3))))


def joint(params):
    return jax.nn.softmax(params["prior"]) * P_X


# In u, as the textbooks write them.
TEXTBOOK = {
    "reverse_kl": lambda u: -jnp.log(u),
    "forward_kl": lambda u: u * jnp.log(u),
    "chi2": lambda u: u**2 - 1,
    "hellinger": lambda u: 2 * (1 - u**0.5),
    "jensen_shannon": lambda u: 0.5 * (u * jnp.log(u) - (1 + u) * jnp.log((1 + u) / 2)),
    "total_variation": lambda u: 0.5 * jnp.abs(u - 1),
}


def exact(f, params, size, log_scale=LOG_SCALE):
    q = jax.nn.softmax(params["logits"])
    w = joint(params) / q * jnp.exp(-log_scale)
    return sum(
        jnp.prod(q[jnp.array(z)]) * f(w[jnp.array(z)].mean())
        for z in itertools.product(range(3), repeat=size)
    )


@pytest.mark.fast("jensen_shannon")
@pytest.mark.parametrize("name", TEXTBOOK)
def test_values_and_gradients_are_exact_under_enumeration(name):
    objective = inference.f_divergence(
        model, guide, f=name, log_scale=LOG_SCALE, num_particles=2, strategies="enum"
    )
    value, grads = objective.value_and_grad(PARAMS, KEY)
    want, want_grads = jax.value_and_grad(lambda p: exact(TEXTBOOK[name], p, 2))(PARAMS)
    assert objective.direction == "min" and objective.name == "f_divergence"
    np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-6)
    for parameter in PARAMS:
        np.testing.assert_allclose(grads[parameter], want_grads[parameter], rtol=1e-4, atol=1e-6)


def test_a_function_of_ones_own_and_the_divergences_of_two_laws():
    """At c = p(x): D_f(posterior || guide), and with u f(1/u) D_f(guide || posterior), here of f = (u - 1)^2."""
    log_evidence = float(jnp.log(joint(PARAMS).sum()))
    p, q = joint(PARAMS) / joint(PARAMS).sum(), jax.nn.softmax(PARAMS["logits"])
    make = lambda f: inference.f_divergence(
        model, guide, f=f, log_scale=log_evidence, strategies="enum"
    )
    forward = make(lambda log_u: jnp.expm1(log_u) ** 2).value(PARAMS, KEY)
    np.testing.assert_allclose(forward, jnp.sum((p - q) ** 2 / q), rtol=1e-4)
    exchanged = make(lambda log_u: jnp.exp(log_u) * jnp.expm1(-log_u) ** 2).value(PARAMS, KEY)
    np.testing.assert_allclose(exchanged, jnp.sum((p - q) ** 2 / p), rtol=1e-4)


@pytest.mark.parametrize("name", TEXTBOOK)
def test_it_bounds_a_function_of_the_evidence_and_falls_with_the_number_of_particles(name):
    f, evidence = TEXTBOOK[name], joint(PARAMS).sum() * jnp.exp(-LOG_SCALE)
    values = [exact(f, PARAMS, size) for size in (1, 2, 3)]
    assert f(evidence) < values[2] + 1e-6 and values[2] < values[1] < values[0]
    at_posterior = PARAMS | {"logits": jnp.log(joint(PARAMS))}
    np.testing.assert_allclose(exact(f, at_posterior, 1), f(evidence), rtol=1e-5, atol=1e-6)


def test_with_the_reverse_kl_it_is_the_importance_weighted_bound():
    loss = inference.f_divergence(
        model, guide, f="reverse_kl", num_particles=3, strategies="reinforce"
    )
    bound = inference.iwelbo(model, guide, num_particles=3, strategies="reinforce")
    value, grads = loss.value_and_grad(PARAMS, KEY)
    want, want_grads = bound.value_and_grad(PARAMS, KEY)
    np.testing.assert_allclose(value, -want, rtol=1e-6)
    np.testing.assert_allclose(grads["logits"], -want_grads["logits"], rtol=1e-5)


@pytest.mark.parametrize("name", TEXTBOOK)
def test_a_weight_of_zero_leaves_the_numbers_finite(name):
    generator = inference.objectives._f_divergence.GENERATORS[name]
    value, slope = jax.value_and_grad(generator)(jnp.asarray(-jnp.inf))
    assert name == "reverse_kl" or np.isfinite(value) and np.isfinite(slope)
    np.testing.assert_allclose(generator(jnp.asarray(0.0)), 0, atol=1e-6)


@pytest.mark.parametrize(
    ("f", "words"),
    [
        ("kl", "f is 'kl'.*reverse_kl"),
        (lambda log_u: log_u, "not convex in u .near u.*log u"),
        (lambda log_u: jnp.sqrt(log_u), "not a number"),
        (lambda log_u: jnp.sum(log_u), r"shape \(25,\) to shape \(\).*elementwise"),
    ],
)
def test_refusals(f, words):
    with pytest.raises(ValueError, match=words):
        inference.f_divergence(model, guide, f=f)
