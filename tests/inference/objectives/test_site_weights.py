"""Site weights: closed forms, schedules over steps, labels, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from _slow import some_slow

from _stats import assert_same_mean, assert_unbiased
from lapilli import inference, ppl

S = 0.7  # scale of the observation


@ppl.model
def conjugate(x, w=1.0):
    loc, log_scale = ppl.param("loc", jnp.array(0.0)), ppl.param("log_scale", jnp.array(0.0))
    z = ppl.sample("z", dist.Normal(0.0, 1.0), proposal=dist.Normal(loc, jnp.exp(log_scale)))
    ppl.sample("x", dist.Normal(z, S), obs=x)


def optimum(x, w):
    """Mean and variance of the q that maximises E log p(x | z) - w KL: q is proportional to p(z) p(x | z)^(1/w)."""
    return x / (1 + w * S**2), w * S**2 / (1 + w * S**2)


@pytest.mark.parametrize("w", [0.1, 4.0])
@pytest.mark.parametrize("kl", some_slow(["sampled", "analytic"], "analytic"))
def test_gradient_vanishes_at_the_weighted_optimum(w, kl, seed):
    """E of the gradient is zero there, and not where w = 1 puts it; a wrong factor 2 on w moves it by 10 standard errors."""
    bound = inference.elbo(conjugate, ppl.guide_of(conjugate), kl=kl, site_weights={"z": w})
    mean, variance = optimum(1.3, w)
    params = {"loc": jnp.array(mean), "log_scale": jnp.array(0.5 * np.log(variance))}
    keys = jax.random.split(seed, 20_000)
    grads = jax.jit(jax.vmap(lambda k: bound.grad(params, k, 1.3)))(keys)
    assert_unbiased(np.stack([grads["loc"], grads["log_scale"]], 1), np.zeros(2))


def test_value_is_the_closed_form(key):
    """E log p(x | z) - w KL for q = N(0.3, 0.5^2), with the KL of N(0.3, 0.5^2) from N(-0.1, 1.2^2) beside: 0.5178298."""
    got = dist.kl_divergence(dist.Normal(0.3, 0.5), dist.Normal(-0.1, 1.2))
    np.testing.assert_allclose(got, 0.5178298, rtol=1e-6)
    params = {"loc": jnp.array(0.3), "log_scale": jnp.log(0.5)}
    kl = np.log(1 / 0.5) + (0.5**2 + 0.3**2) / 2 - 0.5
    fit = -0.5 * np.log(2 * np.pi * S**2) - ((1.3 - 0.3) ** 2 + 0.5**2) / (2 * S**2)
    keys = jax.random.split(key, 20_000)
    for how in ("sampled", "analytic"):
        bound = inference.elbo(
            conjugate, ppl.guide_of(conjugate), kl=how, site_weights={"z": 0.3, "x": 2.0}
        )
        values = jax.jit(jax.vmap(lambda k, b=bound: b.value(params, k, 1.3)))(keys)
        assert_unbiased(values, 2 * fit - 0.3 * kl)


@ppl.model
def chain(ys):
    def step(h, y):
        q = dist.Normal(ppl.param("loc", 0.3), 0.8)
        z = ppl.sample("z", dist.Normal(h, 1.0), proposal=q)
        ppl.sample("y", dist.Normal(z, 1.0), obs=y)
        return 0.5 * z, None

    with ppl.plate("rows", ys.shape[1]):
        ppl.scan(step, jnp.zeros(ys.shape[1]), ys)


YS = jnp.array([[0.2, 1.0], [-0.4, 0.1], [0.9, -1.2]])  # [steps, rows]


@pytest.mark.slow
@pytest.mark.parametrize("kl", ["sampled", "analytic"])
def test_schedule_over_steps_is_linear(kl, key):
    """The value is linear in the weights: a schedule is the sum of its unit schedules, draws being the same."""
    plain = inference.elbo(chain, ppl.guide_of(chain), kl=kl)
    params = plain.init(key, YS)
    value = lambda weights: plain.with_site_weights(weights).value(params, key, YS)
    units = [value({"z": jnp.eye(3)[t], "y": 0.0}) for t in range(3)]
    base = value({"z": 0.0})
    schedule = np.array([0.5, 2.0, 0.1])
    np.testing.assert_allclose(value({"z": schedule}), base + schedule @ units, rtol=1e-5)
    np.testing.assert_allclose(value({"z": 1.0}), plain.value(params, key, YS), rtol=1e-6)
    by_row = value({"z": jnp.ones((3, 2))})
    np.testing.assert_allclose(by_row, plain.value(params, key, YS), rtol=1e-6)


def test_weights_that_follow_the_arguments(key):
    bound = inference.elbo(
        conjugate, ppl.guide_of(conjugate), kl="analytic", site_weights=lambda x, w: {"z": w}
    )
    params = bound.init(key, 1.3, 1.0)
    step = jax.jit(jax.vmap(lambda w: bound.value(params, key, 1.3, w)))
    a, b, c = step(jnp.array([0.0, 1.0, 2.0]))
    np.testing.assert_allclose(c - b, b - a, rtol=1e-4, atol=1e-6)


def test_score_function_and_weights(seed):
    """A discrete site: the weighted gradient under REINFORCE has the mean of the enumerated one."""

    @ppl.model
    def coin(x):
        logit = ppl.param("logit", jnp.array(0.4))
        k = ppl.sample("k", dist.Bernoulli(0.3), proposal=dist.Bernoulli(logits=logit))
        ppl.sample("x", dist.Normal(2.0 * k, 1.0), obs=x)

    make = lambda how, kl: inference.elbo(
        coin, ppl.guide_of(coin), strategies={"k": how}, site_weights={"k": 0.25}, kl=kl
    )
    exact = make("enum", "sampled")
    params = exact.init(seed, 1.1)
    value, grads = exact.value_and_grad(params, seed, 1.1)
    q = jax.nn.sigmoid(0.4)
    like = dist.Normal(jnp.array([0.0, 2.0]), 1.0).log_prob(1.1)
    kl = q * jnp.log(q / 0.3) + (1 - q) * jnp.log((1 - q) / 0.7)
    np.testing.assert_allclose(value, (1 - q) * like[0] + q * like[1] - 0.25 * kl, rtol=1e-5)
    keys = jax.random.split(seed, 20_000)
    sampled = make("reinforce", "sampled")
    estimates = jax.jit(jax.vmap(lambda k: sampled.grad(params, k, 1.1)["logit"]))(keys)
    assert_unbiased(estimates, grads["logit"])


def test_importance_weighted_bound_of_one_particle_is_the_weighted_elbo(key):
    weights = {"z": 0.4, "x": 1.5}
    guide = ppl.guide_of(conjugate)
    one = inference.elbo(conjugate, guide, site_weights=weights)
    other = inference.iwelbo(conjugate, guide, num_particles=1).with_site_weights(weights)
    params = one.init(key, 1.3)
    keys = jax.random.split(key, 20_000)
    values = [
        jax.jit(jax.vmap(lambda k, b=b: b.value(params, k, 1.3)))(ks)
        for b, ks in ((one, keys), (other, jax.random.split(jax.random.key(9), 20_000)))
    ]
    assert_same_mean(*values)


def test_labels(key):
    guide = ppl.guide_of(conjugate)
    bound = inference.elbo(conjugate, guide)
    label = lambda weights: bound.with_site_weights(weights).label(1.3)
    assert bound.label(1.3) == "elbo"
    assert label({"z": 1.0}) == "elbo"
    assert label({"*": 0.5}) == "elbo x 0.5"
    assert label({"z": 0.5, "x": 0.5}) == "elbo x 0.5"
    assert label({"z": 0.5}) == "elbo with site weights (not a bound)"
    assert "not a bound" in label(lambda x: {"*": 1.0})
    assert "not a bound" in inference.iwelbo(conjugate, guide, num_particles=2).with_site_weights(
        {"*": 0.5}
    ).label(1.3)
    weighted = bound.with_site_weights({"z": 0.5})
    params = weighted.init(key, 1.3)
    assert "not a bound" in str(weighted.plan(params, 1.3))
    schedule = inference.elbo(chain, ppl.guide_of(chain), site_weights={"z": jnp.ones(3)})
    assert schedule.label(YS) == "elbo"


def test_refusals(key):
    guide = ppl.guide_of(conjugate)
    bound = inference.elbo(conjugate, guide)
    with pytest.raises(ValueError, match=r"'w\*'. match no site. The sites are"):
        bound.with_site_weights({"w*": 1.0}).init(key, 1.3)
    with pytest.raises(ValueError, match="both|all match site 'z'"):
        bound.with_site_weights({"z*": 1.0, "*": 2.0}).init(key, 1.3)
    with pytest.raises(ValueError, match="finite number >= 0"):
        bound.with_site_weights({"z": -1.0}).init(key, 1.3)
    with pytest.raises(ValueError, match=r"'z': its weight has shape \(4,\).*time=3"):
        inference.elbo(chain, ppl.guide_of(chain), site_weights={"z": jnp.ones(4)}).init(key, YS)
    for refused in (
        inference.iwelbo(conjugate, guide, num_particles=2, gradient="dreg"),
        inference.wake_phi(conjugate, guide, num_particles=2),
        inference.log_variance(conjugate, guide, num_particles=2),
        inference.fivo(conjugate, guide, num_particles=2),
    ):
        with pytest.raises(ValueError, match="site_weights would make its gradient"):
            refused.with_site_weights({"z": 0.5})
    marginal = inference.hvi(conjugate, by_pair, keep=["z"])
    with pytest.raises(TypeError, match="one log-prob for each site"):
        marginal.with_site_weights({"z": 0.5}).init(key, 1.3)


@ppl.model
def by_pair(x):
    a = ppl.sample("a", dist.Normal(0.0, 1.0))
    ppl.sample("z", dist.Normal(a, 1.0))


def test_weights_of_divergences_between_two_programs(key):
    """Model and guide as two programs, the site outside of control flow: the weighted closed form."""

    def guide(x):
        loc, log_scale = ppl.param("loc", jnp.array(0.0)), ppl.param("log_scale", jnp.array(0.0))
        ppl.sample("z", dist.Normal(loc, jnp.exp(log_scale)))

    own, other = (
        inference.elbo(conjugate, g, kl="analytic", site_weights={"z": 0.3, "x": 2.0})
        for g in (ppl.guide_of(conjugate), guide)
    )
    params = {"loc": jnp.array(0.3), "log_scale": jnp.log(0.5)}
    np.testing.assert_allclose(
        own.value(params, key, 1.3), other.value(params, key, 1.3), rtol=1e-5
    )


@pytest.mark.slow  # a fit and an export
def test_fits_and_their_export_carry_the_label(key):
    """What was maximised is named; log p and log q of the draws are densities, without weights."""
    bound = inference.elbo(chain, ppl.guide_of(chain), kl="analytic", site_weights={"z": 0.1})
    fit = inference.fit(bound, optax.adam(0.1), (YS,), num_steps=3, key=key, progress=False)
    assert fit.label == "elbo with site weights (not a bound)"
    tree = inference.to_arviz(fit, key=key, num_samples=4)
    assert tree.posterior.attrs["objective"] == fit.label
    z = tree.posterior["z"].values[0]  # [draws, steps, rows]
    log_q = dist.Normal(fit.params["loc"], 0.8).log_prob(z).sum((1, 2))
    np.testing.assert_allclose(tree.sample_stats["log_q"].values[0], log_q, rtol=1e-4)
