"""Householder flows: reflections are orthogonal, covariances turn exactly, and a normal posterior is reached."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from scipy.stats import multivariate_normal

from lapilli import inference, ppl
from lapilli.models import flows

KEY = jax.random.key(0)


def reflectors(q):
    """Vectors of d - 1 reflections whose product is an orthogonal q, up to signs of columns: H_{d-1} ... H_1 q = signs (QR)."""
    rest, found = np.array(q), []
    for k in range(len(q) - 1):
        v = np.where(np.arange(len(q)) < k, 0.0, rest[:, k])
        v[k] += np.copysign(np.linalg.norm(v), v[k])
        rest -= np.outer(2 * v / (v @ v), v @ rest)
        found.append(v)
    return np.array(found[::-1])


def test_reflections_are_the_matrix_that_their_vectors_make():
    with jax.enable_x64(True):
        vectors = np.random.default_rng(0).normal(size=(3, 4, 5))
        vectors[1, 2] = 0.0
        turn, x = flows.Reflections(vectors), np.eye(5)[:, None] * np.ones((3, 1))
        y = turn(x)
        for b in range(3):
            want = np.eye(5)
            for v in vectors[b]:
                want = (np.eye(5) - (2 * np.outer(v, v) / (v @ v) if v.any() else 0)) @ want
            np.testing.assert_allclose(y[:, b].T, want, atol=1e-12)
        np.testing.assert_allclose(turn.inv(y), x, atol=1e-12)
        assert turn.log_abs_det_jacobian(x, y).shape == (5, 3)
        jacobian = jax.jacfwd(flows.Reflections(vectors[0]))(np.ones(5))
        np.testing.assert_allclose(jnp.linalg.slogdet(jacobian)[1], 0.0, atol=1e-12)
        assert (np.asarray(turn.log_abs_det_jacobian(x, y)) == 0).all()
        grads = jax.grad(lambda v: (flows.Reflections(v)(np.ones(5)) ** 3).sum())(vectors)
        assert np.isfinite(grads).all()


def with_numbers(flow, loc, scale, vectors):
    numbers = np.concatenate([loc, np.log(scale), np.ravel(vectors)])
    return eqx.tree_at(lambda f: f.numbers, flow, jnp.asarray(numbers))


A = np.array([[1.0, 0.5, -0.3], [0.2, 1.5, 0.8], [0.9, -0.4, 0.3], [0.1, 0.7, 1.1]])
X = np.array([1.0, -0.5, 0.3, 2.0])
NOISE = 0.6


def linear(x):
    z = ppl.sample("z", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    ppl.sample("x", dist.Normal(A @ z, NOISE).to_event(1), obs=x)


PRECISION = np.eye(3) + A.T @ A / NOISE**2
COVARIANCE = np.linalg.inv(PRECISION)
MEAN = COVARIANCE @ A.T @ X / NOISE**2
EVIDENCE = multivariate_normal(np.zeros(4), A @ A.T + NOISE**2 * np.eye(4)).logpdf(X)


def guide_of(flow):
    return ppl.model(lambda x: ppl.sample("z", ppl.module("flow", flow).law()))


@pytest.mark.slow(reason="many sizes to compile")
def test_one_reflection_fewer_than_coordinates_reaches_every_covariance():
    """The law is the multivariate normal, and under the posterior the bound is the evidence at every draw."""
    with jax.enable_x64(True):
        squares, axes = np.linalg.eigh(COVARIANCE)
        vectors = reflectors(axes)
        turn = np.asarray(flows.Reflections(vectors)(np.eye(3))).T
        np.testing.assert_allclose(np.abs(np.diag(axes.T @ turn)), 1.0, atol=1e-12)
        begun = flows.HouseholderFlow(3, key=KEY)
        flow = with_numbers(begun, MEAN, np.sqrt(squares), vectors)
        law = flow.law()
        z = jax.random.normal(KEY, (7, 3), float)
        exact = dist.MultivariateNormal(MEAN, COVARIANCE)
        np.testing.assert_allclose(law.log_prob(z), exact.log_prob(z), rtol=1e-10)
        bound = inference.elbo(linear, guide_of(flow))
        params = bound.init(KEY, X)
        values = jax.vmap(lambda k: bound.value(params, k, X))(jax.random.split(KEY, 5))
        np.testing.assert_allclose(values, EVIDENCE, rtol=1e-10)


@pytest.mark.slow  # two fits
def test_a_fitted_flow_reaches_the_evidence_and_independent_coordinates_stop_short_of_it():
    """Mean field's best bound is lower by 1/2 (sum_i log precision_ii - log |precision|)."""
    short = 0.5 * (np.log(np.diag(PRECISION)).sum() - np.linalg.slogdet(PRECISION)[1])
    assert short > 0.2
    for num_reflections, want in ((None, EVIDENCE), (0, EVIDENCE - short)):
        flow = flows.HouseholderFlow(3, key=KEY, num_reflections=num_reflections)
        bound = inference.elbo(linear, guide_of(flow), num_replicates=32)
        rate = optax.cosine_decay_schedule(3e-2, 2000)
        fit = inference.fit(
            bound, optax.adam(rate), (X,), num_steps=2000, key=KEY, progress=False, k_hat="skip"
        )
        values = jax.vmap(lambda k, b=bound, f=fit: b.value(f.params, k, X))(
            jax.random.split(KEY, 2000)
        )
        error = float(values.std()) / len(values) ** 0.5
        # A bound is no higher than the best of its family, and the fit ends within a hundredth of it.
        assert want - 0.01 - 4.5 * error < values.mean() < want + 4.5 * error, num_reflections


@pytest.mark.slow
def test_it_begins_as_the_standard_normal_and_a_context_turns_it_row_by_row():
    flow = flows.HouseholderFlow(3, key=KEY, context_size=2, num_reflections=2)
    context = jax.random.normal(KEY, (4, 2))
    x = jax.random.normal(KEY, (4, 3))
    want = dist.Normal().log_prob(x).sum(-1)
    np.testing.assert_allclose(flow.law(context).log_prob(x), want, rtol=1e-5)
    stirred = jax.tree.map(
        lambda a: a + 0.3 * jnp.cos(jnp.arange(a.size)).reshape(a.shape) if eqx.is_array(a) else a,
        flow,
    )
    law = stirred.law(context)
    alone = jnp.stack([stirred.law(c).log_prob(row) for c, row in zip(context, x, strict=True)])
    np.testing.assert_allclose(law.log_prob(x), alone, rtol=1e-4)
    assert np.ptp(law.log_prob(x[0])) > 0.1 and law.sample(KEY, (5,)).shape == (5, 4, 3)


def test_a_single_coordinate_has_nothing_to_turn():
    law = flows.HouseholderFlow(1, key=KEY).law()
    np.testing.assert_allclose(law.log_prob(jnp.ones(1)), dist.Normal().log_prob(1.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: flows.Reflections(jnp.ones(3)), r"shape \(3,\).*vectors\[None\]"),
        (lambda: flows.HouseholderFlow(0, key=KEY), "size 0 and num_reflections -1 are impossible"),
        (
            lambda: flows.HouseholderFlow(2, key=KEY, context_size=3).law(),
            "HouseholderFlow: the context has length 0.*context_size=3",
        ),
    ],
)
def test_what_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
