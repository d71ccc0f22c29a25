"""The accepted noise of a rejection sampler: exact mean by quadrature over the noise, z tests for the sampler's own.

The z tests state the bias that they find as `catches` (power over 99%, false-alarm rate 6.8e-6 per coordinate and seed, seeds
0, 1, 2). Closed forms in plates and scans stand in test_unbiased_sampled.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _oracles import Exact, assert_mean, estimates, flat, on_rows

from _stats import bootstrap_ratio
from lapilli import inference, ppl

PARAMS = {"a": jnp.array(0.7), "r": jnp.array(1.6), "w": jnp.array(0.8)}


def cost(x, p):
    return x**2 - p["w"] * jnp.log(x) + p["a"] * x


def log_density(x, a, r):
    return a * jnp.log(r) + (a - 1) * jnp.log(x) - r * x - jax.lax.lgamma(a)


# Quadrature.


def by_quadrature(fn, params, num_axes=1):
    """Value and gradient of E[fn(x, params)], x of independent Gamma(a, r) draws: the trapezoidal rule in log x."""
    with jax.enable_x64(True):
        t = np.linspace(-60.0, 4.0, 3001 if num_axes == 1 else 801)
        axes = np.meshgrid(*[t] * num_axes, indexing="ij")
        x = jnp.exp(jnp.asarray(np.stack(axes)))

        def mean(p):
            weight = jnp.exp((log_density(x, p["a"], p["r"]) + jnp.log(x)).sum(0))
            return (weight * fn(x if num_axes > 1 else x[0], p)).sum() * (t[1] - t[0]) ** num_axes

        params = {k: jnp.asarray(np.asarray(v), jnp.float64) for k, v in params.items()}
        value, grads = jax.jit(jax.value_and_grad(mean))(params)
        return Exact(float(value), {k: np.asarray(g) for k, g in grads.items()}, {})


class Preset(ppl.RejectionReparam):
    """The noise is data."""

    noise = None

    def accepted(self, a, key):
        return self.noise


class NoScore(Preset):
    """Broken: the score function of the accepted noise is left out."""

    def surrogate(self, local, downstream):
        return jnp.zeros(())


def grid():
    """Noise of one draw with B = 1, and its probabilities at PARAMS."""
    a = float(PARAMS["a"]) + 1
    d = a - 1 / 3
    w = np.arange(1, 300) * 0.02  # w = 1 + c e, which reaches from 0
    z = d * w**3
    log_pi = (a - 1) * np.log(z) - z - float(jax.lax.lgamma(a)) + np.log(3 * d * w**2)
    x, weight = np.polynomial.legendre.leggauss(40)
    s = (x + 1) / 2  # u = s^6 softens the powers of u
    normal, uniform = np.meshgrid(3 * np.sqrt(d) * (w - 1), 6 * np.log(s), indexing="ij")
    probability = np.outer(np.exp(log_pi) * 0.02, weight / 2 * 6 * s**5)
    noise = {"normal": normal.reshape(-1, 1), "log_uniform": uniform.reshape(-1, 1, 1)}
    return jax.tree.map(lambda x: jnp.asarray(x, float), noise), probability.ravel()


def mean_over_noise(strategy):
    def fn(p, noise):
        preset = strategy(1)
        object.__setattr__(preset, "noise", noise)
        x = ppl.sample("x", dist.Gamma(p["a"], p["r"]), strategy=preset)
        return cost(x, p)

    noise, probability = grid()
    np.testing.assert_allclose(probability.sum(), 1, rtol=1e-5)
    value, grads = on_rows(ppl.expectation(fn), PARAMS, noise)
    mean = lambda x: probability @ np.asarray(x, float)
    return mean(value), jax.tree.map(mean, grads)


@pytest.mark.slow
def test_the_mean_over_all_noise_is_exact():
    truth = by_quadrature(cost, PARAMS)
    value, grads = mean_over_noise(Preset)
    np.testing.assert_allclose(value, truth.value, rtol=2e-5)
    for name, want in truth.grads.items():
        np.testing.assert_allclose(grads[name], want, rtol=5e-5, atol=5e-5, err_msg=name)


def test_without_the_score_of_the_noise_it_would_be_biased():
    truth = by_quadrature(cost, PARAMS)
    _, grads = mean_over_noise(NoScore)
    assert abs(grads["a"] - truth.grads["a"]) > 0.02
    np.testing.assert_allclose(grads["w"], truth.grads["w"], rtol=5e-5)


# The sampler's own noise.


def elbo_of_rows(num_particles):
    """Counts y_i ~ Poisson(x_i), x_i ~ Gamma(2, 1); the guide draws x_i ~ Gamma(a, r)."""
    y = jnp.array([1.0, 4.0])

    def model():
        with ppl.plate("rows", 2):
            x = ppl.sample("x", dist.Gamma(2.0, 1.0))
            ppl.sample("y", dist.Poisson(x), obs=y)

    def guide():
        with ppl.plate("rows", 2):
            ppl.sample("x", dist.Gamma(ppl.param("a", 1.3), ppl.param("r", 0.9)))

    def bound(x, p):
        log_q = log_density(x, p["a"], p["r"])
        log_p = [log_density(x, 2.0, 1.0) + c * jnp.log(x) - x - jax.lax.lgamma(c + 1) for c in y]
        return sum(jax.nn.logsumexp(l - log_q, 0) - jnp.log(num_particles) for l in log_p)

    return model, guide, bound


@pytest.mark.slow  # compiles a bound of several particles
def test_an_importance_weighted_bound_is_unbiased(key):
    model, guide, bound = elbo_of_rows(2)
    objective = inference.iwelbo(
        model, guide, num_particles=2, per="plate", strategies={"x": ppl.RejectionReparam(2)}
    )
    params = objective.init(key)
    truth = by_quadrature(bound, dict(params), num_axes=2)
    assert_mean(objective, params, truth, key, n=40_000, catches=0.3)


@pytest.mark.slow  # compiles four estimators
def test_the_variance_is_near_the_implicit_one_far_from_that_of_scores_and_falls_with_boost(key):
    """Of the derivative in the concentration, for a cost far from zero; whole 99.9% bootstrap intervals."""
    made = {"implicit": "implicit", "score": "reinforce", 1: ppl.RejectionReparam(1), 4: ppl.RejectionReparam(4)}  # fmt: skip
    params = {name: PARAMS[name] for name in "ar"}
    draws = {}
    for number, (name, strategy) in enumerate(made.items()):
        expectation = ppl.expectation(
            lambda p: (ppl.sample("x", dist.Gamma(p["a"], p["r"])) + 20) ** 2, strategies=strategy
        )
        found = estimates(expectation, params, jax.random.fold_in(key, number), 10_000)
        draws[name] = flat(*found)[0][:, 1:2]
    for a, b, most in (("1", "score", 0.01), ("4", "1", 0.5), ("4", "implicit", 2.0)):
        ratio = bootstrap_ratio(*(draws[int(n) if n.isdigit() else n] for n in (a, b)))
        assert ratio[1] < most, (a, b, ratio)


# Beside other strategies.


@pytest.mark.slow  # compiles for long
def test_above_and_below_score_functions_it_is_unbiased(key):
    """A site b depends on x, and y on both: the draw of b is scored, and so is the accepted noise of x and y."""

    def fn(p):
        x = ppl.sample("x", dist.Gamma(p["a"], p["r"]))
        b = ppl.sample("b", dist.Bernoulli(jax.nn.sigmoid(1 - x)))
        y = ppl.sample("y", dist.Gamma(p["a"] + b, 2.0))
        return y * (1 + p["w"] * x) + b * x

    def truth(x, p):
        q = jax.nn.sigmoid(1 - x)
        return (p["a"] + q) / 2 * (1 + p["w"] * x) + q * x

    strategies = {"b": "reinforce_loo", "*": ppl.RejectionReparam(baseline="leave-one-out")}
    expectation = ppl.expectation(fn, strategies=strategies)
    assert_mean(expectation, PARAMS, by_quadrature(truth, PARAMS), key, n=20_000, catches=0.3)


# Refusals.


@pytest.mark.slow
def test_what_it_cannot_serve_is_refused():
    def plan(fn, strategies):
        return ppl.expectation(fn, strategies=strategies).plan(1.5)

    one = {"x": "rejection_reparam"}
    gamma = lambda t: ppl.sample("x", dist.Gamma(t, 1.0))
    with pytest.raises(
        ValueError,
        match="Site 'x': strategy 'rejection_reparam' is implemented for .*'Beta'.*not for Normal",
    ):
        plan(lambda t: ppl.sample("x", dist.Normal(t, 1.0)), one)
    with pytest.raises(ValueError, match="Site 'x': the result jumps by 1.* as a function of its"):
        plan(lambda t: jnp.where(gamma(t) > 1, 1.0, 0.0), one)
    uniform = lambda t: ppl.sample("u", dist.Uniform(0.0, gamma(t)))
    with pytest.raises(
        ValueError, match="Site 'u': the support of Uniform depends on the repar.*'x'"
    ):
        plan(uniform, one | {"u": "reinforce"})
    below = lambda t: ppl.sample(
        "x", dist.Gamma(1 + 0.5 * ppl.sample("b", dist.Bernoulli(t / 3)), 1.0)
    )
    with pytest.raises(
        ValueError, match="Site 'b': strategy 'rebar' .* the sampled site 'x' depends"
    ):
        plan(below, one | {"b": "rebar"})
    for boost in (0, 1.5, True):
        with pytest.raises(ValueError, match="boost must be an integer of at least 1"):
            ppl.RejectionReparam(boost)
