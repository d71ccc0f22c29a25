"""Noise added to a site: its law is that of the sum, its data have the noise, and what is learned is the program without it."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.contrib.control_flow
import numpyro.distributions as dist
import pytest
from scipy.integrate import quad

from _stats import assert_unbiased
from lapilli import inference, ppl

NOISE = dist.Normal(0.2, 0.5)
VECTORS = dist.MultivariateNormal(jnp.array([0.1, -0.3]), jnp.array([[0.5, 0.2], [0.2, 0.4]]))
COV = jnp.array([[1.0, 0.3], [0.3, 0.5]])
LAWS = {
    "Normal": (dist.Normal(1.0, 0.3), NOISE),
    "point": (dist.Delta(1.5), NOISE),
    "mixture": (
        dist.MixtureSameFamily(dist.Categorical(jnp.array([0.3, 0.7])), dist.Normal(jnp.array([-1.0, 2.0]), 0.2)), NOISE,
    ),
    "unlike mixture": (
        dist.MixtureGeneral(dist.Categorical(jnp.array([0.3, 0.7])), [dist.Normal(0.0, 1.0), dist.Normal(3.0, 0.1)]), NOISE,
    ),
    "expanded": (dist.Normal(1.0, 0.3).expand([3]), NOISE),
    "vector": (dist.Normal(jnp.zeros(2), 1.0).to_event(1), NOISE.expand([2]).to_event(1)),
    "vector, one noise": (dist.Normal(jnp.zeros(2), 1.0).to_event(1), NOISE),
    "correlated": (dist.MultivariateNormal(jnp.ones(2), COV), VECTORS),
    "correlated, independent noise": (dist.MultivariateNormal(jnp.ones(2), COV), NOISE.expand([2]).to_event(1)),
    "correlated, one noise": (dist.MultivariateNormal(jnp.ones(2), COV), NOISE),
    "curve": (ppl.distributions.Polyline(jnp.array([[0.0, 0.0], [1.0, 0.5], [1.0, 2.0]]), 0.1), NOISE),
    "mixture of vectors": (
        dist.MixtureSameFamily(
            dist.Categorical(jnp.array([0.3, 0.7])), dist.MultivariateNormal(jnp.array([[0.0, 0.0], [3.0, 1.0]]), COV)
        ), VECTORS,
    ),
}  # fmt: skip


def perturbed(law, noise=NOISE):
    return ppl.perturb(lambda x=None: ppl.sample("x", law, obs=x), "x", noise)


@pytest.mark.parametrize("name", LAWS)
def test_draws_have_the_moments_of_the_sum(name, key):
    """Without data a draw is one of the law plus one of the noise; its density is that of the sum: E[1/q] over a box agrees."""
    law, noise = LAWS[name]
    draws = jax.jit(jax.vmap(lambda k: perturbed(law, noise).simulate(k).choices["x"]))(jax.random.split(key, 4000))  # fmt: skip
    keys = jax.random.split(jax.random.fold_in(key, 1))
    shape = (4000, *law.shape()[: len(law.shape()) - len(noise.shape())])
    sums = law.sample(keys[0], (4000,)) + noise.sample(keys[1], shape)
    flat = lambda x: np.asarray(x).reshape(4000, -1)
    features = lambda x: np.concatenate(
        [flat(x), flat(x) ** 2, (flat(x).prod(1) > 0.5)[:, None]], 1
    )
    difference = features(draws) - features(sums)  # of independent draws of two equal laws
    assert_unbiased(difference, np.zeros(difference.shape[1]))


@pytest.mark.parametrize("name", ["Normal", "point", "mixture", "unlike mixture"])
def test_the_density_is_that_of_the_sum(name):
    law, noise = LAWS[name]
    density = lambda x: float(jnp.exp(perturbed(law).log_density({"x": jnp.asarray(x)})))
    for x in (0.4, 2.1):
        if name == "point":
            want = float(jnp.exp(noise.log_prob(x - 1.5)))
        else:
            joint = lambda e, x: float(jnp.exp(law.log_prob(x - e) + noise.log_prob(e)))
            want = quad(joint, -3, 4, (x,), points=[x, x - 3])[0]
        assert abs(density(x) - want) < 2e-4 * (1 + want)


@pytest.mark.parametrize("data", [jnp.zeros(3), jnp.zeros(())])
def test_each_value_has_noise_of_its_own(data, key):
    """Data that are broadcast to their law, or that the law is widened for."""
    program = perturbed(dist.Normal(0.0, 1.0).expand([3] if data.shape == () else []))
    found = jax.jit(jax.vmap(lambda k: program.simulate(k, data).observed["x"]))(
        jax.random.split(key, 2000)
    )
    assert found.shape == (2000, 3)
    np.testing.assert_allclose(np.corrcoef(found.T), np.eye(3), atol=0.12)


def test_each_run_has_noise_of_its_own_and_the_estimate_is_that_without(key):
    data = jnp.full(400, 1.5)

    @ppl.model
    def model(x):
        loc = ppl.param("loc", 0.0)
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("x", dist.Normal(loc, 0.2), obs=x)

    noisy = ppl.perturb(model, "x", dist.Normal(0.0, 0.5))
    likelihood = inference.objective(lambda model, guide, x: ppl.draw(model, x).log_density)
    fit = inference.fit(likelihood(noisy), args=(data,), num_steps=1000, key=key, progress=False)
    assert abs(float(fit.params["loc"]) - 1.5) < 0.1
    assert np.std(fit.history["value"][-100:]) > 1  # the noise is drawn anew


def test_refusals():
    with pytest.raises(ValueError, match="no law of the sum of a Gamma and a Normal"):
        perturbed(dist.Gamma(2.0, 1.0)).simulate(jax.random.key(0))
    with pytest.raises(ValueError, match="the sum of a Normal and a Laplace"):
        perturbed(dist.Normal(0.0, 1.0), dist.Laplace(0.0, 1.0)).simulate(jax.random.key(0))
    with pytest.raises(ValueError, match="no site named 'y'"):
        ppl.perturb(lambda: ppl.sample("x", NOISE), "y", NOISE).simulate(jax.random.key(0))
    for scan in (ppl.scan, numpyro.contrib.control_flow.scan):

        def chain(x, scan=scan):
            step = lambda z, y: (z, ppl.sample("x", dist.Normal(z, 1.0), obs=y))
            scan(step, jnp.zeros(()), x)

        with pytest.raises(ValueError, match="outside of scans and branches"):  # NumPyro's scan too
            ppl.perturb(chain, "x", NOISE).simulate(jax.random.key(0), jnp.zeros(3))
