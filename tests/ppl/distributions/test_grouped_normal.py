"""Means that share variances by groups, and their Student t: quadrature over each variance, SciPy, Bayes' rule, draws, pairs.

The toy: three elements, the first and the last of which share a variance. Each test compiles one function.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions.kl import kl_divergence
from numpyro.distributions.transforms import biject_to
from scipy import integrate, stats

from _stats import assert_unbiased
from lapilli import ppl
from lapilli.ppl.distributions import GroupedNormalInverseGamma, GroupedStudentT, exact_kl

GROUP, MEMBERS = [0, 1, 0], ([0, 2], [1])
LOC, X = np.array([0.3, -0.4, 1.0]), np.array([0.1, 0.9, -1.2])
P = (LOC, np.array([2.0, 0.7]), np.array([2.5, 1.3]), np.array([0.8, 1.9]))
Q = (LOC + 0.5, np.array([1.0, 1.5]), np.array([1.2, 2.0]), np.array([1.0, 0.6]))


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def grouped(leaves, group=GROUP):
    return GroupedNormalInverseGamma(*leaves, group=group)


def expectation(f, a, b):
    """E[f(s2)], s2 ~ InverseGamma(a, b), by quadrature over log s2."""
    density = lambda u: np.exp(stats.invgamma.logpdf(np.exp(u), a, scale=b) + u)
    return integrate.quad(lambda u: density(u) * f(np.exp(u)), -10, 40, epsabs=1e-13, limit=500)[0]


def by_groups(f):
    """[E f(s2, members, mean_precision, number of the group)] under P."""
    _, k, a, b = P
    return [expectation(lambda s2: f(s2, i, k[g], g), a[g], b[g]) for g, i in enumerate(MEMBERS)]  # noqa: B023


def test_student_t_is_scipys_by_groups():
    """With the second element alone, and with all in one."""
    df, scale = np.array([3.0, 5.5]), np.array([0.7, 1.1, 2.0])
    groupings = (GROUP, df, MEMBERS), ([0, 0, 0], df[:1], ([0, 1, 2],))

    @jax.jit
    def found():
        return [GroupedStudentT(d, LOC, scale, group=g).log_prob(X) for g, d, _ in groupings]

    for value, (_, d, members) in zip(found(), groupings, strict=True):
        parts = (
            stats.multivariate_t.logpdf(X[i], LOC[i], np.diag(scale[i] ** 2), n)
            for n, i in zip(d, members, strict=True)
        )
        np.testing.assert_allclose(value, sum(parts), rtol=1e-12)


def test_expectations_are_integrals_over_the_variances():
    """The expected log-density, the divergence, the marginal law; the mode; Bayes' rule by one-step predictives."""
    rows = np.random.default_rng(0).normal(size=(4, 3))
    mean, variance = np.array([0.1, 0.2, 0.3]), np.array([0.7, 1.4])

    @jax.jit
    def numbers():
        p, q = grouped(P), grouped(Q)
        normal, gap = p.expected_conditional()
        density = lambda packed: p.log_prob_moments(packed[:3], packed[3:])
        mode = jnp.concatenate(p.mode)
        slope, curvature = jax.grad(density)(mode), jax.hessian(density)(mode)
        post = p.posterior(rows)
        likelihood = dist.Normal(mean, jnp.sqrt(variance)[jnp.array(GROUP)]).log_prob(rows).sum()
        evidence = p.log_prob_moments(mean, variance) + likelihood
        evidence = evidence - post.log_prob_moments(mean, variance)
        steps = [p.posterior(rows[:i]).predictive().log_prob(rows[i]) for i in range(4)]
        found = normal.log_prob(X) - 0.5 * gap, kl_divergence(p, q), p.predictive().log_prob(X)
        return found, (slope, curvature), (evidence, sum(steps)), kl_divergence(p, p)

    loc_q, k_q, a_q, b_q = Q

    def log_normal(s2, i, k, g):
        return sum(
            -0.5 * np.log(2 * np.pi * s2) - 0.5 * ((X[j] - LOC[j]) ** 2 / s2 + 1 / k) for j in i
        )

    def log_ratio(s2, i, k, g):
        means = sum(
            0.5 * (k_q[g] / k - 1 - np.log(k_q[g] / k) + k_q[g] * (LOC[j] - loc_q[j]) ** 2 / s2)
            for j in i
        )
        law = lambda a, b: stats.invgamma.logpdf(s2, a, scale=b)
        return means + law(P[2][g], P[3][g]) - law(a_q[g], b_q[g])

    density = lambda s2, i, k, g: np.prod(stats.norm.pdf(X[i], LOC[i], np.sqrt(s2 * (1 + 1 / k))))
    found, (slope, curvature), (evidence, steps), zero = numbers()
    exact = sum(by_groups(log_normal)), sum(by_groups(log_ratio)), np.log(by_groups(density)).sum()
    np.testing.assert_allclose(found, exact, rtol=1e-9)
    np.testing.assert_allclose(slope, 0, atol=1e-12)
    assert np.linalg.eigvalsh(curvature).max() < 0
    np.testing.assert_allclose(evidence, steps, rtol=1e-10)
    np.testing.assert_allclose(zero, 0, atol=1e-12)


def test_groups_of_one_are_independent_pairs():
    """Densities, draws by the same key, divergences, entropy, conditionals, modes, predictives, posteriors of weighted rows."""
    rng = np.random.default_rng(1)
    one, two = ((rng.normal(size=3), *rng.uniform(0.5, 3, size=(3, 3))) for _ in range(2))
    rows, weight = rng.normal(size=(4, 3)), np.array([2.0, 1.0, 1.0, 0.0])

    @jax.jit
    def numbers(key):
        law, other = (grouped(leaves, [0, 1, 2]) for leaves in (one, two))
        pair, pairs = (ppl.distributions.NormalInverseGamma(*leaves) for leaves in (one, two))
        value, packed = law.sample(key), pair.sample(key)
        normal = dist.Normal(X, 0.3)
        post = law.posterior(rows, weight=weight, variance=0.2)
        by_pair = pair.posterior(rows, weight=weight[:, None], variance=0.2)
        names = "loc", "mean_precision", "concentration", "rate"
        found = (
            *law.unpack(value), law.log_prob(value), kl_divergence(law, other), law.entropy(), law.mode,
            law.expected_kl(normal.to_event(1)), law.conditional(value).log_prob(X),
            law.predictive().log_prob(X), law.predictive().mean, law.predictive().variance,
            [getattr(post, name) for name in names],
        )  # fmt: skip
        wanted = (
            *pair.unpack(packed), pair.log_prob(packed).sum(), kl_divergence(pair, pairs).sum(),
            pair.entropy().sum(), pair.mode, pair.expected_kl(normal).sum(),
            pair.conditional(packed).log_prob(X).sum(), pair.predictive().log_prob(X).sum(),
            pair.predictive().mean, pair.predictive().variance, [getattr(by_pair, name) for name in names],
        )  # fmt: skip
        return found, wanted

    found, wanted = numbers(jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), found, wanted)


def test_divergences_of_other_groups_are_sampled():
    other = grouped(P, [0, 1, 1])
    assert exact_kl(grouped(P), other) is None and exact_kl(other, other) is not None


@pytest.mark.slow
def test_draws_and_pathwise_gradients_have_the_moments_of_the_formulas(request):
    """20,000 draws, 3 seeds; |z| < 4.5: 6.8e-6 false alarms for each of 20 coordinates. A bias of 0.05 sd is 7 errors."""
    q = grouped(Q)

    def draw(leaves, key):
        value = grouped(leaves).sample(key)
        log_p, log_q = grouped(P).log_prob(value), q.log_prob(value)
        conditional = grouped(P).conditional(value).log_prob(X)
        return -log_q, (-log_p, log_p - log_q, conditional)

    def estimate(key):
        one, two = jax.random.split(key)
        (_, moments), grads = jax.value_and_grad(draw, has_aux=True)(P, one)
        t = grouped(P).predictive()
        x = t.sample(two)
        shared = jnp.tanh(x[0] ** 2) * jnp.tanh(x[2] ** 2)  # bounded, and not by marginals alone
        given = grouped(P).conditional(grouped(P).sample(one)).sample(two)
        return moments, grads, shared - jnp.tanh(given[0] ** 2) * jnp.tanh(given[2] ** 2)

    @jax.jit
    def exact():
        p = grouped(P)
        normal, gap = p.expected_conditional()
        moments = p.entropy(), kl_divergence(p, q), normal.log_prob(X) - 0.5 * gap
        cross = lambda leaves: kl_divergence(grouped(leaves), q) + grouped(leaves).entropy()
        return moments, jax.grad(cross)(P), 0.0

    expected = jax.tree.leaves(exact())
    estimates = jax.jit(jax.vmap(estimate))
    for seed in range(3):
        key = jax.random.key(seed + request.config.getoption("--seed-shift"))
        found = jax.tree.leaves(estimates(jax.random.split(key, 20_000)))
        for one, two in zip(found, expected, strict=True):
            assert_unbiased(one, two)


@pytest.mark.slow
def test_unconstrained_form_is_a_bijection_with_the_stated_jacobian():
    p = grouped(P)
    transform = biject_to(p.support)

    @jax.jit
    def numbers(key):
        value = p.sample(key, (2,))
        free = transform._inverse(value)
        log_det = jax.vmap(lambda f: jnp.linalg.slogdet(jax.jacobian(transform)(f))[1])(free)
        found = transform(free), transform.log_abs_det_jacobian(free, value)
        return found, (value, log_det), p.support(value), p.support(-value), p.support(value[:, :4])

    found, expected, inside, outside, short = numbers(jax.random.key(3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), found, expected)
    assert inside.all() and not outside.any() and not short.any()
    assert p.support(p.support.feasible_like(found[0])).all()
    one_group = GroupedNormalInverseGamma(LOC, 1.0, 1.0, 1.0, group=[0, 0, 0])
    assert p.support == grouped(Q).support and p.support != one_group.support


def test_groups_and_shapes_that_do_not_fit_are_refused():
    for group, rate in (
        ([0, 2, 0], 1.0),
        ([0, 1], 1.0),
        ([0.0, 1.0, 0.0], 1.0),
        (GROUP, np.ones(3)),
    ):
        with pytest.raises(ValueError, match=r"GroupedNormalInverseGamma: group has shape"):
            GroupedNormalInverseGamma(LOC, 1.0, 1.0, rate, group=group)
    with pytest.raises(ValueError, match=r"GroupedStudentT: .* 0 to G - 1 with none left out"):
        GroupedStudentT(1.0, LOC, 1.0, group=[1, 1, 1])
