"""Strategies on many distributions: finite supports exactly, others by closed forms (z tests on three seeds)."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _oracles import Exact, assert_mean
from numpyro.distributions import transforms

from lapilli import inference, ppl

pytestmark = pytest.mark.one_in(2)

sigmoid, softmax = jax.nn.sigmoid, jax.nn.softmax


def binomial_mass(n, p):
    k = jnp.arange(n + 1.0)
    log = jax.scipy.special.gammaln
    return jnp.exp(
        log(n + 1.0) - log(k + 1) - log(n - k + 1) + k * jnp.log(p) + (n - k) * jnp.log1p(-p)
    )


L = jnp.array([0.3, -0.5, 0.2])
FINITE = {
    # name: distribution of the parameter, values, their probabilities
    "OneHotCategorical logits": (lambda l: ppl.distributions.OneHotCategorical(logits=l), jnp.eye(3), softmax),
    "Categorical probs": (lambda l: dist.Categorical(probs=softmax(l)), jnp.arange(3), softmax),
    "Bernoulli logits": (
        lambda l: dist.Bernoulli(logits=l[0]), jnp.arange(2), lambda l: jnp.stack([1 - sigmoid(l[0]), sigmoid(l[0])]),
    ),
    "Binomial": (lambda l: dist.Binomial(3, probs=sigmoid(l[1])), jnp.arange(4), lambda l: binomial_mass(3, sigmoid(l[1]))),
    "Binomial logits": (lambda l: dist.Binomial(3, logits=l[1]), jnp.arange(4), lambda l: binomial_mass(3, sigmoid(l[1]))),
    "DiscreteUniform": (lambda l: dist.DiscreteUniform(2, 5), jnp.arange(2, 6), lambda l: jnp.full(4, 0.25)),
}  # fmt: skip


def cost(x, l):
    """Curved, of a scalar or an event."""
    return jnp.sum(jnp.tanh(x * 1.0) * jnp.arange(1.0, jnp.size(x) + 1)) ** 2 + l[2] * jnp.sum(
        x * x
    )


@pytest.mark.fast("Categorical probs")
@pytest.mark.parametrize("name", FINITE)
def test_enumeration_of_a_finite_support_is_exact(name, key):
    make, values, probs = FINITE[name]

    def truth(l):
        return jnp.sum(probs(l) * jax.vmap(lambda v: cost(v, l))(values))

    expectation = ppl.expectation(lambda l: cost(ppl.sample("x", make(l)), l), strategies="enum")
    value, grad = expectation.value_and_grad(L, key)
    want = jax.value_and_grad(truth)(L)
    np.testing.assert_allclose(value, want[0], rtol=1e-5)
    np.testing.assert_allclose(grad, want[1], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["enum", "reinforce_loo"])
@pytest.mark.parametrize("name", ["OneHotCategorical logits", "Binomial"])
def test_finite_supports_in_a_plate_and_a_scan(name, strategy, key):
    """Events and counts with rows and time: E of a sum is a sum of E, E of a product over rows is a product."""
    make, values, probs = FINITE[name]

    def fn(l):
        with ppl.plate("rows", 2):
            x = ppl.sample("x", make(l).expand([2]))
        rows = jax.vmap(lambda v: cost(v, l))(x)
        _, ys = ppl.scan(lambda c, _: (c, cost(ppl.sample("y", make(l)), l)), 0.0, None, 2)
        return rows.sum() + 0.1 * rows[0] * rows[1] + ys.sum()

    def truth(l):
        one = jnp.sum(probs(l) * jax.vmap(lambda v: cost(v, l))(values))
        return 4 * one + 0.1 * one**2

    value, grad = jax.value_and_grad(truth)(L)
    expectation = ppl.expectation(fn, strategies=strategy)
    if strategy == "enum":
        got = expectation.value_and_grad(L, key)
        np.testing.assert_allclose(got[0], value, rtol=1e-5)
        np.testing.assert_allclose(got[1], grad, rtol=1e-4, atol=1e-5)
    else:
        assert_mean(
            expectation, L, Exact(float(value), np.asarray(grad), {}), key, n=40_000, catches=0.5
        )


A = jnp.array([[1.0, 0.5], [0.5, 2.0]])
SPREAD = jnp.array([[0.8, 0.0], [0.3, 0.6]])
CONTINUOUS = {
    # name: draw and cost, closed form of its mean; parameter p = {m, s}
    "MultivariateNormal": (
        lambda p: dist.MultivariateNormal(p["m"], scale_tril=SPREAD * jnp.exp(p["s"])), lambda x: x @ A @ x,
        lambda p: p["m"] @ A @ p["m"] + jnp.trace(A @ SPREAD @ SPREAD.T) * jnp.exp(2 * p["s"]),
    ),
    "Normal event": (
        lambda p: dist.Normal(p["m"], jnp.exp(p["s"])).to_event(1), lambda x: (x.sum() - 0.5) ** 2,
        lambda p: (p["m"].sum() - 0.5) ** 2 + 2 * jnp.exp(2 * p["s"]),
    ),
    "LogNormal": (
        lambda p: dist.LogNormal(p["m"][0], 0.5 * jnp.exp(p["s"])), lambda x: x,
        lambda p: jnp.exp(p["m"][0] + 0.125 * jnp.exp(2 * p["s"])),
    ),
    "affine of a Normal": (
        lambda p: dist.TransformedDistribution(
            dist.Normal(p["m"][0], 1.0), transforms.AffineTransform(p["m"][1], jnp.exp(p["s"])),
        ),
        lambda x: x**2, lambda p: (p["m"][1] + jnp.exp(p["s"]) * p["m"][0]) ** 2 + jnp.exp(2 * p["s"]),
    ),
    "Laplace": (
        lambda p: dist.Laplace(p["m"][0], jnp.exp(p["s"])), lambda x: x**2, lambda p: p["m"][0] ** 2 + 2 * jnp.exp(2 * p["s"]),
    ),
    "Exponential": (lambda p: dist.Exponential(jnp.exp(p["s"])), lambda x: x**2, lambda p: 2 * jnp.exp(-2 * p["s"])),
    "mixture": (
        lambda p: dist.MixtureSameFamily(dist.Categorical(logits=jnp.stack([p["s"], 0 * p["s"]])), dist.Normal(p["m"], 0.7)),
        lambda x: x**2, lambda p: sigmoid(p["s"]) * p["m"][0] ** 2 + sigmoid(-p["s"]) * p["m"][1] ** 2 + 0.49,
    ),
    "Poisson": (lambda p: dist.Poisson(jnp.exp(p["s"])), lambda x: 1.0 * x**2, lambda p: jnp.exp(p["s"]) + jnp.exp(2 * p["s"])),
    "zero-inflated": (
        lambda p: dist.ZeroInflatedPoisson(gate=sigmoid(p["m"][0]), rate=jnp.exp(p["s"])), lambda x: 1.0 * x,
        lambda p: sigmoid(-p["m"][0]) * jnp.exp(p["s"]),
    ),
    "folded Normal": (
        lambda p: dist.FoldedDistribution(dist.Normal(p["m"][0], jnp.exp(p["s"]))), lambda x: x,
        lambda p: (
            jnp.sqrt(2 / jnp.pi) * jnp.exp(p["s"] - 0.5 * (p["m"][0] / jnp.exp(p["s"])) ** 2)
            + p["m"][0] * jax.lax.erf(p["m"][0] / jnp.exp(p["s"]) / jnp.sqrt(2.0))
        ),
    ),
}  # fmt: skip
PATHWISE = (
    "MultivariateNormal",
    "Normal event",
    "LogNormal",
    "affine of a Normal",
    "Laplace",
    "Exponential",
    "folded Normal",
)
CASES = [*((n, "reinforce_loo") for n in CONTINUOUS), *((n, "reparam") for n in PATHWISE)]


@pytest.mark.fast("Exponential-reparam")
@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        pytest.param(*c, marks=() if i % 3 == 0 else pytest.mark.slow) for i, c in enumerate(CASES)
    ],  # slow: the rest
)
def test_closed_forms(name, strategy, key):
    make, f, truth = CONTINUOUS[name]
    params = {"m": jnp.array([0.4, -0.3]), "s": jnp.array(0.2)}
    value, grads = jax.value_and_grad(truth)(params)
    expectation = ppl.expectation(lambda p: f(ppl.sample("x", make(p))), strategies={"x": strategy})
    assert_mean(expectation, params, Exact(float(value), grads, {}), key, n=100_000, catches=0.25)


@pytest.mark.slow
def test_double_precision_is_exact_to_1e_10():
    """Everything enumerated, in a plate, a scan and a branch: value and gradient to rtol 1e-10 of an independent sum."""
    with jax.enable_x64(True):

        def fn(p):
            with ppl.plate("rows", 2):
                z = ppl.sample("z", dist.Bernoulli(probs=sigmoid(p)))
            c, _ = ppl.scan(
                lambda c, _: (c + ppl.sample("s", dist.Bernoulli(logits=p[0] - c)), None),
                p[1],
                None,
                2,
            )
            return (ppl.cond(z[0] == 1, lambda: c, lambda: p[1] * z[1]) - 0.3) ** 2

        def truth(p):
            q, total = sigmoid(p), 0.0
            for z1 in (0, 1):
                for z2 in (0, 1):
                    weight = (q[0] if z1 else 1 - q[0]) * (q[1] if z2 else 1 - q[1])
                    if not z1:
                        total = total + weight * (p[1] * z2 - 0.3) ** 2
                        continue
                    for s1 in (0, 1):
                        for s2 in (0, 1):
                            r1, r2 = sigmoid(p[0] - p[1]), sigmoid(p[0] - p[1] - s1)
                            chain = (r1 if s1 else 1 - r1) * (r2 if s2 else 1 - r2)
                            total = total + weight * chain * (p[1] + s1 + s2 - 0.3) ** 2
            return total

        p = jnp.array([0.3, -0.5])
        assert p.dtype == jnp.float64
        value, grad = ppl.expectation(fn, strategies="enum").value_and_grad(p, jax.random.key(0))
        want = jax.value_and_grad(truth)(p)
        np.testing.assert_allclose(value, want[0], rtol=1e-10)
        np.testing.assert_allclose(grad, want[1], rtol=1e-10)


def test_a_degenerate_probability_gives_finite_gradients(key):
    """A Bernoulli probability of exactly zero upstream (a lane that cannot happen) poisons nothing."""

    def fn(p):
        b = ppl.sample("b", dist.Bernoulli(probs=p["zero"]))
        z = ppl.sample("z", dist.Bernoulli(probs=jnp.clip(p["q"] * (1 - b), 0, 1)))
        return z * 2.0 + b

    params = {"zero": jnp.array(0.0), "q": jnp.array(0.4)}
    for strategies in (
        {"b": "enum", "z": "enum"},
        {"b": "enum", "z": "mvd"},
        {"b": "mvd", "z": "mvd"},
    ):
        grads = ppl.expectation(fn, strategies=strategies).grad(params, key)
        np.testing.assert_allclose(grads["q"], 2.0, rtol=1e-5)  # d/dq 2 q (1 - b) at b = 0
        assert np.isfinite(
            grads["zero"]
        )  # at the edge of its domain; NumPyro's density is clamped there


@pytest.mark.fast("mvd")
@pytest.mark.parametrize("strategy", ["reinforce", "mvd", "enum"])
def test_elbo_of_a_point_mass_beside_a_discrete_site(strategy, key):
    """A Delta guide (pathwise) and a discrete site: the objective is E_k[log p(x, k, m)] - log q(k)."""

    def model():
        m = ppl.sample("m", dist.Normal(0.0, 1.0))
        k = ppl.sample("k", dist.Bernoulli(0.4))
        ppl.sample("x", dist.Normal(m + k, 1.0), obs=0.7)

    def guide():
        ppl.sample("m", dist.Delta(ppl.param("m_at", 0.3)))
        ppl.sample("k", dist.Bernoulli(logits=ppl.param("a", 0.2)))

    def truth(p):
        q = sigmoid(p["a"])
        normal = lambda x, m: -0.5 * (x - m) ** 2 - 0.5 * jnp.log(2 * jnp.pi)  # noqa: E731
        one = normal(p["m_at"], 0.0) + jnp.log(0.4) + normal(0.7, p["m_at"] + 1) - jnp.log(q)
        zero = normal(p["m_at"], 0.0) + jnp.log(0.6) + normal(0.7, p["m_at"]) - jnp.log(1 - q)
        return q * one + (1 - q) * zero

    objective = inference.elbo(model, guide, strategies={"k": strategy})
    params = objective.init(key)
    value, grads = jax.value_and_grad(truth)(dict(params))
    assert_mean(objective, params, Exact(float(value), grads, {}), key, n=20_000, catches=0.15)
