"""Control variates over replicates: unbiased values and gradients, the variance that theory leaves, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl

KEY = jax.random.key(0)
ZERO = jnp.array(0.0)
MEAN = np.exp(0.5)


def plain(m):
    return jnp.exp(ppl.sample("z", dist.Normal(m, 1.0)))


def cost(m):
    z = ppl.sample("z", dist.Normal(m, 1.0))
    return ppl.controlled(jnp.exp(z), control=z, mean=m)


def many(fn, num, strategies=None, num_replicates=8, params=ZERO):
    expectation = ppl.expectation(fn, strategies=strategies, num_replicates=num_replicates)
    keys = jax.random.split(KEY, num)
    return jax.jit(jax.vmap(lambda key: expectation.value_and_grad(params, key)))(keys)


def z_score(x, exact):
    x = np.asarray(x, float)
    return (x.mean() - exact) / (x.std() / len(x) ** 0.5)


def test_a_value_that_is_its_control_has_no_variance():
    def line(m):
        z = ppl.sample("z", dist.Normal(m, 2.0))
        return ppl.controlled(3.0 * z - 1.0, control=z, mean=m)

    values, grads = many(line, 50, params=jnp.array(0.7))
    np.testing.assert_allclose(values, 1.1, rtol=1e-5)
    np.testing.assert_allclose(grads, 3.0, rtol=1e-5)


@pytest.mark.slow
def test_the_variance_falls_by_one_over_one_minus_the_squared_correlation():
    """Corr(exp(z), z)^2 = 1 / (e - 1): a factor of 2.392, less some 1.4% for the noise of 256 coefficients' pairs.

    4000 estimates: the ratio has a standard error of 3%, and the bounds are four of them away.
    """
    ratio = np.var(many(plain, 4_000, num_replicates=512)[0]) / np.var(
        many(cost, 4_000, num_replicates=512)[0]
    )
    exact = 1 / (1 - 1 / (np.e - 1))
    assert exact == pytest.approx(2.392, abs=1e-3)
    assert 0.88 * exact < ratio < 1.12 * exact


@pytest.mark.slow_for("reinforce")
@pytest.mark.parametrize("strategy", ["reparam", "reinforce", "reinforce_loo"])
def test_value_and_gradient_are_unbiased(strategy):
    """Both are exp(1/2); 40,000 estimates of 8 replicates; |z| < 4.5, false alarm 6.8e-6 each."""
    values, grads = many(cost, 40_000, {"z": strategy})
    assert abs(z_score(values, MEAN)) < 4.5
    assert abs(z_score(grads, MEAN)) < 4.5


def test_a_coefficient_of_the_same_half_is_seen_to_be_biased():
    """The check above would see it: fitted to the four draws that it multiplies, the bias is over 15 standard errors."""
    z = np.random.default_rng(0).normal(size=(40_000, 2, 4))
    values, centred = np.exp(z), z - z.mean(-1, keepdims=True)
    ratio = (centred * values).sum(-1) / (centred**2).sum(-1)
    own, crossed = ((values.mean(-1) - a * z.mean(-1)).mean(-1) for a in (ratio, ratio[:, ::-1]))
    assert abs(z_score(own, MEAN)) > 15 and abs(z_score(crossed, MEAN)) < 4.5


@pytest.mark.slow
def test_mixed_sites_in_a_plate_are_unbiased_in_every_coordinate():
    """E[sum_i k_i (z + i)^2], k_i ~ Bernoulli(p), z ~ N(m, 1); the control is the count of k with its mean 3 p."""

    def both(params):
        z = ppl.sample("z", dist.Normal(params["m"], 1.0))
        with ppl.plate("rows", 3):
            k = ppl.sample("k", dist.Bernoulli(params["p"]), strategy="reinforce")
        value = jnp.sum(k * (z + jnp.arange(3.0)) ** 2)
        return ppl.controlled(value, control=1.0 * k.sum(), mean=3 * params["p"])

    def exact(params):
        rows = (params["m"] + jnp.arange(3.0)) ** 2 + 1
        return params["p"] * rows.sum()

    at = {"m": jnp.array(0.3), "p": jnp.array(0.4)}
    values, grads = many(both, 20_000, params=at)
    true = jax.grad(exact)(at)
    assert abs(z_score(values, float(exact(at)))) < 4.5
    assert all(abs(z_score(grads[name], float(true[name]))) < 4.5 for name in at)


@pytest.mark.slow  # two more programs to compile
def test_the_variance_of_a_score_falls_too():
    """By more than half; 20,000 estimates of each."""

    def gradient_variance(controls):
        def line(m):
            z = ppl.sample("z", dist.Normal(m, 1.0), strategy="reinforce_loo")
            value = 5.0 * z + jnp.sin(z)
            return ppl.controlled(value, control=z, mean=m) if controls else value

        return np.var(many(line, 20_000, num_replicates=32)[1])

    assert gradient_variance(True) < 0.5 * gradient_variance(False)


def test_a_control_that_does_not_vary_changes_nothing():
    def constant(m):
        z = ppl.sample("z", dist.Normal(m, 1.0))
        return ppl.controlled(z, control=jnp.array(2.0), mean=jnp.array(2.0))

    expectation = ppl.expectation(constant, num_replicates=8)
    assert np.isfinite(expectation.value(ZERO, KEY))
    assert float(expectation.grad(ZERO, KEY)) == pytest.approx(1.0, rel=1e-5)


def test_the_derivative_of_the_value_is_the_gradient_and_baselines_go_on():
    average = ppl.Reinforce(baseline=ppl.strategies.MovingAverage())
    expectation = ppl.expectation(cost, strategies={"z": average}, num_replicates=8)
    value, grad, state = expectation.step(ZERO, None, KEY)
    assert float(jax.grad(expectation.value)(ZERO, KEY)) == pytest.approx(float(grad), rel=1e-5)
    assert jax.tree.structure(state) == jax.tree.structure(expectation.init_state(ZERO))
    again = expectation.step(ZERO, state, KEY)
    assert float(again[0]) == pytest.approx(float(value), rel=1e-6) and again[1] != grad


@pytest.mark.slow  # reports compile twice
def test_an_objective_of_ones_own_has_one_and_its_report_tells():
    @inference.objective
    def bound(model, guide, use):
        q = ppl.draw(guide, use)
        value = ppl.score(model, q, use).log_density - q.log_density
        m = q.choices["z"] - 0.5  # the guide's law is N(0.5, 1)
        return ppl.controlled(value, m, jnp.array(0.0)) if use else value

    def model(use):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("x", dist.Normal(z, 1.0), obs=1.5)

    def guide(use):
        scale = ppl.param("scale", 1.0, constraint=dist.constraints.positive)
        ppl.sample("z", dist.Normal(0.5, scale))

    made = bound(model, guide, num_replicates=16)
    params = made.init(KEY, True)
    reports = [
        inference.diagnostics.gradient_report(made, params, KEY, use, num_draws=400)
        for use in (True, False)
    ]
    assert reports[0].value_sd < reports[1].value_sd
    assert abs(reports[0].value - reports[1].value) < 4.5 * 2 * reports[1].value_sd / 20


@pytest.mark.parametrize(
    ("fn", "options", "words"),
    [
        (cost, {}, "num_replicates is 1.*even number of at least 8"),
        (cost, {"num_replicates": 9}, "num_replicates is 9"),
        (cost, {"num_replicates": 6}, "num_replicates is 6"),
        (lambda m: ppl.controlled(*[ppl.sample("z", dist.Normal(m, 1.0))] * 3), {"num_replicates": 8}, r"draws of \['z'\]"),
        (lambda m: ppl.controlled(jnp.ones(3), m, m), {"num_replicates": 8}, r"value has shape \(3,\)"),
    ],
)  # fmt: skip
def test_what_would_be_biased_is_refused_before_it_runs(fn, options, words):
    with pytest.raises(ValueError, match=words):
        ppl.expectation(fn, **options).plan(ZERO)


def test_a_mean_that_comes_from_the_law_is_none_of_its_draws():
    def latent(m):
        law = dist.Normal(m, 1.0)
        z = ppl.sample("z", law)
        k = ppl.sample("k", dist.Normal(z, 1.0))
        return ppl.controlled(jnp.exp(k), control=z, mean=law.mean)

    ppl.expectation(latent, num_replicates=8).plan(ZERO)


def test_arithmetic_and_second_derivatives_are_refused():
    def log_of(m):
        return jnp.log(cost(m))

    with pytest.raises(TypeError):
        ppl.expectation(log_of, num_replicates=8).plan(ZERO)
    expectation = ppl.expectation(cost, num_replicates=8)
    with pytest.raises(TypeError, match="differentiated again"):
        jax.grad(jax.grad(lambda m: expectation.value(m, KEY)))(ZERO)


@pytest.mark.slow  # two estimators of a whole bound
@pytest.mark.parametrize("strategy", ["reparam", "reinforce"])
def test_the_gradient_of_a_bound_with_a_control_is_that_of_the_closed_form(strategy):
    """Normal mean with four observations: d/dm = sum x - 5 m, d/ds = 1 / s - 5 s; the guide returns its mean, the control's."""
    x = jnp.array([0.3, -0.5, 1.1, 0.8])

    @inference.objective
    def bound(model, guide):
        q = ppl.draw(guide)
        value = ppl.score(model, q).log_density - q.log_density
        return ppl.controlled(value, q.choices["z"], q.retval)

    def model():
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", 4):
            ppl.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide():
        m = ppl.param("m", 0.2)
        ppl.sample("z", dist.Normal(m, ppl.param("s", 0.6)))
        return m

    made = bound(model, guide, strategies={"z": strategy}, num_replicates=8)
    params = made.init(KEY)
    keys = jax.random.split(KEY, 20_000)
    grads = jax.jit(jax.vmap(lambda key: made.grad(params, key)))(keys)
    assert abs(z_score(grads["m"], float(x.sum()) - 5 * 0.2)) < 4.5
    assert abs(z_score(grads["s"], 1 / 0.6 - 5 * 0.6)) < 4.5
