"""What a result tells of its own degeneracy, and the warning: k-hat of the last weights, and the ancestors that are left."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl
from lapilli.inference.diagnostics import importance_diagnostics
from lapilli.inference.particles.engine._result import warn_of_degeneracy
from lapilli.inference.particles.population import pareto_shape, worst_shape
from lapilli.models import diffusion

VP = diffusion.VP(0.1, 12.0)


@pytest.mark.parametrize("size", [30, 100, 1000])
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_k_hat_is_that_of_arviz(size, spread, key):
    log_weights = spread * jax.random.normal(key, (size,))
    want = importance_diagnostics(np.asarray(log_weights)).k_hat
    np.testing.assert_allclose(jax.jit(pareto_shape)(log_weights), want, rtol=2e-3, atol=2e-3)


def test_k_hat_of_equal_or_few_weights():
    assert pareto_shape(jnp.full(100, -np.log(100))) == -jnp.inf
    assert jnp.isnan(pareto_shape(jnp.arange(20.0)))
    assert worst_shape(100) > worst_shape(10_000) > 0.7


@pytest.mark.parametrize("num_positive", [6, 20, 94, 1000])
def test_k_hat_does_not_mind_weights_of_zero(num_positive, key):
    """Log-weights 20 x of Normal draws x, the least of which no float32 holds beside the largest, and weights of 0."""
    is_positive = jnp.arange(1000) < num_positive
    log_weights = jnp.where(is_positive, 20 * jax.random.normal(key, (1000,)), -jnp.inf)
    assert pareto_shape(log_weights) > worst_shape(1000, num_positive)
    even = jnp.where(is_positive, 0.0, -jnp.inf)
    assert pareto_shape(even) == -jnp.inf
    assert jnp.isnan(pareto_shape(even.at[4:].set(-jnp.inf)))


def test_a_run_that_few_particles_survive_is_told(key):
    """Weights exp(100 x), of which one is nearly all; and three particles of a thousand with any weight."""
    spread = inference.FeynmanKac(
        jax.random.normal, lambda key, x, t: x, lambda _, x, t: 100 * x, 0
    )
    with pytest.warns(UserWarning, match=r"k-hat .* the largest ones decide|effective particles"):
        result = inference.smc(spread, key)
    assert result.ess[-1] < 4
    log_weights = jnp.where(jnp.arange(1000) < 3, -jnp.log(3.0), -jnp.inf)
    few = dataclasses.replace(
        result, log_weights=log_weights, k_hat=pareto_shape(log_weights), ess=jnp.array([3.0])
    )
    with pytest.warns(UserWarning, match=r"leave 3 effective particles of 1000 \(ess\)"):
        warn_of_degeneracy(few, False)


def test_no_derivative_passes_k_hat(key):
    log_weights = jax.random.normal(key, (50,))
    assert not jnp.any(jax.grad(pareto_shape)(log_weights))


@ppl.model
def walk(ys):
    def step(x, y):
        x = ppl.sample("x", dist.Normal(0.9 * x, 1.0))
        return x, ppl.sample("y", dist.Normal(x, 1.0), obs=y)

    ppl.scan(step, 0.0, ys)


@pytest.mark.slow_for("systematic")
@pytest.mark.parametrize("resampling", ["systematic", "multinomial"])
def test_ancestors_are_those_of_the_genealogy(resampling, key):
    ys = jnp.linspace(-2.0, 3.0, 12)
    result = inference.smc(walk, key, ys, num_particles=40, resampling=resampling)
    want = inference.particles.unique_ancestors(result)[0]
    assert result.num_ancestors == want and 1 <= want < 40
    bare = inference.smc(walk, key, ys, num_particles=40, resampling=resampling, history="none")
    assert bare.num_ancestors == want and bare.k_hat == result.k_hat


def annealed(dim, num_steps, beta):
    mixture = diffusion.gaussian_mixture(
        VP, [0.3, 0.7], np.stack([np.full(dim, -0.5), np.full(dim, 0.5)]), 0.3
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fkc")
        return inference.diffusion.fkc(mixture, VP.times(num_steps), exponents=beta)


def alarms(run, key, num_runs=200):
    """How many runs warn, the results made in one compilation."""
    results = jax.jit(lambda keys: jax.lax.map(run, keys, batch_size=20))(
        jax.random.split(key, num_runs)
    )
    results = jax.tree.map(np.asarray, results)
    total = 0
    for n in range(num_runs):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn_of_degeneracy(jax.tree.map(lambda x, n=n: x[n], results), True)
        total += bool(caught)
    return total


@pytest.mark.slow  # three compilations, 200 runs each
def test_healthy_runs_raise_no_alarm(key):
    """At most 1 % of 200: one by a tail fitted to 20 weights; counted 0 to 1 of 200."""
    runs = {
        "line": (annealed(1, 100, 2.0), 100),
        "four dimensions": (annealed(4, 100, 2.0), 200),
        "warmer": (annealed(8, 100, 0.5), 200),
    }
    for model, num_particles in runs.values():
        run = lambda key, m=model, k=num_particles: inference.smc(
            m, key, num_particles=k, history="none"
        )
        assert alarms(run, key) <= 2


@pytest.mark.slow  # a long run
def test_a_run_in_256_dimensions_is_told(key):
    """256 particles whose evidence is off by many nats while their last ess and k-hat look well."""
    model = annealed(256, 200, 2.0)
    with pytest.warns(UserWarning, match=r"all particles descend from 1 of 256 .*num_ancestors"):
        result = inference.smc(model, key, num_particles=256, history="none")
    assert result.num_ancestors == 1 and result.ess[-1] > 30
    under_jit = jax.jit(
        lambda key: inference.smc(model, key, num_particles=256, history="none").num_ancestors
    )
    assert under_jit(key) == 1


def heavy():
    """Weights exp(x^2) of Normal draws, which have no mean: k is 2, its estimate has an sd of a fourth."""
    return inference.FeynmanKac(jax.random.normal, lambda key, x, t: x, lambda _, x, t: x**2, 0)


@pytest.mark.slow
def test_weights_without_a_mean_are_told(key):
    with pytest.warns(UserWarning, match=r"k-hat .* the largest ones decide"):
        result = inference.smc(heavy(), key, num_particles=2000)
    assert result.k_hat > worst_shape(2000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # under jit the number alone
        assert jax.jit(lambda key: inference.smc(heavy(), key, num_particles=2000).k_hat)(key) > 1


def test_weights_that_rounding_has_made_equal_are_told(key):
    """Log-weights of 1e38 + x are equal in single precision, and nothing is known of them; of 1e4 + x all is well."""
    run = lambda size: inference.smc(
        inference.FeynmanKac(jax.random.normal, lambda key, x, t: x, lambda _, x, t: size + x, 0),
        key, num_particles=50,
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"as large as 1e\+38.*cannot be told.*double precision"):
        assert jnp.isnan(run(1e38).k_hat)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not jnp.isnan(run(1e4).k_hat)


@pytest.mark.slow  # a tempered run
def test_tempering_that_rounding_has_made_blind_is_told(key):
    def model():
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.factor("huge", 1e30 - z**2)

    with pytest.warns(UserWarning, match=r"as large as 1e\+30.*cannot be told"):
        inference.tempered_smc(model, key, num_particles=50)


@pytest.mark.slow
def test_lineages_of_a_filter_that_forgets_raise_no_alarm(key):
    ys = 1.8 * jax.random.normal(key, (150,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = inference.smc(walk, key, ys, num_particles=50, history="none")
    assert result.num_ancestors <= 2
