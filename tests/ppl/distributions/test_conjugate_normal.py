"""Normal-inverse-Wishart and normal-inverse-gamma laws: golden values, identities between their parts, draws, NumPyro.

Each test compiles one function: op by op, the same numbers would cost some hundred compilations.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions.kl import kl_divergence
from numpyro.distributions.transforms import biject_to
from scipy import stats

from _stats import assert_unbiased
from lapilli import inference, ppl

X = np.array([(0.5, 1.0), (1.5, -0.3), (-0.2, 0.4)])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def golden_prior():
    tril = np.linalg.cholesky([[2, 0.3], [0.3, 1]])
    return ppl.distributions.NormalInverseWishart(np.zeros(2), 2.0, tril, 4.0)


def random_law(seed, d, batch=()):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(*batch, d, d)) + 2 * np.eye(d)
    tril = np.linalg.cholesky(root @ np.swapaxes(root, -1, -2))
    return ppl.distributions.NormalInverseWishart(
        rng.normal(size=(*batch, d)), rng.uniform(0.5, 3, size=batch), tril,
        d + rng.uniform(1.5, 6, size=batch),
    )  # fmt: skip


def random_pair(seed, batch=()):
    rng = np.random.default_rng(seed)
    loc, *rest = rng.normal(size=batch), *(rng.uniform(0.5, 4, size=batch) for _ in range(3))
    return ppl.distributions.NormalInverseGamma(loc, *rest)


def gamma_of(law):
    """The normal-inverse-gamma form of a Wishart law with d = 1."""
    V = law.scale_tril[..., 0, 0] ** 2
    return ppl.distributions.NormalInverseGamma(
        law.loc[..., 0], law.mean_precision, 0.5 * law.df, 0.5 * V
    )


def evidence(prior, posterior, num_rows, d):
    """Log p(x_1:N) of the conjugate model, nats."""
    half = lambda law: jax.scipy.special.multigammaln(0.5 * law.df, d) - 0.5 * law.df * law._log_det
    return (
        -0.5 * num_rows * d * np.log(np.pi)
        + half(posterior)
        - half(prior)
        + 0.5 * d * jnp.log(prior.mean_precision / posterior.mean_precision)
    )


def close(found, expected, rtol=1e-10):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-11), found, expected
    )


def test_golden_values_of_the_conjugate_posterior():
    @jax.jit
    def numbers():
        law = golden_prior()
        post = law.posterior(X)
        q = dist.MultivariateNormal(jnp.array([0.2, -0.1]), jnp.diag(jnp.array([0.5, 0.2])))
        steps = [law.posterior(X[:i]).predictive().log_prob(X[i]) for i in range(3)]
        return {
            "loc": post.loc,
            "counts": jnp.stack([post.mean_precision, post.df]),
            "V": post.scale_tril @ post.scale_tril.T,
            "evidence": evidence(law, post, 3, 2),
            "one step predictives": sum(steps),
            "predictive": post.predictive().log_prob(jnp.array([1.0, 0.0])),
            "kl": kl_divergence(post, law),
            "kl with itself": kl_divergence(post, post),
            "log det": post.expected_natural_params().log_det,
            "expected kl": post.expected_kl(q),
            "prior": law.log_prob_moments(jnp.array([0.3, 0.2]), jnp.array([[1, 0.1], [0.1, 0.5]])),
        }

    expected = {
        "loc": np.array([0.36, 0.22]),
        "counts": np.array([5.0, 7.0]),
        "V": np.array([[3.892, -0.126], [-0.126, 2.008]]),
        "evidence": -8.230471885663226,
        "one step predictives": -8.230471885663226,
        "predictive": -1.6519954355092445,
        "kl": 1.1574245624094772,
        "kl with itself": 0.0,
        "log det": -1.3582064794635398,
        "expected kl": 0.6797679744850108,
        "prior": -2.3498667063231284,
    }
    close(numbers(), expected, rtol=1e-12)


@pytest.mark.parametrize("log_spread", [-2, -3, -4])
def test_a_posterior_in_single_precision_loses_its_condition_number_and_not_the_square(log_spread):
    """Columns that are one but for 1e-2 to 1e-4, under a vague prior; rows of weight 0 have their derivatives, too."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    x[:, 1] = x[:, 0] + 10.0**log_spread * x[:, 1]
    weight = np.ones(40)
    weight[-5:] = 0

    def density(x, weight, wide):
        law = ppl.distributions.NormalInverseWishart(wide * 0, 1.0, 1e-6 * jnp.eye(3), 5.0)
        post = law.posterior(x, weight=weight)
        return post.predictive().log_prob(x[0] + 1e-3), post.scale_tril

    run = jax.jit(jax.value_and_grad(density, argnums=(0, 1), has_aux=True))
    single = [np.asarray(a, np.float32) for a in (x, weight, np.zeros(3))]
    (want, tril), grads = run(*(a.astype(float) for a in single))
    with jax.enable_x64(False):
        (found, root), slopes = run(*single)
    size = np.linalg.cond(tril / np.linalg.norm(tril, axis=1, keepdims=True))
    off = np.abs(np.linalg.solve(tril, np.asarray(root, float)) - np.eye(3)).max()
    eps = np.finfo(np.float32).eps
    assert off < 5 * eps * size  # by the square of the condition number 0.05 at -3, and NaN at -4
    np.testing.assert_allclose(found, want, atol=20 * eps * size)
    for a, b in zip(slopes, grads, strict=True):
        assert np.abs(np.asarray(a) - b).max() < 20 * eps * size * np.abs(b).max()
    uneven = ppl.distributions.NormalInverseWishart(np.zeros(3), 1.0, np.eye(3), 5.0)
    own = np.diag([0.0, 0.5, 2.0]) + np.zeros((40, 1, 1))
    post = uneven.posterior(x, covariance=own, weight=weight)
    plain = uneven.posterior(x, weight=weight)
    close(post.scale_tril @ post.scale_tril.T, plain.scale_tril @ plain.scale_tril.T + 35 * own[0])


@pytest.mark.slow_for("3")
@pytest.mark.parametrize("d", [pytest.param(1, marks=pytest.mark.slow), 3])  # one is enough
def test_bayes_rule_jacobian_and_scipy(d):
    """Prior + likelihood - posterior = evidence at any mean and covariance; the packed density by autodiff's Jacobian."""
    rng = np.random.default_rng(2)
    x, law, free = rng.normal(size=(6, d)), random_law(1, d), np.tril_indices(d)

    def covariance(entries):
        tril = jnp.zeros((d, d)).at[free].set(entries)
        return (tril @ tril.T)[free]

    @jax.jit
    def numbers(key):
        post = law.posterior(x)
        mean, tril = law.unpack(value := law.sample(key))
        S = tril @ tril.T
        likelihood = dist.MultivariateNormal(mean, scale_tril=tril).log_prob(x).sum()
        density = law.log_prob_moments(mean, S)
        bayes = density + likelihood - post.log_prob_moments(mean, S)
        log_det = jnp.linalg.slogdet(jax.jacobian(covariance)(tril[free]))[1]
        packed = law.log_prob(value)
        return (
            mean,
            S,
            density,
            packed,
            (bayes, packed),
            (evidence(law, post, 6, d), density + log_det),
        )

    for seed in range(3):
        mean, S, density, _, found, expected = numbers(jax.random.key(seed))
        close(found, expected)
        V = law.scale_tril @ law.scale_tril.T
        by_scipy = stats.invwishart(float(law.df), V).logpdf(np.asarray(S))
        by_scipy += stats.multivariate_normal(law.loc, S / law.mean_precision).logpdf(mean)
        close(float(density), by_scipy)


@pytest.mark.slow  # compiles for long
def test_mode_is_where_the_density_of_mean_and_covariance_is_flat_and_curved_down():
    law, free = random_law(4, 2), np.tril_indices(2)

    def density(x):
        S = jnp.zeros((2, 2)).at[free].set(x[2:])
        return law.log_prob_moments(x[:2], S + jnp.tril(S, -1).T)

    mean, covariance = law.mode
    x = np.concatenate([mean, covariance[free]])
    slope, curvature = jax.jit(lambda x: (jax.grad(density)(x), jax.hessian(density)(x)))(x)
    np.testing.assert_allclose(slope, 0, atol=1e-9)
    assert np.linalg.eigvalsh(curvature).max() < 0


@pytest.mark.slow
def test_pair_is_the_wishart_law_in_one_dimension():
    law, other = random_law(5, 1, (3,)), random_law(6, 1, (3,))
    x = np.random.default_rng(7).normal(size=(3, 4))

    @jax.jit
    def numbers(key):
        value = law.sample(key)
        normal = dist.Normal(jnp.array([0.1, 0.2, -1.0]), jnp.array([0.5, 1.0, 2.0]))
        vector = dist.MultivariateNormal(
            normal.loc[:, None], scale_tril=normal.scale[:, None, None]
        )
        one, two = gamma_of(law).posterior(x.T), law.posterior(x[..., None])
        by_gamma = (
            gamma_of(law).log_prob(value[..., 0, :]), kl_divergence(gamma_of(law), gamma_of(other)),
            gamma_of(law).entropy(), gamma_of(law).mode, gamma_of(law).expected_kl(normal),
            (one.loc, one.mean_precision, one.concentration, one.rate),
            one.predictive().log_prob(0.3), tuple(one.expected_natural_params()), one.natural_params(),
        )  # fmt: skip
        pair = gamma_of(two)
        by_wishart = (
            law.log_prob(value), kl_divergence(law, other), law.entropy(), law.mode,
            law.expected_kl(vector), (pair.loc, pair.mean_precision, pair.concentration, pair.rate),
            two.predictive().log_prob(jnp.array([0.3])), tuple(two.expected_natural_params()),
            two.natural_params(),
        )  # fmt: skip
        return by_gamma, jax.tree.map(lambda leaf: leaf.reshape(3), by_wishart)

    close(*numbers(jax.random.key(0)))


@pytest.mark.parametrize("name", ["wishart", "gamma"])
def test_natural_parameters_weights_and_uncertain_rows(name):
    """Natural parameters round-trip and add under conjugacy; weights count rows; uncertain rows add their spread."""
    law = random_law(8, 2) if name == "wishart" else random_pair(9)
    x = np.random.default_rng(10).normal(size=(4, *jnp.shape(law.loc)))
    spread = {"covariance": 0.5 * np.eye(2)} if name == "wishart" else {"variance": 0.5}

    @jax.jit
    def numbers():
        zero = law.natural_params()
        parts = [law.posterior(row[None]).natural_params() for row in x]
        summed = jax.tree.map(lambda z, *p: z + sum(q - z for q in p), zero, *parts)
        repeated = law.posterior(jnp.concatenate([x[:2], x[:2], x[2:3]]))
        weighted = law.posterior(x, weight=jnp.array([2.0, 2.0, 1.0, 0.0]))
        uncertain = (
            law.posterior(x, **spread).natural_params()[2] - law.posterior(x).natural_params()[2]
        )
        found = (
            type(law).from_natural_params(zero),
            summed,
            weighted,
            law.posterior(x, weight=0.0),
        )
        return found, (law, law.posterior(x).natural_params(), repeated, law), uncertain

    found, expected, uncertain = numbers()
    close(jax.tree.leaves(found), jax.tree.leaves(expected), rtol=1e-9)
    close(uncertain, 4 * 0.5 * (np.eye(2) if name == "wishart" else 1.0))


def laws(name):
    if name == "gamma":
        return random_pair(18, (2,)), random_pair(19, (2,))
    d = 3 if name == "wishart" else 1
    return random_law(14, d), random_law(15, d)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["wishart", pytest.param("gamma", marks=pytest.mark.slow)]
)  # one is enough
def test_draws_and_pathwise_gradients_have_the_moments_of_the_formulas(name, request):
    """10,000 draws, 3 seeds; |z| < 4.5: 6.8e-6 false alarms for each of 200 coordinates. A bias of 0.07 sd is 7 errors."""
    p, q = laws(name)
    leaves, tree = jax.tree.flatten(p)
    free = np.tril_indices(3)
    if name == "wishart":
        # The zeros above the diagonal are no parameters.
        leaves = [p.loc, p.mean_precision, p.scale_tril[free], p.df]
        build = lambda v: type(p)(v[0], v[1], jnp.zeros((3, 3)).at[free].set(v[2]), v[3])
    else:
        build = lambda v: type(p)(*v)
        leaves = [p.loc, p.mean_precision, p.concentration, p.rate]

    def draw(leaves, key):
        value = build(leaves).sample(key)
        mean, scale = p.unpack(value)
        if name == "gamma":
            precision, log_det = 1 / scale**2, 2 * jnp.log(scale)
            first, quadratic = precision * mean, precision * mean**2
        else:
            precision = jnp.linalg.inv(scale @ scale.T)
            log_det = 2 * jnp.log(jnp.diagonal(scale)).sum()
            first, quadratic = precision @ mean, mean @ precision @ mean
        log_p, log_q = p.log_prob(value), q.log_prob(value)
        return -log_q.sum(), (first, precision, quadratic, log_det, -log_p, log_p - log_q)

    def estimate(key):
        (_, moments), grads = jax.value_and_grad(draw, has_aux=True)(leaves, key)
        return moments, grads

    @jax.jit
    def exact():
        cross = lambda v: (kl_divergence(build(v), q) + build(v).entropy()).sum()
        moments = (*p.expected_natural_params(), p.entropy(), kl_divergence(p, q))
        return moments, jax.grad(cross)(leaves)

    expected = jax.tree.leaves(exact())
    estimates = jax.jit(jax.vmap(estimate))
    for seed in range(3):
        key = jax.random.key(seed + request.config.getoption("--seed-shift"))
        found = jax.tree.leaves(estimates(jax.random.split(key, 10_000)))
        for one, two in zip(found, expected, strict=True):
            assert_unbiased(one, two)


@pytest.mark.slow_for("gamma", "wishart")
@pytest.mark.parametrize("name", ["wishart", "gamma"])
def test_unconstrained_form_is_a_bijection_with_the_stated_jacobian(name):
    p, tril = random_law(14, 2) if name == "wishart" else random_pair(18), np.tril_indices(2)
    transform = biject_to(p.support)
    keep = lambda y: y if name == "gamma" else jnp.concatenate([y[:, 0], y[:, 1:][tril]])

    @jax.jit
    def numbers(key):
        value = p.sample(key)
        free = transform._inverse(value)
        log_det = jnp.linalg.slogdet(jax.jacobian(lambda f: keep(transform(f)))(free))[1]
        found = (transform(free), transform.log_abs_det_jacobian(free, value))
        return found, (value, log_det), p.support(value), p.support(-value), free

    found, expected, inside, outside, free = numbers(jax.random.key(3))
    close(found, expected)
    assert inside and not outside
    assert transform.inverse_shape(found[0].shape) == free.shape
    assert transform.forward_shape(free.shape) == found[0].shape
    assert p.support(p.support.feasible_like(found[0]))


@pytest.mark.slow  # compiles for long
def test_sites_of_both_laws_take_pathwise_and_implicit_estimators():
    def model():
        a = ppl.sample("a", random_pair(0, (2,)).to_event(1))
        b = ppl.sample("b", random_law(0, 2))
        ppl.factor("f", -(a**2).sum() - (b**2).sum())

    def guide():
        shift = ppl.param("shift", 1.0)
        law, pair = random_law(1, 2), random_pair(1, (2,))
        ppl.sample(
            "a", ppl.distributions.NormalInverseGamma(pair.loc + shift, 1.0, 2.0, 1.0).to_event(1)
        )
        ppl.sample(
            "b",
            ppl.distributions.NormalInverseWishart(law.loc * shift, 1.0, law.scale_tril, law.df),
        )

    strategies = {"a": "reparam", "b": "implicit"}
    bound = inference.elbo(model, guide, strategies=strategies, check_jumps=False)
    params = bound.init(jax.random.key(0))
    plan = bound.plan(params)
    assert (plan["a"].strategy, plan["b"].strategy) == ("reparam", "implicit")
    value, grads = bound.value_and_grad(params, jax.random.key(1))
    assert np.isfinite(value) and np.isfinite(grads["shift"])


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"loc has shape \(3,\) and scale_tril \(2, 2\)"):
        ppl.distributions.NormalInverseWishart(np.zeros(3), 1.0, np.eye(2), 4.0)
