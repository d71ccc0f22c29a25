"""Laplace approximations of local sites: exact where conjugate, the fixed point of coordinate ascent, gradients, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import numpyro.handlers
import optax
import pytest
from numpyro.distributions.kl import kl_divergence

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.inference import local_laplace
from lapilli.inference.local import SGLD, Curvature, Descent, Newton
from lapilli.inference.local._gram import gram, gram_transposed
from lapilli.inference.local._inner import InnerProblem
from lapilli.inference.local._local_model import read
from lapilli.inference.local._local_site import NormalPrior, Potential, posterior
from lapilli.inference.local._precision_normal import PrecisionFactorNormal
from lapilli.inference.local._truncated import truncated_factor
from lapilli.inference.objectives._analytic_kl import Laws

# Four episodes of one slope each, y = x theta + N(0, 1/4): data and golden values of the hierarchy.
X = np.array([(1, -1, 0.5), (2, 0, 1), (0.5, 0.5, -1.5), (-1, 1, 2)])
Y = np.array([(1.3, -0.7, 0.4), (1.1, 0.2, 0.9), (1, 0.6, -2.1), (0.2, -0.1, -0.6)])
M = np.array([0.8833016, 0.61477139, 1.26316584, -0.16422068])
V = np.array([0.08491113, 0.0439039, 0.07258464, 0.03734546])
M0, L0, N0, V0 = 0.5771151445501472, 4.5, 7.0, 2.5206885750027888


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def pair(loc, mean_precision, V, df):
    return ppl.distributions.NormalInverseGamma(loc, mean_precision, 0.5 * df, 0.5 * V)


@ppl.model
def slopes(x, y):
    phi = ppl.sample("phi", pair(0.0, 0.5, 1.0, 3.0))
    with ppl.plate("episodes", x.shape[0], dim=-2):
        theta = ppl.sample("theta", ppl.distributions.NormalInverseGamma.conditional(phi))
        with ppl.plate("points", x.shape[1], dim=-1):
            ppl.sample("y", dist.Normal(x * theta, 0.5), obs=y)


@ppl.model
def slopes_guide(x, y):
    positive = dist.constraints.positive
    loc = ppl.param("loc", 0.0)
    rest = [
        ppl.param(n, v, constraint=positive) for n, v in zip("lVn", (0.5, 1.0, 3.0), strict=True)
    ]
    ppl.sample("phi", pair(loc, *rest))


def free(loc, l, V, n):
    return {"loc": jnp.array(loc)} | {k: jnp.log(v) for k, v in zip("lVn", (l, V, n), strict=True)}


def slope_site(law):
    """q(theta_i) of all episodes under a parent's law, by the closed form."""
    normal, _ = law.expected_conditional()
    prior = NormalPrior(jnp.full((4, 1), normal.loc), jnp.full((4, 1), normal.scale), None)
    q = posterior(
        prior,
        Potential(
            np.zeros((4, 1)), -(X * Y).sum(-1, keepdims=True) / 0.25, (X**2).sum(-1)[:, None] / 0.25
        ),
    )
    return dist.Normal(q.mean[:, 0], jnp.sqrt(q.variance[:, 0]))


def slope_loss(q):
    """E_q[-log p(y_i | theta_i)] of every episode."""
    residual = (Y - X * q.mean[:, None]) ** 2 + X**2 * q.variance[:, None]
    return (0.5 * residual / 0.25 + 0.5 * np.log(2 * np.pi * 0.25)).sum(-1)


def test_coordinate_ascent_has_the_golden_bounds_and_fixed_point():
    prior = pair(0.0, 0.5, 1.0, 3.0)

    def bound(law, q):
        local = slope_loss(q) + law.expected_kl(q)
        return -local.sum() - kl_divergence(law, prior)

    @jax.jit
    def numbers():
        bounds, law = [], prior
        for _ in range(2):
            q = slope_site(law)
            bounds.append(bound(law, q))
            law = prior.posterior(q.mean, variance=q.variance)
            bounds.append(bound(law, q))
        step = lambda law, _: (
            prior.posterior(slope_site(law).mean, variance=slope_site(law).variance),
            None,
        )
        law = jax.lax.scan(step, law, None, 60)[0]
        q = slope_site(law)
        return jnp.stack(bounds), bound(law, q), q.mean, q.variance, (law.loc, 2 * law.rate)

    bounds, limit, mean, variance, (loc, scale) = numbers()
    golden = [-16.036213138628263, -11.269182664209186, -11.021131113533944, -10.976875898873104]
    np.testing.assert_allclose(bounds, golden, rtol=1e-13)
    np.testing.assert_allclose(limit, -10.965872396811013, rtol=1e-13)
    np.testing.assert_allclose(mean, M, atol=1e-8)
    np.testing.assert_allclose(variance, V, atol=1e-8)
    np.testing.assert_allclose([loc, scale], [M0, V0], rtol=1e-12)


@pytest.mark.slow
def test_the_guide_draws_from_the_fixed_points_site_and_the_bound_is_the_golden_one():
    """4,000 draws, |z| < 4.5 each; the bound by two-point quadrature in theta is not at hand, so it is a mean as well."""
    guide = local_laplace(slopes, slopes_guide, site="theta", parent="phi").bind(
        free(M0, L0, V0, N0)
    )

    @jax.jit
    @jax.vmap
    def draw(key):
        trace = guide.simulate(key, X, Y)
        density = slopes.log_density(trace.choices, X, Y) - trace.log_density
        return trace.choices["theta"][:, 0], density

    theta, value = draw(jax.random.split(jax.random.key(0), 4000))
    assert_unbiased(theta, M)
    assert_unbiased((theta - M) ** 2, V)
    assert_unbiased(value, -10.965872396811013)


def test_envelope_total_and_partial_derivative_agree_and_have_the_golden_values():
    def objective(m0, V, n=5.0, l=3.0, stop=lambda x: x):
        law = pair(m0, l, V, n)
        q = jax.tree.map(stop, slope_site(law))
        return (slope_loss(q) + law.expected_kl(q)).mean()

    partial = lambda m0, V: objective(m0, V, stop=jax.lax.stop_gradient)

    @jax.jit
    def numbers():
        total = jax.grad(objective, (0, 1))(0.4, 2.0)
        counts = jnp.array([3.0, 10.0, 100.0, 1e4])
        growing = jax.vmap(lambda n: objective(0.4, 0.4 * n, n, n))(counts)
        fixed = jax.vmap(lambda n: objective(0.4, 0.4 * n, n, 3.0))(counts)
        return total, jax.grad(partial, (0, 1))(0.4, 2.0), growing, fixed

    total, part, growing, fixed = numbers()
    np.testing.assert_allclose(total, [-0.56468416735, 0.00850878346], rtol=1e-8)
    np.testing.assert_allclose(part, total, rtol=1e-12)
    np.testing.assert_allclose(growing, [2.71711856, 2.46762445, 2.37598099, 2.36606433], rtol=2e-9)
    np.testing.assert_allclose(fixed, [2.71711856, 2.58429112, 2.53764766, 2.53268100], rtol=2e-9)


# Linear episodes with vectors: everything is exact.


PARAMS = {"loc": np.array([0.3, -0.2, 0.5]), "log_scale": np.log([0.5, 1.0, 2.0])}


@ppl.model
def linear(x, y, mask):
    loc = ppl.param("loc", PARAMS["loc"])
    scale = jnp.exp(ppl.param("log_scale", PARAMS["log_scale"]))
    with ppl.plate("episodes", x.shape[0], dim=-2):
        theta = ppl.sample("theta", dist.Normal(loc, scale).to_event(1))
        with ppl.plate("points", x.shape[1], dim=-1):
            f = (x * theta).sum(-1)
            ppl.sample("y", dist.Normal(f, 0.7).mask(mask), obs=y)


@ppl.model
def linear_dense(x, y, mask):
    tril = jnp.array([[0.5, 0, 0], [0.1, 1.0, 0], [-0.3, 0.2, 2.0]])
    with ppl.plate("episodes", x.shape[0]):
        theta = ppl.sample(
            "theta", dist.MultivariateNormal(jnp.array([0.3, -0.2, 0.5]), scale_tril=tril)
        )
        f = jnp.einsum("bnd,bd->bn", x, theta)
        ppl.sample("y", dist.Normal(f, 0.7).mask(mask).to_event(1), obs=y)


def linear_data(num_points=2):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, num_points, 3)), rng.normal(size=(4, num_points))
    return x, y, np.ones((4, num_points), bool)


OPTIONS = {
    "newton": {"curvature": "hessian"},
    "gauss_newton": {"curvature": "gauss_newton", "inner": Newton(2, damping=0.5)},
    "low_rank": {"curvature": "low_rank_gauss_newton", "inner": Descent(optax.sgd(0.01), 3)},
    "no_steps": {"curvature": "hessian", "inner": Newton(0)},
}


def log_weight(model, guide, key, *args):
    trace = guide.simulate(key, *args)
    return model.log_density(trace.choices, *args) - trace.log_density


@pytest.mark.slow
def test_linear_episodes_have_the_exact_evidence_and_its_gradient_in_every_draw():
    """Fewer points than weights; log p(x, z) - log q(z) is the evidence whatever z, and its gradient the evidence's."""
    data = linear_data()
    x, y, _ = data

    def evidence(params, cov=None):
        cov = jnp.diag(jnp.exp(2 * params["log_scale"])) if cov is None else cov
        S = x @ cov @ jnp.swapaxes(x, -1, -2) + 0.49 * jnp.eye(x.shape[1])
        return dist.MultivariateNormal(x @ params["loc"], S).log_prob(y).sum()

    def found(params, options, gradient):
        guide = local_laplace(linear, site="theta", gradient=gradient, **options)
        return log_weight(linear.bind(params), guide.bind(params), jax.random.key(1), *data)

    @jax.jit
    def numbers():
        dense = [
            log_weight(linear_dense, local_laplace(linear_dense, site="theta", **o), jax.random.key(2), *data)
            for o in (OPTIONS["gauss_newton"],)
        ]  # fmt: skip
        values = [
            jax.value_and_grad(found)(PARAMS, OPTIONS[name], gradient)
            for name, gradient in zip(OPTIONS, ("unrolled", "closed_form") * 2, strict=True)
        ]
        tril = jnp.array([[0.5, 0, 0], [0.1, 1.0, 0], [-0.3, 0.2, 2.0]])
        return values, jax.value_and_grad(evidence)(PARAMS), dense, evidence(PARAMS, tril @ tril.T)

    values, expected, dense, dense_expected = numbers()
    for value in values:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), value, expected
        )
    np.testing.assert_allclose(dense, dense_expected, rtol=1e-9)


@pytest.mark.slow
def test_closed_form_site_minimises_the_expected_loss_plus_divergence():
    """Gradient zero in mean and Cholesky factor; the value there; the gap of a parent's law closes as O(1 / df)."""
    rng = np.random.default_rng(6)
    root, tril = rng.normal(size=(3, 3)), np.tril_indices(3)
    A, b, P = root @ root.T, rng.normal(size=3), np.diag([1.0, 2.0, 0.5])
    prior = NormalPrior(rng.normal(size=3), np.diag(P) ** -0.5, None)

    def objective(mean, entries):
        L = jnp.zeros((3, 3)).at[tril].set(entries)
        loss = -b @ mean + 0.5 * mean @ A @ mean + 0.5 * jnp.trace(A @ L @ L.T)
        normal = dist.MultivariateNormal(prior.loc, scale_tril=jnp.diag(prior.scale))
        return loss + kl_divergence(dist.MultivariateNormal(mean, scale_tril=L), normal)

    @jax.jit
    def numbers():
        q = posterior(prior, Potential(np.zeros(3), -b, matrix=A))
        value, slope = jax.value_and_grad(objective, (0, 1))(q.mean, q.scale_tril[tril])
        mbar = jnp.linalg.solve(A, b)
        between = dist.MultivariateNormal(prior.loc, jnp.linalg.inv(A) + jnp.linalg.inv(P))
        # c + log-normaliser terms of N(prior.loc, A^-1 + P^-1) at mbar.
        expected = (
            -0.5 * b @ mbar
            - between.log_prob(mbar)
            - 1.5 * np.log(2 * np.pi)
            + 0.5 * jnp.linalg.slogdet(A)[1]
        )
        n = jnp.array([1e2, 1e4, 1e6])
        law = ppl.distributions.NormalInverseWishart(
            jnp.zeros((3, 3)), n, jnp.broadcast_to(jnp.eye(3), (3, 3, 3)), n
        )
        return value, expected, slope, 0.5 * law.expected_conditional()[1]

    value, expected, slope, gap = numbers()
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    for part in slope:
        np.testing.assert_allclose(part, 0, atol=1e-12)
    np.testing.assert_allclose(gap, [4.5e-2, 4.5e-4, 4.5e-6], rtol=0.03)


@pytest.mark.slow  # compiles for long
def test_padding_has_no_influence_on_site_value_and_gradient():
    x, y, mask = linear_data()
    pad = lambda a, fill: np.concatenate([a, np.full((4, 3, *a.shape[2:]), fill, a.dtype)], 1)
    padded = pad(x, 7.0), pad(y, -5.0), pad(mask, False)

    def value(params, model, options, *data):
        guide = local_laplace(model, site="theta", **options)
        return log_weight(model.bind(params), guide.bind(params), jax.random.key(1), *data)

    @jax.jit
    def numbers(data):
        return [
            jax.value_and_grad(value)(PARAMS, model, OPTIONS[name], *data)
            for model, name in ((linear, "low_rank"), (linear_dense, "gauss_newton"))
        ]

    one, two = numbers((x, y, mask)), numbers(padded)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), one, two)


@pytest.mark.slow
def test_precision_factor_normal_is_the_dense_law():
    rng = np.random.default_rng(1)
    loc, scale, factor = rng.normal(size=6), rng.uniform(0.5, 2, 6), rng.normal(size=(4, 6))
    value, target = (
        rng.normal(size=6),
        dist.Normal(rng.normal(size=6), rng.uniform(0.5, 2, 6)).to_event(1),
    )

    @jax.jit
    def numbers(key):
        law = PrecisionFactorNormal(loc, scale, factor)
        precision = jnp.diag(1 / scale**2) + factor.T @ factor
        dense = dist.MultivariateNormal(loc, precision_matrix=precision)
        wide = dist.MultivariateNormal(target.mean, scale_tril=jnp.diag(jnp.sqrt(target.variance)))
        one = (
            law.log_prob(value),
            law.variance,
            kl_divergence(law, target),
            law.entropy(),
            law.trace_over(value),
            law.trace_over(scale),
        )
        two = (
            dense.log_prob(value), dense.variance, kl_divergence(dense, wide), dense.entropy(),
            *(jnp.diag(dense.covariance_matrix) @ x**-2 for x in (value, scale)),
        )  # fmt: skip
        return one, two, law.sample(key, (20_000,)), dense.covariance_matrix

    one, two, draws, covariance = numbers(jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), one, two)
    offset = np.asarray(draws) - loc
    assert_unbiased(draws, loc)
    assert_unbiased(offset[:, :, None] * offset[:, None], covariance)


@pytest.mark.slow  # compiles for long
@pytest.mark.parametrize("is_own", [False, True])
def test_derivatives_of_the_low_rank_law_are_those_of_the_dense_one(is_own):
    """Of log-density, draw, entropy and KL in mean, scales and factor: no step of the way through m x m matrices is lost.

    The KL is that from a prior of other scales, or of the law's own.
    """
    rng = np.random.default_rng(7)
    at = {"loc": rng.normal(size=5), "scale": rng.uniform(0.5, 2, 5), "factor": rng.normal(size=(2, 5))}  # fmt: skip
    prior, value = jnp.asarray(rng.uniform(0.5, 2, 5)), rng.normal(size=5)
    prior = at["scale"] if is_own else prior
    key = jax.random.key(0)

    def low_rank(loc, scale, factor):
        law = PrecisionFactorNormal(loc, scale, factor)
        kl = kl_divergence(law, dist.Normal(0.3, prior).to_event(1))
        return jnp.stack([law.log_prob(value), kl, law.entropy(), law.sample(key) @ value])

    def dense(loc, scale, factor):
        cov = jnp.linalg.inv(jnp.diag(scale**-2) + factor.T @ factor)
        law = dist.MultivariateNormal(loc, cov)
        kl = kl_divergence(law, dist.MultivariateNormal(jnp.full(5, 0.3), jnp.diag(prior**2)))
        one, two = jax.random.split(key)
        free = scale * jax.random.normal(one, (5,))
        draw = loc + free - cov @ factor.T @ (factor @ free + jax.random.normal(two, (2,)))
        return jnp.stack([law.log_prob(value), kl, law.entropy(), draw @ value])

    @jax.jit
    def numbers():
        mixed = lambda f: jax.value_and_grad(lambda at: f(**at) @ jnp.array([1.0, -2.0, 3.0, 0.5]))
        return [mixed(f)(at) for f in (low_rank, dense)]

    one, two = numbers()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), one, two)


@pytest.mark.fast("3")
@pytest.mark.parametrize("m", [3, 14])  # products with vectors, and of matrices
def test_gram_by_blocks_and_its_derivatives_are_those_of_whole_products(m):
    """5,000 columns, which nine blocks do not divide; in reverse and in forward mode, U a constant and not."""
    rng = np.random.default_rng(9)
    u, v, x = (jnp.asarray(rng.normal(size=s)) for s in ((2, m, 5000), (2, 5000), (2, m, m)))
    whole = lambda u, v: jnp.einsum("...md,...d,...nd->...mn", u, v, u)

    @jax.jit
    def numbers():
        derivatives = lambda f: (
            f(u, v),
            jax.grad(lambda u, v: (x * f(u, v)).sum(), (0, 1))(u, v),
            jax.grad(lambda v: (x * f(u, v)).sum())(v),
            jax.jvp(f, (u, v), (2 * u + 1, v**2)),
            jax.vmap(f, (None, 0))(u[0], v),
        )
        return derivatives(gram), derivatives(whole), gram_transposed(u, x)

    one, two, transposed = numbers()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-9), one, two)
    np.testing.assert_allclose(transposed, two[2], rtol=1e-10, atol=1e-9)


def test_truncated_factor_is_exact_up_to_its_rank_and_never_larger_beyond():
    """30 outputs of 8 numbers. Of rank 3: exact. Of falling eigenvalues: at most the true matrix, most of its trace."""
    rng = np.random.default_rng(8)
    scale = rng.uniform(0.5, 2, size=(2, 8))
    few = rng.normal(size=(2, 30, 3)) @ rng.normal(size=(2, 3, 8))
    bases = [np.linalg.qr(rng.normal(size=(2, n, 8)))[0] for n in (30, 8)]
    falling = (bases[0] * 0.5 ** np.arange(8)) @ bases[1].mT / scale[:, None]

    @jax.jit
    def squares():
        products = lambda u: (
            lambda v: jnp.einsum("bmd,bm->bd", u, v), lambda v: jnp.einsum("bmd,bd->bm", u, v)
        )  # fmt: skip
        found = [truncated_factor(*products(m), 30, scale, 4) for m in (few, falling)]
        return [f.mT @ f for f in found]

    exact, part = squares()
    np.testing.assert_allclose(exact, few.mT @ few, rtol=1e-9, atol=1e-9)
    assert np.all(np.linalg.eigvalsh(falling.mT @ falling - part) > -1e-9)
    kept = np.trace(part * scale[:, None] * scale[:, :, None], axis1=-2, axis2=-1)
    assert np.all(kept > 0.98 * np.sum(0.25 ** np.arange(4)))


# Other likelihoods.


@ppl.model
def mixed(x, k, b, c):
    """A site that moves a categorical, a Bernoulli and a Poisson observation, a normal scale, and a masked cell."""
    with ppl.plate("rows", x.shape[0]):
        w = ppl.sample("w", dist.Normal(ppl.param("m", jnp.zeros(3)), 1.0).to_event(1))
        ppl.sample("k", dist.Categorical(logits=w * x), obs=k)
        ppl.sample("b", dist.Bernoulli(logits=w[:, 0] * x[:, 1]), obs=b)
        ppl.sample("c", dist.Poisson(jnp.exp(w @ jnp.array([0.3, -0.2, 0.1]))), obs=c)


MIXED = (
    np.random.default_rng(2).normal(size=(2, 3)), np.array([0, 2]), np.array([1, 0]), np.array([2, 0])
)  # fmt: skip


@pytest.mark.slow
def test_gauss_newton_is_the_hessian_for_canonical_observations():
    @jax.jit
    def numbers(w):
        local = read(mixed, "w", {}, MIXED, None, lambda tree: tree)
        slope, factor, _ = local.observations.expanded(w, None, None)
        return factor.mT @ factor, local.hessian(w), slope, local.gradient(w)

    one, two, slope, exact = numbers(np.random.default_rng(3).normal(size=(2, 3)))
    np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(slope, exact, rtol=1e-9)


@ppl.model
def curves(x, y, k):
    """A vector that moves a normal mean and scale, a Student t and a vector of an episode's points, by broadcasting."""
    with ppl.plate("episodes", 2, dim=-2):
        w = ppl.sample("w", dist.Normal(0.0, 1.0).expand([36]).to_event(1))
        with ppl.plate("points", 4, dim=-1), numpyro.handlers.scale(scale=2.0):
            product = w * x
            seen = jnp.tanh(product.reshape(*product.shape[:-1], 3, 12).sum(-1))
            scale = jnp.exp(0.3 * seen[..., 1])
            ppl.sample("y", dist.Normal(seen.sum(-1), scale).mask(jnp.arange(4) < 3), obs=y)
            ppl.sample("t", dist.StudentT(3.0, seen[..., 0], 0.7), obs=0.5 * y)
            vector = dist.MultivariateNormal(seen, scale_tril=jnp.eye(3) + 0.1)
            ppl.sample("v", vector, obs=jnp.ones((2, 4, 3)))
            ppl.sample("k", dist.Categorical(logits=3 * seen), obs=k)


@pytest.mark.slow
@pytest.mark.parametrize("num", [2, 3])
def test_gauss_newton_is_the_hessian_of_observations_in_a_plate_around_the_rows(num):
    """Laws with an axis of their own that the plate repeats; of as many observations as rows no shape tells axes apart."""
    rng = np.random.default_rng(5)
    data, tril = (
        (rng.normal(size=(num, 3, 2)), rng.integers(2, size=(num, 3))),
        np.array([[0.5, 0], [0.3, 2]]),
    )

    @ppl.model
    def around(y, k):
        with ppl.plate("rows", 3):
            x = ppl.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            with ppl.plate("observations", num, dim=-2):
                ppl.sample("y", dist.MultivariateNormal(x, scale_tril=tril), obs=y)
                ppl.sample("k", dist.Categorical(logits=x), obs=k)

    @jax.jit
    def numbers(x):
        local = read(around, "x", {}, data, None, lambda tree: tree)
        slope, factor, _ = local.observations.expanded(x, None, None)
        return factor.mT @ factor, local.hessian(x), slope, local.gradient(x)

    one, two, slope, exact = numbers(rng.normal(size=(3, 2)))
    np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(slope, exact, rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 1e-4])
def test_low_rank_posteriors_keep_their_digits_where_data_are_exact(scale):
    """Single precision, one step from the prior's mean, of 1 / scale standard deviations; x is conjugate: the bound is tight."""

    @ppl.model
    def exact(y):
        with ppl.plate("rows", 2):
            x = ppl.sample("x", dist.Normal(0.0, 1.0))
            ppl.sample("y", dist.Normal(x, scale), obs=y)

    y, key = np.array([1.0, -2.0], np.float32), jax.random.key(0)
    with jax.enable_x64(False):
        guide = inference.local_laplace(
            exact, site="x", inner=Newton(1), curvature="low_rank_gauss_newton"
        )
        bound = inference.elbo(exact, guide)
        value = float(bound.value(bound.init(key, y), key, y))
    want = float(dist.Normal(0.0, (1 + scale**2) ** 0.5).log_prob(y).sum())
    assert abs(value - want) < 5e-3


def test_jacobian_by_observation_is_the_whole_one_and_part_of_it_is_less():
    """Four observations of three directions each in eight numbers: 32 rows; of 4 and 30, one and seven for each observation."""
    rng = np.random.default_rng(4)
    data = rng.normal(size=(2, 4, 36)), rng.normal(size=(2, 4)), rng.integers(3, size=(2, 4))

    @jax.jit
    def numbers(w):
        whole, apart = (
            read(curves, "w", {}, data, None, lambda tree: tree, jacobian)
            for jacobian in ("whole", "by_observation")
        )
        parts = [apart.observations.expanded(w, None, rank) for rank in (None, 4, 30)]
        found = [whole.observations.expanded(w, None, None), *parts]
        return [(slope, factor.mT @ factor) for slope, factor, _ in found], whole.gradient(w)

    found, exact = numbers(0.3 * rng.normal(size=(2, 1, 36)))
    slopes, (whole, apart, *parts) = zip(*found, strict=True)
    for slope in slopes:
        np.testing.assert_allclose(slope, exact, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(whole, apart, rtol=1e-9, atol=1e-12)
    for part, rank in zip(parts, (4, 12), strict=True):
        assert np.all(np.linalg.eigvalsh(whole - part) > -1e-9)
        assert np.all(np.linalg.matrix_rank(part, tol=1e-6) == rank)


@pytest.mark.slow
def test_the_slope_survives_probabilities_of_zero():
    """Single precision; labels of probability exp(-60): the whitened slope is huge, its product with the factor is not."""

    @ppl.model
    def sure(k):
        with ppl.plate("rows", 4):
            w = ppl.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
            ppl.sample("k", dist.Categorical(logits=w), obs=k)

    w = np.array([[60, 0, 0], [0, 0, 60], [0, 60, 59], [200, 0, 0]], np.float32)
    labels = np.array([1, 0, 0, 2])
    with jax.enable_x64(False):
        local = read(sure, "w", {}, (labels,), None, lambda tree: tree)
        slope, *_ = jax.jit(lambda w: local.observations.expanded(w, None, None))(w)
        np.testing.assert_allclose(slope, jax.nn.softmax(w) - np.eye(3)[labels], atol=1e-5)


@pytest.mark.slow  # compiles for long
def test_unrolled_gradient_is_the_derivative_of_the_value_and_frozen_expansions_are_not():
    """Common noise: central differences of one estimate. Not quadratic, one step: the expansion moves with m."""
    direction = jnp.array([0.3, -0.5, 0.2])

    def value(t, gradient):
        params = {"m": t * direction}
        guide = local_laplace(mixed, site="w", inner=Newton(1), gradient=gradient)
        return log_weight(mixed.bind(params), guide.bind(params), jax.random.key(1), *MIXED)

    @jax.jit
    def numbers():
        h = 1e-4
        slopes = [jax.grad(value)(0.1, g) for g in ("unrolled", "closed_form", "partial")]
        return (value(0.1 + h, "partial") - value(0.1 - h, "partial")) / (2 * h), jnp.stack(slopes)

    exact, slopes = numbers()
    np.testing.assert_allclose(slopes[0], exact, rtol=1e-6)
    assert np.all(np.abs(slopes[1:] - exact) > 1e-4 * np.abs(exact))


@pytest.mark.slow  # compiles for long
def test_unrolled_gradient_of_a_noise_scale_passes_through_the_gauss_newton_factor():
    def model(x, y):
        scale = jnp.exp(ppl.param("log_scale", 0.0))
        with ppl.plate("rows", 2):
            w = ppl.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
            mean = jnp.tanh(x * w)
            ppl.sample("y", dist.Normal(mean, scale * jnp.exp(0.1 * mean)).to_event(1), obs=y)

    guide = local_laplace(model, site="w", curvature="low_rank_gauss_newton", inner=Newton(1, 0.5))
    data = MIXED[0], np.array([[0.3, -0.2, 0.8], [1.0, 0.1, -0.6]])

    def value(log_scale):
        params = {"log_scale": log_scale}
        return log_weight(
            ppl.model(model).bind(params), guide.bind(params), jax.random.key(1), *data
        )

    @jax.jit
    def numbers():
        h = 1e-4
        return jax.grad(value)(-0.5), (value(-0.5 + h) - value(-0.5 - h)) / (2 * h)

    np.testing.assert_allclose(*numbers(), rtol=1e-6)


@pytest.mark.slow
def test_gauss_newton_iterations_reach_the_mode():
    @jax.jit
    def numbers():
        local = read(mixed, "w", {}, MIXED, None, lambda tree: tree)
        prior = NormalPrior(jnp.zeros((2, 3)), jnp.ones((2, 3)), None)

        def at(x):
            slope, factor, slopes = local.observations.expanded(x, None, None)
            return Potential(x, slope, factor=factor, slopes=slopes)

        problem = InnerProblem(prior, local.gradient, at)
        newton = Newton(20).run(problem, jax.random.key(0)).point
        adam = Descent(optax.sgd(0.3), 200).run(problem, jax.random.key(0)).point
        return problem.full_gradient(newton), newton - adam

    for zero in numbers():
        np.testing.assert_allclose(zero, 0, atol=1e-8)


# Random intercepts: every number of successes in 5, 20 and 100 trials.
TRIALS = np.repeat([5.0, 20.0, 100.0], [6, 21, 101])
SUCCESSES = np.concatenate([np.arange(n + 1.0) for n in (5, 20, 100)])


@ppl.model
def intercepts(width):
    with ppl.plate("rows", TRIALS.size):
        x = ppl.sample("x", dist.Normal(0.0, width))
        ppl.sample("k", dist.Binomial(TRIALS, logits=x), obs=SUCCESSES)


def test_default_site_is_the_laplace_approximation_of_the_logistic_posterior():
    """Mode, curvature and KL(q || p) of every row, under three prior widths, by quadrature; one step is further off."""
    grid = np.linspace(-20, 20, 4001)
    step = grid[1] - grid[0]

    @jax.jit
    def numbers(width):
        def densities(program):
            log_probs = lambda x: program.trace({"x": jnp.full(TRIALS.size, x)}, width).log_probs
            return sum(jax.vmap(log_probs)(grid).values())

        log_p = densities(intercepts)
        log_p = log_p - jax.nn.logsumexp(log_p, axis=0) - jnp.log(step)
        rows = []
        for options in ({}, {"inner": Newton(1)}):
            log_q = densities(local_laplace(intercepts, site="x", **options))
            q = step * jnp.exp(log_q)
            mean = (q * grid[:, None]).sum(0)
            variance = (q * grid[:, None] ** 2).sum(0) - mean**2
            rows.append((q.sum(0), mean, 1 / variance, (q * (log_q - log_p)).sum(0)))
        return rows

    for width in (0.5, 2.0, 5.0):
        (mass, mean, precision, kl), (*_, one_step) = numbers(width)
        p = 1 / (1 + np.exp(-mean))
        np.testing.assert_allclose(mass, 1, rtol=1e-10)
        np.testing.assert_allclose(TRIALS * p + mean / width**2, SUCCESSES, atol=1e-6)
        np.testing.assert_allclose(precision, TRIALS * p * (1 - p) + width**-2, rtol=1e-6)
        assert np.all(kl < one_step + 1e-8) and one_step.max() > 5 * kl.max()


def test_langevin_steps_have_the_stationary_variance_of_the_formula():
    """A = 0.5, 3, 20 at step 0.05: variance 1 / (a (1 - 0.05 a / 4)) from 100 chains of 2,000 draws after 1,000."""
    a = np.array([0.5, 3.0, 20.0])
    prior = NormalPrior(jnp.zeros((100, 3)), jnp.full((100, 3), 1e8), None)
    problem = InnerProblem(prior, lambda x: a * x, None)
    result = jax.jit(lambda key: SGLD(0.05, 3000, 1000).run(problem, key))(jax.random.key(0))
    # Second moments about the true mean, zero: a chain's own variance is too small where it mixes slowly.
    second = result.variance * (1999 / 2000) + result.point**2
    expected = 1 / (a * (1 - 0.05 * a / 4))
    np.testing.assert_allclose(expected, [2.0126, 0.34632, 0.066667], rtol=1e-4)
    assert_unbiased(second, expected)


@pytest.mark.slow  # compiles for long
def test_sampled_variance_and_clip_make_a_proper_guide():
    data = linear_data(4)
    for limit in (None, 0.3):
        guide = local_laplace(
            linear,
            site="theta",
            inner=SGLD(0.05, 60, 20),
            curvature=Curvature("sgld_variance", largest=limit),
        )
        one, two = (jax.jit(guide.simulate)(jax.random.key(k), *data) for k in (0, 1))
        assert np.isfinite(one.log_density) and one.choices["theta"].shape == (4, 1, 3)
        assert not np.allclose(one.choices["theta"], two.choices["theta"])


@pytest.mark.slow  # compiles a fit
def test_bounds_fits_and_plans_take_the_guide():
    """Point estimates of loc and scale by the evidence of linear episodes; a minibatch of rows, an infinite plate."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(64, 5, 3))
    y = (x * (np.array([1.0, -1.0, 0.0]) + 0.3 * rng.normal(size=(64, 1, 3)))).sum(
        -1
    ) + 0.7 * rng.normal(size=(64, 5))
    data = x, y, np.ones((64, 5), bool)
    guide = local_laplace(
        linear, site="theta", curvature="low_rank_gauss_newton", gradient="closed_form"
    )
    bound = inference.elbo(linear, guide, kl="analytic").with_plate_sizes({"episodes": np.inf})
    fit = inference.fit(
        bound, optax.adam(0.05), data, num_steps=200, key=jax.random.key(0), subsample={"episodes": 16},
        progress=False, average=0.97,
    )  # fmt: skip
    np.testing.assert_allclose(fit.params["loc"], [1.0, -1.0, 0.0], atol=0.15)
    assert bound.plan(fit.params, *data)["theta"].is_biased
    part = tuple(d[:3] for d in data)
    posterior = fit.posterior(jax.random.key(1), 3, args=part)
    # The weight of an exact posterior is the evidence, the same in every draw.
    assert posterior.choices["theta"].shape == (3, 3, 1, 3)
    np.testing.assert_allclose(posterior.log_weights, posterior.log_weights[0], rtol=1e-8)


@pytest.mark.slow  # 6,000 steps of a stochastic fit
def test_stochastic_fit_with_subsampled_episodes_reaches_the_fixed_point_of_coordinate_ascent():
    guide = local_laplace(slopes, slopes_guide, site="theta", parent="phi")
    bound = inference.elbo(slopes, guide, kl="analytic", num_replicates=8)
    fit = inference.fit(
        bound, optax.adam(optax.cosine_decay_schedule(0.02, 6000)), (X, Y), num_steps=6000, key=jax.random.key(0),
        subsample={"episodes": 2}, progress=False,
    )  # fmt: skip
    found = ppl.constrain(fit.params)
    np.testing.assert_allclose(found["loc"], M0, atol=0.02)
    # l0 and n0 hardly matter at the optimum (flat directions): what they imply does.
    np.testing.assert_allclose(found["V"] / found["n"], V0 / N0, rtol=0.03)
    np.testing.assert_allclose([found["l"], found["n"]], [L0, N0], rtol=0.15)


@pytest.mark.slow
def test_heavy_tails_of_a_parent_are_no_jumps():
    """Where its degrees of freedom are few, draws of the scale reach 1e60, and steps toward one of them would be leaps."""
    guide = local_laplace(slopes, slopes_guide, site="theta", parent="phi")
    bound = inference.elbo(slopes, guide, kl="analytic")
    assert np.isfinite(bound.value(bound.init(jax.random.key(0), X, Y), jax.random.key(0), X, Y))


@pytest.mark.slow  # compiles an objective in double precision
def test_gradient_of_the_full_bound_vanishes_at_the_fixed_point():
    """2,000 estimates of each derivative, |z| < 4.5."""
    guide = local_laplace(slopes, slopes_guide, site="theta", parent="phi")
    bound = inference.elbo(slopes, guide, kl="analytic", check_jumps=False)
    params = bound.init(jax.random.key(0), X, Y)
    params.update(free(M0, L0, V0, N0))
    estimate = jax.jit(jax.vmap(lambda key: bound.value_and_grad(params, key, X, Y)))
    value, grads = estimate(jax.random.split(jax.random.key(0), 2000))
    assert_unbiased(value, -10.965872396811013)
    for leaf in jax.tree.leaves(grads):
        assert_unbiased(leaf, 0.0)


# The three priors of a new row.


def site_law(guide, *args):
    laws = Laws()
    laws.watch(guide).simulate(jax.random.key(0), *args)
    return laws.found["theta"][0]


@pytest.mark.slow  # compiles three guides
def test_marginal_prior_is_student_t_and_its_site_is_nearest_to_the_exact_posterior():
    """Quadrature in one dimension: the posterior under the t density, whose divergences from the three sites are compared."""
    with jax.enable_x64(True):
        loc, df = 0.3, 3.0
        bound = free(loc, 1.0, 0.2, df)
        data = X, Y + 2.0 * X  # far from the population
        sites = {
            at: site_law(
                local_laplace(slopes, slopes_guide, site="theta", parent="phi", parent_at=at).bind(bound), *data
            )
            for at in ("expected", "mode", "marginal")
        }  # fmt: skip
        grid = np.linspace(-6, 9, 30_001)
        prior = pair(loc, 1.0, 0.2, df).predictive()
        log_p = np.asarray(prior.log_prob(grid))[:, None] - 2.0 * (
            (data[1] - data[0] * grid[:, None, None]) ** 2
        ).sum(-1)
        step = grid[1] - grid[0]
        log_p = log_p - np.log(np.exp(log_p).sum(0) * step)
        divergence = {}
        for at, law in sites.items():
            mean, variance = (np.asarray(x).reshape(-1) for x in (law.mean, law.variance))
            log_q = np.asarray(dist.Normal(mean, np.sqrt(variance)).log_prob(grid[:, None]))
            divergence[at] = (np.exp(log_q) * (log_q - log_p)).sum(0) * step
        assert np.all(divergence["marginal"] < 0.5 * divergence["expected"])
        assert np.all(divergence["expected"] < divergence["mode"])
        exact = (np.exp(log_p) * grid[:, None]).sum(0) * step
        np.testing.assert_allclose(np.ravel(sites["marginal"].mean), exact, atol=0.05)


def student_bound(df, tril, loc, x, y, mean, root):
    """What the site under a vector's t prior maximises, y = x theta + N(0, 1/4)."""
    d = loc.size
    distance = ((jnp.linalg.solve(tril, mean - loc)) ** 2).sum() + (
        jnp.linalg.solve(tril, root) ** 2
    ).sum()
    loss = 2.0 * (((y - x @ mean) ** 2).sum() + ((x @ root) ** 2).sum())
    return jnp.linalg.slogdet(root)[1] - loss - 0.5 * (df + d) * jnp.log1p(distance / df)


@pytest.mark.slow  # compiles for long
def test_marginal_site_of_a_vector_is_stationary():
    """A normal-inverse-Wishart parent, two coordinates; derivatives of the bound in mean and root of the covariance."""
    law = ppl.distributions.NormalInverseWishart(
        jnp.array([0.2, -0.4]), 1.5, jnp.array([[0.6, 0.0], [0.2, 0.5]]), 4.0
    )
    x, y = (
        np.random.default_rng(5).normal(size=(2, 4, 2)),
        np.random.default_rng(6).normal(size=(2, 4)) + 2,
    )

    @ppl.model
    def model(x, y):
        phi = ppl.sample("phi", law)
        with ppl.plate("episodes", 2, dim=-2):
            theta = ppl.sample("theta", ppl.distributions.NormalInverseWishart.conditional(phi))
            with ppl.plate("points", 4, dim=-1):
                ppl.sample("y", dist.Normal((theta * x).sum(-1), 0.5), obs=y)

    guide = local_laplace(
        model, lambda x, y: ppl.sample("phi", law), site="theta", parent="phi", parent_at="marginal"
    )
    site, prior = site_law(guide, x, y), law.predictive()
    for i in range(2):
        root = jnp.linalg.cholesky(site.covariance_matrix[i, 0])
        fixed = prior.df, prior.scale_tril, prior.loc, x[i], y[i]
        slopes = jax.grad(student_bound, (5, 6))(*fixed, site.mean[i, 0], root)
        for slope in slopes:
            np.testing.assert_allclose(jnp.tril(slope) if slope.ndim == 2 else slope, 0, atol=1e-6)


# What is refused.


def traced(guide):
    """The guide run abstractly: refusals come before any device work."""
    return jax.eval_shape(guide.simulate, jax.random.key(0), jnp.zeros(3))


def refused(model, match, guide=None, **options):
    with pytest.raises(ValueError, match=match):
        traced(local_laplace(model, guide, **({"site": "z"} | options)))


def rows(y, law=None, obs=lambda z: dist.Normal(z, 1.0), tie=False):
    with ppl.plate("rows", y.shape[0]):
        z = ppl.sample("z", dist.Normal(0.0, 1.0) if law is None else law)
        ppl.sample("y", obs(z), obs=y)
    if tie:
        ppl.factor("tie", -(z.sum() ** 2))


def test_models_that_do_not_fit_are_refused():
    refused(rows, r"no latent site 'w' in the model; its latent sites are \['z'\]", site="w")
    refused(lambda y: rows(y, dist.Gamma(1.0, 1.0)), "needs a normal prior .*law is Gamma")
    refused(
        lambda y: rows(y, dist.Normal(0.0, 1.0).mask(jnp.ones(3, bool))), "takes no masked site"
    )
    refused(lambda y: rows(y, tie=True), "'tie' depends on the local site 'z'.*ties them together")
    matrix = dist.Normal(jnp.zeros((2, 2)), 1.0).to_event(2)
    refused(
        lambda y: rows(y, matrix, lambda z: dist.Normal(z[:, 0, 0], 1.0)), r"shape \(2, 2\).*flat"
    )
    laplace = lambda z: dist.Laplace(z, 1.0)
    refused(
        lambda y: rows(y, obs=laplace),
        "Fisher information of .*not of Laplace",
        curvature="gauss_newton",
    )
    refused(rows, r"argument 'observations' is \['x'\].*\['y'\]", observations=["x"])
    t = lambda z: dist.StudentT(3.0, 0.0, jnp.exp(z))
    refused(lambda y: rows(y, obs=t), "takes as fixed", curvature="gauss_newton")

    def chain(y):
        ppl.scan(lambda c, y: (c, ppl.sample("z", dist.Normal(0.0, 1.0))), 0.0, y)

    refused(chain, "it stands in scan")

    def observed_in_scan(y):
        with ppl.plate("rows", 3):
            z = ppl.sample("z", dist.Normal(0.0, 1.0))
            step = lambda c, _: (c, ppl.sample("y", dist.Normal(z, 1.0), obs=y))
            ppl.scan(step, 0.0, None, length=2)

    refused(observed_in_scan, "not at hand inside scan", curvature="gauss_newton")
    assert traced(local_laplace(observed_in_scan, site="z"))

    def subsampled(y):
        with ppl.plate("rows", 3, subsample_size=2):
            ppl.sample("z", dist.Normal(0.0, 1.0))

    refused(subsampled, "Plate 'rows' subsamples 2 of 3 rows by itself")

    def two_plates(y):
        with ppl.plate("rows", 3, dim=-2):
            z = ppl.sample("z", dist.Normal(0.0, 1.0))
            for n in (4, 5):
                with ppl.plate(f"points_{n}", n, dim=-1):
                    ppl.sample(f"y_{n}", dist.Normal(z, 1.0), obs=jnp.zeros((3, n)))

    options = {"curvature": Curvature("gauss_newton", jacobian="by_observation")}
    refused(two_plates, r"but they have several: \{'y_4': \(3, 4\), 'y_5'", **options)


def test_sampled_variance_takes_independent_coordinates():
    with pytest.raises(ValueError, match="takes a prior of independent coordinates"):
        guide = local_laplace(
            linear_dense, site="theta", inner=SGLD(0.1, 4), curvature="sgld_variance"
        )
        jax.eval_shape(guide.simulate, jax.random.key(0), *linear_data())
    options = {"curvature": Curvature("low_rank_gauss_newton", 1), "gradient": "closed_form"}
    with pytest.raises(ValueError, match="rank=1 takes a prior of independent coordinates"):
        guide = local_laplace(linear_dense, site="theta", **options)
        jax.eval_shape(guide.simulate, jax.random.key(0), *linear_data())


def test_guides_and_parents_that_do_not_fit_are_refused():
    def model(y):
        phi = ppl.sample("phi", pair(0.0, 1.0, 1.0, 3.0))
        mean, scale = ppl.distributions.NormalInverseGamma.unpack(phi)
        rows(y, dist.Normal(mean, 2 * scale))

    guide = lambda y: ppl.sample("phi", pair(0.0, 1.0, 1.0, 3.0))
    refused(model, r"misses \['phi'\]")
    refused(
        model,
        "draws 'z' itself",
        guide=lambda y: (guide(y), ppl.sample("z", dist.Normal(0.0, 1.0).expand([3]))),
    )
    refused(
        model,
        r"'z': its law is not NormalInverseGamma.conditional\(phi\)",
        guide=guide,
        parent="phi",
    )
    refused(model, r"the parent 'psi' is not a latent site of the guide", guide=guide, parent="psi")
    normal = lambda y: ppl.sample("phi", dist.Normal(1.0, 1.0).expand([2]).to_event(1))
    refused(
        model,
        "'phi': a parent's law must have the expected natural parameters",
        guide=normal,
        parent="phi",
    )
    assert traced(local_laplace(model, guide, site="z"))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"curvature": "fisher"}, "curvature must be 'hessian', 'gauss_newton'"),
        ({"inner": "sgd"}, "inner must be of type Inner"),
        ({"gradient": "total"}, "gradient must be 'unrolled'"),
        ({"inner": SGLD(0.1, 5)}, "'sgld_variance' and SGLD go together"),
        ({"parent_at": "mode"}, "the last two need a parent; got 'mode'"),
        (
            {"curvature": Curvature("low_rank_gauss_newton", 3)},
            "directions tie.; got rank 3 with 'unrolled'",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_options_are_checked(options, match):
    with pytest.raises(ValueError, match=match):
        local_laplace(rows, site="z", **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kind": "fisher"}, "kind must be one of .'hessian', 'gauss_newton'"),
        ({"largest": 1.0}, "'hessian' is a matrix"),
        ({"jacobian": "rows"}, "jacobian must be 'whole' or 'by_observation', got 'rows'"),
        ({"rank": 3}, "rank is the positive rank of .*got 3 with 'hessian'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_curvatures_are_checked(options, match):
    with pytest.raises(ValueError, match=match):
        Curvature(**options)


def test_inner_programs_are_checked():
    with pytest.raises(ValueError, match="Newton: num_steps must be an integer >= 0, got -1"):
        Newton(-1)
    with pytest.raises(ValueError, match="damping is 0"):
        Newton(1, damping=0)
    with pytest.raises(ValueError, match="at least two draws"):
        SGLD(0.1, 3, burn_in=2)
    with pytest.raises(ValueError, match="an autoguide, which covers the local site"):
        from numpyro.infer.autoguide import AutoNormal

        local_laplace(rows, AutoNormal(rows), site="z")
    with pytest.raises(TypeError, match="no loss to expand"):
        local_laplace(ppl.marginal(rows, keep=["z"]), site="z")
