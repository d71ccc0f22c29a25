"""Second derivatives of estimates: exact in the mean, or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import norm

from lapilli import inference, ppl

KEY = jax.random.key(0)
SMOOTH = {
    "square": (lambda z: z**2, lambda t: 2.0),
    "half_square": (lambda z: jnp.where(z > 0, z**2, 0.0), lambda t: 2 * norm.cdf(t)),
    "exponential": (lambda z: jnp.exp(0.5 * z), lambda t: 0.25 * jnp.exp(0.5 * t + 0.125)),
}
BENT = {
    "relu": jax.nn.relu,
    "abs": jnp.abs,
    "maximum": lambda z: jnp.maximum(z, 0.3),
    "in_steps": lambda z: jax.lax.scan(lambda c, x: (jnp.maximum(c, x), None), z, jnp.zeros(2))[0],
}


def expectation_of(cost, **options):
    return ppl.expectation(lambda t: cost(ppl.sample("z", dist.Normal(t, 1.0))), **options)


@pytest.mark.fast("exponential")
@pytest.mark.parametrize("name", SMOOTH)
def test_a_smooth_cost_has_the_exact_mean(name):
    cost, exact = SMOOTH[name]
    expectation = expectation_of(cost, num_replicates=4000)
    second = jax.jit(jax.hessian(lambda t, key: expectation.value(t, key)))
    expectation.value(0.3, KEY)  # known values, to be searched at
    found = np.array([second(0.3, k) for k in jax.random.split(KEY, 12)])
    assert abs(found.mean() - exact(0.3)) < 4.5 * found.std() / np.sqrt(12) + 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", BENT)
def test_a_cost_with_a_kink_is_refused(name):
    expectation = expectation_of(BENT[name])
    for twice in (
        jax.hessian(lambda t: expectation.value(t, KEY)),
        jax.grad(jax.grad(lambda t: expectation.value(t, KEY))),
        jax.jit(jax.grad(lambda t: expectation.grad(t, KEY))),
    ):
        with pytest.raises(TypeError, match="differentiated again.*fixed noise.*jumps by"):
            twice(0.3)
    assert np.isfinite(expectation.grad(0.3, KEY))


@pytest.mark.slow
def test_slopes_that_bend_pass():
    """The Huber loss: its second derivative jumps, its first does not."""
    huber = lambda z: jnp.where(jnp.abs(z) < 1, 0.5 * z**2, jnp.abs(z) - 0.5)
    expectation = expectation_of(huber, num_replicates=20_000)
    found = jax.hessian(lambda t: expectation.value(t, KEY))(0.3)
    exact = norm.cdf(0.7) - norm.cdf(-1.3)
    np.testing.assert_allclose(found, exact, atol=4.5 * 0.5 / np.sqrt(20_000))


def test_third_derivatives_are_refused():
    expectation = expectation_of(jnp.exp)
    third = jax.grad(jax.grad(jax.grad(lambda t: expectation.value(t, KEY))))
    with pytest.raises(TypeError, match="differentiated three times"):
        third(0.3)


@pytest.mark.slow
def test_mixed_derivatives_in_an_argument():
    cost = lambda t, a, bend: bend(ppl.sample("z", dist.Normal(t, 1.0)) + a)
    mixed = lambda e: jax.grad(lambda a: jax.grad(lambda t: e.value(t, KEY, a))(0.3))(0.1)
    smooth = ppl.expectation(lambda t, a: cost(t, a, jnp.square))
    np.testing.assert_allclose(mixed(smooth), 2.0, rtol=1e-5)
    with pytest.raises(TypeError, match="differentiated again"):
        mixed(ppl.expectation(lambda t, a: cost(t, a, jax.nn.relu)))


@pytest.mark.slow
def test_summed_sites_beside_pathwise_ones():
    def cost(t):
        k = ppl.sample("k", dist.Bernoulli(t), strategy="enum")
        return k * ppl.sample("z", dist.Normal(t, 1.0)) ** 2

    expectation = ppl.expectation(cost, num_replicates=4000)
    found = np.array(
        [jax.hessian(lambda t, k=k: expectation.value(t, k))(0.3) for k in jax.random.split(KEY, 8)]
    )
    assert abs(found.mean() - 6 * 0.3) < 4.5 * found.std() / np.sqrt(8) + 1e-5  # t^3 + t


def test_sites_of_fixed_laws_under_scores():
    """Their surrogates have no derivative; the cost must be smooth all the same."""
    drawn = lambda: ppl.sample("b", dist.Bernoulli(0.5), strategy="reinforce")
    smooth = ppl.expectation(lambda t: (t * drawn()) ** 2, num_replicates=4000)
    np.testing.assert_allclose(jax.hessian(lambda t: smooth.value(t, KEY))(0.3), 1.0, atol=0.1)
    bent = ppl.expectation(lambda t: drawn() * jax.nn.relu(ppl.sample("z", dist.Normal(t, 1.0))))
    with pytest.raises(TypeError, match="fixed noise"):
        jax.hessian(lambda t: bent.value(t, KEY))(0.3)


@ppl.model
def model():
    z = ppl.sample("z", dist.Normal(0.0, 1.0))
    ppl.sample("y", dist.Normal(z, 1.0), obs=1.0)


@ppl.model
def guide():
    loc = ppl.param("loc", 0.3)
    scale = ppl.param("scale", 0.7, constraint=dist.constraints.positive)
    ppl.sample("z", dist.Normal(loc, scale))


def hessian_in_loc(objective, num=500):
    params = objective.init(KEY)
    value = lambda loc, key: objective.value(ppl.Params({**params, "loc": loc}), key)
    keys = jax.random.split(KEY, num)
    return np.asarray(jax.vmap(jax.hessian(value), (None, 0))(params["loc"], keys))


def test_a_bound_has_the_exact_mean():
    np.testing.assert_allclose(hessian_in_loc(inference.elbo(model, guide)), -2.0, rtol=1e-4)


@pytest.mark.parametrize(
    "objective",
    [
        lambda: inference.elbo(model, guide, gradient="stl"),
        lambda: inference.iwelbo(model, guide, num_particles=3, gradient="dreg"),
        lambda: inference.log_variance(model, guide, num_particles=3),
        lambda: inference.forward_kl(model, guide, num_particles=3),
    ],
    ids=["stl", "dreg", "log_variance", "forward_kl"],
)
def test_objectives_that_leave_out_derivatives_are_refused(objective):
    with pytest.raises(TypeError, match="differentiated again, but the estimate leaves out"):
        hessian_in_loc(objective(), 1)


@pytest.mark.slow
def test_particle_filters_are_refused():
    objective = inference.fivo(model, guide, num_particles=3)
    with pytest.raises(TypeError, match="resampling has no unbiased second derivative"):
        hessian_in_loc(objective, 1)

    def evidence(loc):
        program = lambda: ppl.sample(
            "y", dist.Normal(ppl.sample("z", dist.Normal(loc, 1.0)), 1.0), obs=1.0
        )
        return inference.smc(program, KEY, num_particles=4, gradient="stop_gradient").log_evidence

    assert np.isfinite(jax.grad(evidence)(0.3))
    with pytest.raises(TypeError, match="resampling has no unbiased second derivative"):
        jax.hessian(evidence)(0.3)


def test_without_the_check_kinks_pass():
    expectation = expectation_of(lambda z: jnp.maximum(z, 0.0), check_jumps=False)
    assert jax.hessian(lambda t: expectation.value(t, KEY))(0.3) == 0
