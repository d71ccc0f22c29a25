"""Orthonormal matrices: what reflections make of free vectors, the uniform law, and priors under NUTS and guides."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import biject_to
from numpyro.infer import MCMC, NUTS
from scipy.stats import beta, kstest, ortho_group

from lapilli import inference, ppl
from lapilli.ppl.distributions import Orthonormal, UniformFrames

KEY = jax.random.key(0)


@pytest.mark.slow_for("5-3", "60-20")
@pytest.mark.parametrize(("d", "n"), [(2, 1), (5, 3), (60, 20)])
def test_free_vectors_make_frames_and_back(d, n):
    transform = biject_to(Orthonormal(d, n))
    free = jax.random.normal(KEY, (4, *transform.inverse_shape((d, n))))
    frames = jax.jit(transform)(free)
    assert frames.shape == (4, d, n)
    assert np.abs(frames.mT @ frames - np.eye(n)).max() < 1e-5
    assert Orthonormal(d, n)(frames).all()
    assert not Orthonormal(d, n)(frames + 1e-2).any()
    np.testing.assert_allclose(transform(transform.inv(frames)), frames, atol=2e-5)


@pytest.mark.slow
def test_the_uniform_law_is_haars():
    """The square of an entry has Beta(1/2, (d - 1)/2), whatever the entry; products have the moments of random rotations."""
    draws = np.asarray(UniformFrames(5, 3).sample(KEY, (20_000,)))
    for i, j in ((0, 0), (3, 0), (0, 2), (4, 2)):
        assert kstest(draws[:, i, j] ** 2, beta(0.5, 2).cdf).pvalue > 1e-4, (i, j)
    exact = ortho_group.rvs(5, size=20_000, random_state=1)[:, :, :3]
    for moment in (
        lambda w: w[:, 0, 0] * w[:, 1, 1] * w[:, 0, 1] * w[:, 1, 0],
        lambda w: (w[:, 0, 0] * w[:, 2, 2]) ** 2,
    ):
        a, b = moment(draws), moment(exact)
        assert abs(a.mean() - b.mean()) < 4.5 * np.hypot(a.std(), b.std()) / np.sqrt(20_000)


def test_sizes_that_are_none_are_refused():
    for n in (0, 3, 4):
        with pytest.raises(ValueError, match=rf"Orthonormal\(3, {n}\).*leave the last column out"):
            UniformFrames(3, n)


def test_a_parameter_stays_orthonormal_while_it_is_fitted():
    """The leading directions of a covariance, by gradient steps on trace(W' C W)."""
    covariance = jnp.diag(jnp.array([5.0, 3.0, 1.0, 0.5]))

    def model():
        w = ppl.param("w", UniformFrames(4, 2).sample, constraint=Orthonormal(4, 2))
        ppl.factor("trace", jnp.trace(w.T @ covariance @ w))

    objective = inference.elbo(model, lambda: None)
    fit = inference.fit(objective, args=(), num_steps=600, key=KEY, progress=False)
    w = ppl.constrain(fit.params)["w"]
    np.testing.assert_allclose(w.T @ w, np.eye(2), atol=1e-5)
    np.testing.assert_allclose(jnp.trace(w.T @ covariance @ w), 8.0, rtol=1e-2)


def components(x):
    w = ppl.sample("w", UniformFrames(4, 1))
    with ppl.plate("rows", len(x)):
        noise = 0.5 * jnp.eye(4)
        ppl.sample("x", dist.MultivariateNormal(jnp.zeros(4), 4.0 * w @ w.T + noise), obs=x)


@pytest.mark.slow
def test_nuts_recovers_a_planted_direction_and_the_prior():
    planted = np.array([0.6, 0.0, -0.8, 0.0])
    rng = np.random.default_rng(0)
    x = 2 * rng.normal(size=(200, 1)) * planted + np.sqrt(0.5) * rng.normal(size=(200, 4))
    chain = MCMC(NUTS(components), num_warmup=300, num_samples=500, progress_bar=False)
    chain.run(KEY, jnp.asarray(x))
    w = np.asarray(chain.get_samples()["w"])[:, :, 0]
    assert (np.abs(w @ planted) > 0.97).mean() > 0.95
    prior = MCMC(
        NUTS(lambda: numpyro.sample("w", UniformFrames(4, 2))),
        num_warmup=300,
        num_samples=4000,
        progress_bar=False,
    )
    prior.run(KEY)
    squares = np.asarray(prior.get_samples()["w"])[::4, 2, 1] ** 2
    assert kstest(squares, beta(0.5, 1.5).cdf).pvalue > 1e-4
