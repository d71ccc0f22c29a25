"""Weak derivatives, triple by triple: d E[f(x)] = c (E f(x+) - E f(x-)).

Each parameter of each distribution against sums over the support or integrals on a grid (float64); f jumps, curves, and
depends on the parameter itself. z tests on three seeds (`_oracles.assert_mean`). Laws of x+ and x- by Kolmogorov-
Smirnov or chi-square tests at level 1e-6 each.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
from _oracles import Exact, assert_mean, bernoulli, bits, categorical, digits, exact, moments, of

from lapilli import ppl
from lapilli.ppl.strategies._mvd import TABLE
from lapilli.ppl.strategies._strategy import Draw

pytestmark = pytest.mark.one_in(2)

LEVEL = 1e-6
COUNTS = np.arange(200)


def cost(x, theta):
    """Curved, with a jump at 1.5, and with a parameter downstream."""
    return 0.3 * (x - 1.0) ** 2 + 2.0 * (x > 1.5) + jnp.sum(jnp.asarray(theta)) * jnp.tanh(x)


def log_binomial(n, k):
    return (
        scipy.special.gammaln(n + 1)
        - scipy.special.gammaln(k + 1)
        - scipy.special.gammaln(n - k + 1)
    )


LOG_FACTORIAL = scipy.special.gammaln(COUNTS + 1)
LOG_ROOT = 0.5 * np.log(2 * np.pi)
LOG_CHOOSE = log_binomial(5, np.arange(6))
# name: distribution of theta, theta, log-mass or log-density by formula, support (counts or a grid).
CASES = {
    "Bernoulli probs": (
        lambda t: dist.Bernoulli(probs=t), 0.3, lambda t, x: x * jnp.log(t) + (1 - x) * jnp.log(1 - t), COUNTS[:2],
    ),
    "Bernoulli logits": (
        lambda t: dist.Bernoulli(logits=t), 0.6, lambda t, x: x * t - jnp.logaddexp(0.0, t), COUNTS[:2],
    ),
    "Categorical logits": (
        lambda t: dist.Categorical(logits=t), [0.3, -0.5, 0.2, 0.0], lambda t, x: jax.nn.log_softmax(t)[x], COUNTS[:4],
    ),
    "Categorical probs": (
        lambda t: dist.Categorical(probs=jax.nn.softmax(t)), [0.3, -0.5, 0.2], lambda t, x: jax.nn.log_softmax(t)[x], COUNTS[:3],
    ),
    "Normal loc": (
        lambda t: dist.Normal(t, 0.8), 0.9, lambda t, x: -0.5 * ((x - t) / 0.8) ** 2 - jnp.log(0.8) - LOG_ROOT, (-8, 10),
    ),
    "Normal scale": (
        lambda t: dist.Normal(0.9, t), 0.8, lambda t, x: -0.5 * ((x - 0.9) / t) ** 2 - jnp.log(t) - LOG_ROOT, (-8, 10),
    ),
    "Poisson": (lambda t: dist.Poisson(t), 1.7, lambda t, x: x * jnp.log(t) - t - LOG_FACTORIAL[x], COUNTS[:60]),
    "Binomial probs": (
        lambda t: dist.Binomial(5, probs=t), 0.4,
        lambda t, x: LOG_CHOOSE[x] + x * jnp.log(t) + (5 - x) * jnp.log(1 - t), COUNTS[:6],
    ),
    "Binomial logits": (
        lambda t: dist.Binomial(5, logits=t), -0.4, lambda t, x: LOG_CHOOSE[x] + x * t - 5 * jnp.logaddexp(0.0, t), COUNTS[:6],
    ),
    "Geometric probs": (lambda t: dist.Geometric(probs=t), 0.45, lambda t, x: jnp.log(t) + x * jnp.log(1 - t), COUNTS),
    "Geometric logits": (
        lambda t: dist.Geometric(logits=t), 0.2, lambda t, x: -jnp.logaddexp(0.0, -t) - x * jnp.logaddexp(0.0, t), COUNTS,
    ),
    "Exponential": (lambda t: dist.Exponential(t), 0.8, lambda t, x: jnp.log(t) - t * x, (0, 40)),
    "Gamma rate": (
        lambda t: dist.Gamma(2.5, t), 1.4,
        lambda t, x: 2.5 * jnp.log(t) + 1.5 * jnp.log(x) - t * x - scipy.special.gammaln(2.5), (0, 40),
    ),
}  # fmt: skip


def truth_of(name):
    """Sum over the support; continuous laws by the midpoint rule with the jump on a cell's edge."""
    _, theta, log_prob, support = CASES[name]
    with jax.enable_x64(True):
        if isinstance(support, tuple):
            low, high = support
            step = 1e-4
            x, weight = np.arange(low, high, step) + step / 2, step
        else:
            x, weight = support, 1.0

        def expected(theta):
            probability = weight * jnp.exp(log_prob(theta, x))
            return jnp.sum(probability * cost(x, theta)), jnp.sum(probability)

        (value, total), grad = jax.value_and_grad(expected, has_aux=True)(jnp.asarray(theta, float))
        np.testing.assert_allclose(total, 1, rtol=1e-7)
        return Exact(float(value), np.asarray(grad), {})


@pytest.mark.fast("Bernoulli probs")
@pytest.mark.parametrize("name", CASES)
def test_derivative_of_one_parameter(name, key):
    make, theta, _, _ = CASES[name]
    expectation = ppl.expectation(
        lambda t: cost(ppl.sample("x", make(t)), t), strategies={"x": "mvd"}
    )
    assert_mean(
        expectation, jnp.asarray(theta, jnp.float32), truth_of(name), key, n=40_000, catches=0.2
    )


@pytest.mark.fast("Geometric probs")
@pytest.mark.parametrize("name", CASES)
def test_score_function_agrees(name, key):
    """The same truth for Reinforce: sampler and density belong together."""
    make, theta, _, _ = CASES[name]
    expectation = ppl.expectation(
        lambda t: cost(ppl.sample("x", make(t)), t), strategies={"x": "reinforce"}
    )
    assert_mean(
        expectation, jnp.asarray(theta, jnp.float32), truth_of(name), key, n=100_000, catches=0.4
    )


@pytest.mark.fast("Bernoulli-spec0")
@pytest.mark.parametrize(("name", "spec"), [("Bernoulli", bits()), ("Categorical", digits(4))])
def test_finite_triples_are_exact_in_each_draw(name, spec):
    """No randomness: the weak derivative of Bernoulli and Categorical is the exact derivative, whatever was drawn."""

    def fn(t, noise):
        preset = of(noise, "x")
        law = (
            bernoulli(jax.nn.sigmoid(t[0]), preset)
            if name == "Bernoulli"
            else categorical(t, preset)
        )
        return cost(ppl.sample("x", law), 0.0)

    theta = jnp.array([0.3, -0.5, 0.2, 0.0])
    truth = exact(fn, theta, {"x": spec})
    got = moments(ppl.expectation(fn, strategies={"x": "mvd"}), theta, {"x": spec}, truth)
    np.testing.assert_allclose(got.grads, truth.grads, atol=1e-6)
    np.testing.assert_allclose(got.variances, 0, atol=1e-10)


def test_an_impossible_category_without_a_cost_has_no_part(key):
    """Its log-prob is -inf: E[f - log q] is that over the others."""

    def fn(logits):
        law = dist.Categorical(logits=jnp.append(logits, -jnp.inf))
        k = ppl.sample("k", law)
        return jnp.array([1.0, -2.0, 0.5])[k] - jax.lax.stop_gradient(law.log_prob(k))

    def exact(logits):
        probs = jax.nn.softmax(logits)
        return (probs * (jnp.array([1.0, -2.0]) - jnp.log(probs))).sum()

    theta = jnp.array([0.3, -0.5])
    value, grad = ppl.expectation(fn, strategies={"k": "mvd"}).value_and_grad(theta, key)
    assert np.isfinite(value)
    np.testing.assert_allclose(grad, jax.grad(exact)(theta), atol=1e-6)


@pytest.mark.parametrize("context", ["line", "plate", "scan", "particles"])
def test_one_hot_rows_have_the_derivative_of_numbers(context, key):
    """Whatever was drawn, where rows separate: that of the enumerated numbers."""
    logits = jnp.array([[0.3, -0.5, 0.2], [0.1, 0.4, -0.7]])
    values = jnp.array([1.0, -2.0, 0.5])

    def fn(t, one_hot):
        def draw(t):
            k = ppl.sample(
                "k",
                (ppl.distributions.OneHotCategorical if one_hot else dist.Categorical)(logits=t),
            )
            return (k @ values if one_hot else values[k]) ** 2 + t.sum() * 0.1

        if context == "line":
            return draw(t[0])
        if context == "plate":
            with ppl.plate("rows", 2):
                return draw(t).sum()
        if context == "particles":
            return ppl.particles(2)(lambda: draw(t[1]))().mean()
        return ppl.scan(lambda c, row: (c, draw(row)), 0.0, t)[1].sum()

    got, want = (
        ppl.expectation(lambda p, o=o: fn(p, o), strategies={"k": s}).grad(logits, key)
        for o, s in ((True, "mvd"), (False, "enum"))
    )
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


# The laws of x+ and x-.

POSITIVE = {
    "Exponential": (dist.Exponential(0.8), 1 / 0.8, scipy.stats.gamma(2, scale=1 / 0.8)),
    "Gamma": (dist.Gamma(2.5, 1.4), 2.5 / 1.4, scipy.stats.gamma(3.5, scale=1 / 1.4)),
}


def triples_of(fn, key, n=20_000):
    draws = fn.sample(key, (n,))
    fn = type(fn)(**{k: jnp.broadcast_to(getattr(fn, k), (n,)) for k in fn.arg_constraints})
    draw = Draw(fn, (n,), draws, fn.log_prob(draws), key)
    return draws, TABLE[type(fn).__name__](draw, jax.random.fold_in(key, 1))


def assert_law(samples, law):
    result = scipy.stats.kstest(np.asarray(samples, float), law.cdf)
    assert result.pvalue > LEVEL, result


@pytest.mark.fast("seed1-Gamma", "seed2-Exponential")
@pytest.mark.parametrize("name", POSITIVE)
def test_laws_of_positive_triples(name, seed):
    fn, c, minus = POSITIVE[name]
    draws, [triple] = triples_of(fn, seed)
    np.testing.assert_allclose(triple.c, c, rtol=1e-5)
    assert triple.plus is None
    assert_law(triple.minus, minus)
    assert bool((triple.minus > draws).all())  # coupled to the draw


@pytest.mark.fast("seed2")
def test_laws_of_the_normal_triples(seed):
    _, (loc, scale) = triples_of(dist.Normal(0.9, 0.8), seed)
    np.testing.assert_allclose(loc.c, 1 / (0.8 * np.sqrt(2 * np.pi)), rtol=1e-5)
    np.testing.assert_allclose(scale.c, 1 / 0.8, rtol=1e-5)
    plus, minus = (loc.plus - 0.9) / 0.8, (0.9 - loc.minus) / 0.8
    np.testing.assert_allclose(plus, minus, rtol=1e-4, atol=1e-5)  # one W for both sides
    assert_law(plus, scipy.stats.rayleigh())
    m = (scale.plus - 0.9) / 0.8
    assert_law(np.abs(m), scipy.stats.maxwell())
    assert scipy.stats.binomtest(int((m > 0).sum()), len(m)).pvalue > LEVEL
    assert_law((scale.minus - 0.9) / 0.8, scipy.stats.norm())


DISCRETE = {
    "Poisson": (dist.Poisson(1.7), 1.0, lambda k: scipy.stats.poisson.pmf(k - 1, 1.7), None),
    "BinomialProbs": (
        dist.BinomialProbs(0.4, 5), 5.0,
        lambda k: scipy.stats.binom.pmf(k - 1, 4, 0.4), lambda k: scipy.stats.binom.pmf(k, 4, 0.4),
    ),
    "GeometricProbs": (dist.GeometricProbs(0.45), 1 / 0.45, None, lambda k: scipy.stats.nbinom.pmf(k - 1, 2, 0.45)),
}  # fmt: skip


def assert_pmf(samples, pmf):
    """Chi-square with cells of an expected count of at least 10."""
    samples = np.asarray(samples).astype(int)
    counts, expected = [], []
    k, count, mass = 0, 0.0, 0.0
    while k < 200:
        count, mass = count + (samples == k).sum(), mass + len(samples) * float(pmf(np.array(k)))
        if mass >= 10:
            counts.append(count)
            expected.append(mass)
            count, mass = 0.0, 0.0
        k += 1
    counts[-1] += count
    expected[-1] += mass
    assert sum(counts) == len(samples), "outside the support"
    if len(counts) > 1:
        assert (
            scipy.stats.chisquare(counts, np.array(expected) * sum(counts) / sum(expected)).pvalue
            > LEVEL
        )


@pytest.mark.fast("seed0-GeometricProbs", "seed1-Poisson")
@pytest.mark.parametrize("name", DISCRETE)
def test_laws_of_counting_triples(name, seed):
    fn, c, plus, minus = DISCRETE[name]
    _, [triple] = triples_of(fn, seed)
    np.testing.assert_allclose(triple.c, c, rtol=1e-5)
    for got, want in ((triple.plus, plus), (triple.minus, minus)):
        assert (got is None) == (want is None)
        if want is not None:
            assert_pmf(got, want)


SAMPLERS = {
    "Geometric probs": (dist.Geometric(probs=0.4), lambda k: scipy.stats.geom.pmf(k + 1, 0.4)),
    "Geometric logits": (dist.Geometric(logits=0.4), lambda k: scipy.stats.geom.pmf(k + 1, 1 / (1 + np.exp(-0.4)))),
    "Bernoulli logits": (dist.Bernoulli(logits=0.4), lambda k: scipy.stats.bernoulli.pmf(k, 1 / (1 + np.exp(-0.4)))),
    "Binomial logits": (dist.Binomial(5, logits=0.4), lambda k: scipy.stats.binom.pmf(k, 5, 1 / (1 + np.exp(-0.4)))),
    "Poisson": (dist.Poisson(1.7), lambda k: scipy.stats.poisson.pmf(k, 1.7)),
    "Categorical logits": (
        dist.Categorical(logits=jnp.log(jnp.array([0.5, 0.3, 0.2]))),
        lambda k: np.where(k < 3, np.array([0.5, 0.3, 0.2])[np.minimum(k, 2)], 0.0),
    ),
}  # fmt: skip


@pytest.mark.fast(
    "seed0-Geometric logits",
    "seed1-Bernoulli logits",
    "seed1-Categorical logits",
    "seed1-Geometric logits",
)
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_site_draws_from_its_density(name, seed):
    """What the program draws has the probabilities that its density states: both parametrisations, by chi-square."""
    fn, pmf = SAMPLERS[name]
    program = ppl.model(lambda: ppl.sample("x", fn))
    draws = jax.jit(jax.vmap(lambda k: program.simulate(k).choices["x"]))(
        jax.random.split(seed, 20_000)
    )
    assert_pmf(draws, pmf)
    support = np.arange(3)
    if name.startswith("Bernoulli"):
        support = np.arange(2)
    for k in support:
        np.testing.assert_allclose(
            program.log_density({"x": jnp.array(k)}), np.log(pmf(k)), rtol=1e-4, atol=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "at",
    [
        pytest.param("scan", marks=pytest.mark.slow),
        "plate",
        "cond",
    ],  # slow: Poisson's sampler loops
)
def test_triples_of_a_poisson_site_inside_regions(at, key):
    """Values of an infinite support, replayed in a scan, in rows and in a branch: E[x], E[x^2] of a Poisson chain."""

    def fn(p):
        def draw(rate):
            return 1.0 * ppl.sample("x", dist.Poisson(rate))

        if at == "plate":
            with ppl.plate("rows", 3):
                x = draw(p * jnp.arange(1.0, 4.0))
            return x.sum() ** 2
        if at == "cond":
            b = ppl.sample("b", dist.Bernoulli(0.5), strategy="reinforce")
            return (ppl.cond(b == 1, lambda: draw(p), lambda: 2 * p) - 0.3) ** 2
        carry, ys = ppl.scan(lambda x, _: (draw(p + 0.5 * x), x), 1.0, None, 3)
        return carry + p * ys.sum()

    def truth(p):
        if at == "plate":
            return (6 * p) ** 2 + 6 * p
        if at == "cond":
            return 0.5 * (p + p**2 - 0.6 * p + 0.09) + 0.5 * (2 * p - 0.3) ** 2
        m = [1.0]
        for _ in range(3):
            m.append(p + 0.5 * m[-1])
        return m[3] + p * (m[0] + m[1] + m[2])

    value, grad = jax.value_and_grad(truth)(0.8)
    expectation = ppl.expectation(fn, strategies={"x": "mvd"})
    assert_mean(
        expectation,
        jnp.float32(0.8),
        Exact(float(value), np.asarray(grad), {}),
        key,
        n=40_000,
        catches=0.1,
    )


def test_a_parameter_without_a_triple_is_refused(key):
    with pytest.raises(ValueError, match="'x'.*'concentration'.*implicit"):
        ppl.expectation(lambda p: ppl.sample("x", dist.Gamma(p, 2.0)), strategies="mvd").grad(
            1.5, key
        )
