"""Tilts are programs with a known density, taken by what takes programs; a tilt of a tilt is one."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from _tilts import (
    KEY,
    MEAN,
    VARIANCE,
    A,
    C,
    bits,
    chain_of_tilt,
    normal,
    pairs,
    policy,
    quadratic,
    two_steps,
)

from lapilli import inference, ppl
from lapilli.inference.tilts import TiltedProgram

LOG_Z = A**2 / (2 * (1 + C)) - np.log1p(C) / 2


@pytest.fixture(scope="module")
def tilted():
    return inference.tilt(normal, quadratic)


@pytest.mark.parametrize("temperature, log_z", [(1.0, 4.963810), (0.5, 14.168868)])
def test_the_total_over_strings_is_that_of_the_transfer_matrix(temperature, log_z):
    found = chain_of_tilt(temperature)[0]
    assert abs(found - log_z) < 1e-6
    made = inference.tilts.report(
        inference.tilt(bits, pairs, temperature),
        policy.bind({"logits": jnp.asarray(chain_of_tilt(temperature)[1], jnp.float32)}),
        KEY,
    )
    assert made.kl_is == "exact" and made.evaluations == 4096
    assert abs(made.log_z.value - log_z) < 2e-6
    # Rounding: log-densities of up to 22 nats are known to 2e-6 in single precision.
    assert abs(made.kl.value) < 1e-5 and made.residual < 1e-9


def test_the_density_is_that_of_the_base_and_the_reward(tilted):
    x = jnp.linspace(-2.0, 3.0, 7)
    found = jax.jit(jax.vmap(lambda x: tilted.log_density({"x": x})))(x)
    np.testing.assert_allclose(
        found - LOG_Z, dist.Normal(MEAN, VARIANCE**0.5).log_prob(x), rtol=1e-5, atol=1e-5
    )
    assert (
        isinstance(tilted, TiltedProgram) and tilted.base is normal and tilted.reward is quadratic
    )


def test_a_tilt_of_a_tilt_is_one_tilt():
    """Rewards add, each by its temperature, in any number and order."""
    rewards = [(lambda x: x, 2.0), (lambda x: -(x**2), 0.5), (jnp.cos, 3.0)]
    made = normal
    for reward, temperature in rewards:
        made = inference.tilt(made, reward, temperature)
    assert made.base is normal and made.temperature == 1.0
    for x in (-1.3, 0.2, 2.0):
        total = sum(float(r(x)) / b for r, b in rewards)
        found = made.log_density({"x": x}) - normal.log_density({"x": x})
        np.testing.assert_allclose(found, total, rtol=1e-5)
    assert list(made.trace({"x": 0.3}).log_probs) == ["x", "reward"]


def test_a_constraint_is_a_reward(tilted):
    above = inference.tilt(normal, lambda x: x > 0.5)
    assert above.log_density({"x": 0.4}) == -jnp.inf
    np.testing.assert_allclose(above.log_density({"x": 0.6}), normal.log_density({"x": 0.6}))
    both = inference.tilt(tilted, lambda x: x > 0.5)
    assert both.log_density({"x": 0.4}) == -jnp.inf


def test_the_bound_is_the_total_where_the_guide_is_the_tilt(tilted):
    def guide():
        ppl.sample("x", dist.Normal(MEAN, VARIANCE**0.5))

    for objective, value in [
        (inference.elbo(tilted, guide), LOG_Z),
        (inference.log_variance(tilted, guide, num_particles=4), 0.0),
        (inference.forward_kl(tilted, guide, num_particles=4), 0.0),
    ]:
        np.testing.assert_allclose(objective.value({}, KEY), value, atol=1e-5)


def test_particles_and_resampling_reach_it(tilted):
    run = inference.smc(tilted, KEY, num_particles=4000)
    assert abs(run.log_evidence - LOG_Z) < 0.05  # standard error 0.01
    q = ppl.normalize(tilted, proposal=normal, num_particles=200)
    draws = jax.jit(jax.vmap(lambda k: q.simulate(k).choices["x"]))(jax.random.split(KEY, 2000))
    assert abs(draws.mean() - MEAN) < 4.5 * (VARIANCE / 2000) ** 0.5 + 0.01
    sums = jax.jit(ppl.eliminate(inference.tilt(coin, lambda x: 2.0 * x), "x").log_density)({})
    np.testing.assert_allclose(sums, np.log(0.75 + 0.25 * np.exp(2.0)), rtol=1e-5)


@ppl.model
def coin():
    return ppl.sample("x", dist.Bernoulli(0.25))


def test_a_base_with_data_is_its_posterior():
    def model(y):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(z, 1.0), obs=y)
        return z

    made = inference.tilt(model, lambda z: A * z)
    at = jnp.array([0.3, -0.4])
    np.testing.assert_allclose(
        made.log_density({"z": at[0]}, at[1]),
        ppl.as_program(model).log_density({"z": at[0]}, at[1]) + A * at[0],
        rtol=1e-6,
    )


def test_parameters_of_the_base_stay(tilted):
    """The reference is what was bound; a guide of the same names moves alone."""
    reference = policy.bind({"logits": jnp.ones((12, 2))})
    objective = inference.log_variance(inference.tilt(reference, pairs), policy, num_particles=2)
    params = objective.init(KEY)
    assert list(params) == ["logits"] and not params["logits"].any()
    made = inference.tilt(reference, pairs).bind({"logits": jnp.zeros((12, 2))})
    x = {"x": jnp.ones(12, int)}
    np.testing.assert_allclose(made.log_density(x), reference.log_density(x) + 11, rtol=1e-6)
    with pytest.raises(
        ValueError, match="parameter 'logits' of the base or the reward is not bound"
    ):
        inference.tilt(policy, pairs).simulate(KEY)
    with pytest.raises(ValueError, match="parameter 'w' of the base or the reward is not bound"):
        inference.tilt(normal, lambda x: ppl.param("w", 1.0) * x).simulate(KEY)


def test_site_weights_act_on_the_factor():
    made = ppl.reweight(inference.tilt(normal, quadratic), {"reward": 0.5})
    x = {"x": 1.0}
    np.testing.assert_allclose(
        made.log_density(x), normal.log_density(x) + quadratic(1.0) / 2, rtol=1e-6
    )


def test_numpyro_runs_it(tilted):
    trace = numpyro.handlers.trace(numpyro.handlers.seed(tilted, 0)).get_trace()
    assert {"x", "reward"} <= set(trace)


def test_a_policy_is_fitted_to_strings():
    """KL-regularised policy gradient of a leave-one-out baseline: within 0.05 nats of the tilt."""
    objective = inference.elbo(
        inference.tilt(bits, pairs), policy, strategies="reinforce_loo", num_replicates=64
    )
    fit = inference.fit(
        objective, optax.adam(0.1), (), num_steps=250, key=KEY, progress=False, k_hat="skip"
    )
    made = inference.tilts.report(objective.model, fit, KEY)
    before = inference.tilts.report(objective.model, policy.bind({}), KEY)
    assert made.kl.value < 0.05 < before.kl.value
    assert before.reward.value == pytest.approx(2.75)


RHO = 0.6


def fixed_start(shift):
    def guide():
        x = ppl.sample("start", dist.Normal(0.0, 1.0))
        ppl.sample("end", dist.Normal(RHO * x + shift, (1 - RHO**2) ** 0.5))

    return ppl.as_program(guide)


def test_a_fixed_start_misses_the_mean_by_a_rho_squared():
    """The path's divergence has its optimum at a (1 - rho^2), and the log-weights keep a variance of a^2 rho^2."""
    made = inference.tilt(two_steps, lambda x: A * x)
    best = A * (1 - RHO**2)

    def exact(shift):  # log w = a x_1 - log N(x_1; rho x_0 + shift, .) + log N(x_1; rho x_0, .)
        return A * shift - shift**2 / (2 * (1 - RHO**2))

    assert exact(best) > max(exact(best - 0.01), exact(best + 0.01))
    keys = jax.random.split(KEY, 4000)
    log_w = jax.vmap(lambda k: inference.elbo(made, fixed_start(best)).value({}, k))(keys)
    assert abs(log_w.mean() - exact(best)) < 4.5 * A * RHO / 4000**0.5
    # The start is all that is left in them: log w is a rho x_0 and a constant.
    assert abs(log_w.var() / (A * RHO) ** 2 - 1) < 4.5 * (2 / 4000) ** 0.5
    found = inference.tilts.report(made, fixed_start(best), KEY, num_draws=4000)
    assert abs(found.residual / (A * RHO) ** 2 - 1) < 4.5 * (2 / 4000) ** 0.5
    # KL(q || tilt) = a^2 / 2 - a^2 (1 - rho^2) / 2.
    assert abs(found.kl.value - (A * RHO) ** 2 / 2) < 4.5 * found.kl.error


SHARES, CENTRES = jnp.array([0.5, 0.3, 0.2]), jnp.array([-3.0, 0.0, 3.0])


def kinds(shares):
    def model():
        kind = ppl.sample("kind", dist.Categorical(shares))
        return ppl.sample("x", dist.Normal(CENTRES[kind], 1.0))

    return ppl.as_program(model)


@pytest.mark.parametrize("forgotten", [0, 1, 2])
def test_a_class_is_forgotten_exactly(forgotten):
    """The tilt by log(1 - p(class | x)) is the mixture without the class, with log Z = log(1 - share), at every x."""

    def log_odds(x):
        parts = jnp.log(SHARES) - (x - CENTRES) ** 2 / 2
        others = jax.nn.logsumexp(jnp.where(jnp.arange(3) == forgotten, -jnp.inf, parts))
        return parts[forgotten] - others

    made = ppl.eliminate(
        inference.tilt(kinds(SHARES), lambda x: -jax.nn.softplus(log_odds(x))), "kind"
    )
    rest = jnp.where(jnp.arange(3) == forgotten, 0.0, SHARES)
    without = ppl.eliminate(kinds(rest / rest.sum()), "kind")
    x = jnp.linspace(-5.0, 5.0, 9)
    at = lambda program: jax.jit(jax.vmap(lambda x: program.log_density({"x": x})))(x)
    np.testing.assert_allclose(at(made) - at(without), jnp.log1p(-SHARES[forgotten]), atol=2e-5)


def test_tempered_particles_and_pathwise_gradients_take_it(tilted):
    run = inference.tempered_smc(tilted, KEY, num_particles=1000)
    assert abs(run.log_evidence - LOG_Z) < 0.1
    assert abs(run.mean(lambda x: x["x"]) - MEAN) < 4.5 * (VARIANCE / 300) ** 0.5

    def guide():
        ppl.sample("x", dist.Normal(ppl.param("m", 0.0), VARIANCE**0.5))

    # d ELBO / dm = A - C m - m, at every draw of a Normal's width in the mean.
    bound = inference.elbo(tilted, guide, num_replicates=4000)
    slope = jax.jit(bound.value_and_grad)({"m": jnp.asarray(0.3)}, KEY)[1]["m"]
    assert abs(slope - (A - (1 + C) * 0.3)) < 4.5 * (1 + C) * VARIANCE**0.5 / 4000**0.5


def test_arguments_are_named():
    with pytest.raises(ValueError, match="temperature must be a positive number, got 0"):
        inference.tilt(normal, quadratic, 0.0)
    with pytest.raises(ValueError, match="temperature must be a positive number, got -1.0"):
        inference.tilt(normal, quadratic, -1.0)
    marginal = ppl.marginal(two_steps, keep=["end"], proposal=lambda end: None, num_particles=2)
    with pytest.raises(TypeError, match="a tilt is one run of statements"):
        inference.tilt(marginal, quadratic)


def test_an_index_out_of_range_is_named_as_without_the_tilt():
    def model(group):
        return ppl.sample("x", dist.Normal(jnp.arange(3.0)[group], 1.0))

    made = inference.tilt(model, lambda x: x)
    assert jnp.isfinite(made.log_density({"x": 0.0}, jnp.array(2)))
    with pytest.raises(ValueError, match="what it indexes has 3 entries"):
        inference.tilt(model, lambda x: x).log_density({"x": 0.0}, jnp.array(5))


@pytest.mark.parametrize("name", ["forward_kl", "wake_phi"])
def test_draws_that_break_a_constraint_count_nothing(name):
    """Their weight is 0 and their log-density -inf: 64 coins, of which the ones alone say something."""
    constrained = inference.tilt(coin, lambda x: x == 1)

    def guide():
        ppl.sample("x", dist.Bernoulli(logits=ppl.param("logit", 0.3)))

    made = getattr(inference, name)(constrained, guide, num_particles=64, proposal=coin)
    value, grads = made.value_and_grad({"logit": jnp.array(0.3)}, KEY)
    right = jax.nn.sigmoid(0.3)
    np.testing.assert_allclose(grads["logit"], right - 1, rtol=1e-5)  # of -log q(1)
    value = float(value + jnp.log(right))
    if name == "forward_kl":  # log p(1) - log of the mean weight, which is the share of ones
        ones = 64 * 0.25 * np.exp(-value)
        assert 5 <= round(ones) <= 30 and abs(ones - round(ones)) < 1e-3
    else:
        assert abs(value) < 1e-5
