"""Imputation against exact answers: linear-Gaussian evidence, and values that hide themselves, by quadrature."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats
from scipy.special import expit

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.models import imputation
from lapilli.models.imputation._hidden_law import hidden_law

W = np.array([[1.0, -0.5], [0.3, 0.8], [0.0, 1.1], [-0.7, 0.2]])
NOISE = 0.6
X = np.array([[[0.5, np.nan, -1.0, np.nan]], [[np.nan, 0.4, np.nan, 1.3]]])
DATA = imputation.series(X)


# 1. A linear decoder with Gaussian noise.


@ppl.model
def linear(data):
    with ppl.plate("rows", 2):
        z = ppl.sample("z", dist.Normal(0, 1).expand([2, 2]).to_event(1))
        loc = ppl.deterministic("x_loc", (z @ W.T)[:, None])
        law = dist.Normal(loc, NOISE).to_event(2)
        ppl.sample("x", law, obs=data.values, obs_mask=data.observed)


def posterior(row):
    """Mean and covariance of z given the seen cells of a row."""
    seen = DATA.observed[row, 0]
    w = W[seen]
    covariance = np.linalg.inv(np.eye(2) + w.T @ w / NOISE**2)
    return covariance @ w.T @ DATA.values[row, 0][seen] / NOISE**2, covariance


@ppl.model
def rough(data):
    with ppl.plate("rows", 2):
        ppl.sample("z", dist.Normal(0.2, 0.9).expand([2, 2]).to_event(1))


@ppl.model
def perfect(data):
    loc, covariance = (jnp.stack(x) for x in zip(*map(posterior, range(2)), strict=True))
    with ppl.plate("rows", 2):
        ppl.sample("z", dist.MultivariateNormal(loc, covariance))


def log_evidence(row):
    seen = DATA.observed[row, 0]
    covariance = W[seen] @ W[seen].T + NOISE**2 * np.eye(seen.sum())
    return stats.multivariate_normal(np.zeros(seen.sum()), covariance).logpdf(
        DATA.values[row, 0][seen]
    )


@pytest.mark.slow
def test_bounds_rise_with_the_particles_to_the_exact_evidence(key):
    """L_1 < L_5 < L_50 <= log p(x_o), and the gap closes."""
    found = []
    for num_particles in (1, 5, 50):
        bound = inference.iwelbo(
            linear, rough, num_particles=num_particles, per="rows", check_jumps=False
        )
        run = jax.jit(jax.vmap(lambda k, b=bound: b.value({}, k, DATA)))
        values = np.asarray(run(jax.random.split(key, 3000)), float)
        found.append((values.mean(), values.std() / np.sqrt(3000)))
    exact = sum(map(log_evidence, range(2)))
    assert found[0][0] < found[1][0] - 10 * found[0][1]
    assert found[1][0] < found[2][0] - 10 * found[1][1]
    assert found[2][0] < exact + 4.5 * found[2][1]
    assert exact - found[2][0] < 0.15


def test_with_the_exact_posterior_all_weights_are_equal(key):
    found = imputation.impute(linear, perfect, DATA, key, num_particles=30, num_imputations=2)
    np.testing.assert_allclose(found.ess, 60.0, rtol=1e-4)
    exact = np.broadcast_to([log_evidence(0), log_evidence(1)], (30, 2, 2))
    np.testing.assert_allclose(found.log_weights, exact, atol=2e-4)


@pytest.mark.parametrize("average", ["inner", pytest.param("outer", marks=pytest.mark.slow)])
def test_imputed_means_and_bands_are_those_of_the_conditional(key, average):
    """20,000 particles: the mean within 4.5 standard errors, quantiles of 90% bands within 0.05 of the conditional's sd."""
    found = imputation.impute(linear, rough, DATA, key, num_particles=20_000, num_imputations=2)
    found = dataclasses.replace(found, average=average)
    seen = DATA.observed
    np.testing.assert_allclose(found.mean[seen], DATA.values[seen], rtol=1e-5)
    np.testing.assert_allclose(found.crps(DATA.values)[seen], 0.0, atol=1e-5)
    for row in range(2):
        hidden = ~DATA.observed[row, 0]
        mean, covariance = posterior(row)
        sd = np.sqrt(np.diag(W @ covariance @ W.T) + NOISE**2)[hidden]
        error = found.mean[row, 0][hidden] - (W @ mean)[hidden]
        assert np.all(np.abs(error) < 4.5 * sd / np.sqrt(found.ess[row]))
        bands = found.quantiles([0.05, 0.95])[:, row, 0][:, hidden]
        expected = (W @ mean)[hidden] + stats.norm.ppf([[0.05], [0.95]]) * sd
        np.testing.assert_allclose(bands, expected, atol=0.05 * sd.max())
        crps = found.crps(np.zeros(X.shape))[row, 0][hidden]
        u = -(W @ mean)[hidden] / sd
        exact = sd * (u * (2 * stats.norm.cdf(u) - 1) + 2 * stats.norm.pdf(u) - 1 / np.sqrt(np.pi))
        np.testing.assert_allclose(crps, exact, rtol=0.05)


# 2 and 3. Values that hide themselves, P(miss | x) = sigmoid(a x + b): quadrature answers, one row each.

A, B = np.array([2.0, 2.0, 5.0]), np.array([0.0, -2.0, 0.0])
PROBABILITY = np.array([0.5, 0.224800, 0.5])
MEAN = np.array([0.605706, 1.000000, 0.751449])
VARIANCE = np.array([0.633121, 0.591834, 0.435325])
# A pair of correlation 0.8, the first seen, the second hidden with a = 2, b = 0.
FIRST = np.array([0.0, 1.0])
PAIR_PROBABILITY = np.array([0.5, 0.779731])
PAIR_MEAN = np.array([0.279740, 0.929239])
PAIR_AT_RANDOM = 0.8 * FIRST
SIZES = {"num_particles": 100, "num_imputations": 1000}


def self_masked(law, a, b, draws_hidden=False):
    """`draws_hidden`: from about p(x | miss) in place of p(x), as `imputation.programs` does."""

    @ppl.model
    def model(data):
        with ppl.plate("rows", len(data.values)):
            ppl.deterministic("x_loc", law.mean * jnp.ones(data.values.shape))
            shape = data.values.shape[: 3 - law.event_dim]
            rows = law.expand(shape).to_event(2 - law.event_dim)
            if draws_hidden:
                known = dist.Normal(*(jnp.full(shape, v) for v in (law.loc, law.scale)))
                moved = hidden_law(known, a[:, None, None], b[:, None, None], ~data.observed)
                x = ppl.sample("x", moved.to_event(2), obs=data.values, obs_mask=data.observed)
                ppl.factor("x_weight", (known.log_prob(x) - moved.log_prob(x)).sum((-1, -2)))
            else:
                x = ppl.sample("x", rows, obs=data.values, obs_mask=data.observed)
            logits = -(a[:, None, None] * x[..., -1:] + b[:, None, None])
            ppl.sample(
                "s", dist.Bernoulli(logits=logits).to_event(2), obs=data.observed[..., -1:] * 1.0
            )

    return model


@ppl.model
def nothing(data):
    """A guide of a model without latent sites but its missing cells."""


@functools.cache
def hidden_values(key_data, knows_mask):
    """Imputations of three single values, and of two pairs."""
    keys = jax.random.split(jax.random.wrap_key_data(jnp.array(key_data, jnp.uint32)))
    pair = dist.MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.8], [0.8, 1.0]]))
    single, pairs = self_masked(dist.Normal(0.0, 1.0), A, B), self_masked(pair, A[:2], B[[0, 0]])
    if not knows_mask:
        single, pairs = ppl.block(single, ["s"]), ppl.block(pairs, ["s"])
    holes = imputation.series(np.full((3, 1, 1), np.nan))
    halves = imputation.series(np.stack([FIRST, FIRST * np.nan], -1)[:, None])
    return [
        imputation.impute(model, nothing, data, key, **SIZES)
        for model, data, key in zip((single, pairs), (holes, halves), keys, strict=True)
    ]


def moments(found):
    """Mean of the last cell of each row, its standard error from self-normalised weights, and variance."""
    x, w = found.x[:, :, :, 0, -1].reshape(100_000, -1), found.weights.reshape(100_000, -1)
    mean = (w * x).sum(0)
    return mean, np.sqrt((w**2 * (x - mean) ** 2).sum(0)), (w * (x - mean) ** 2).sum(0)


def imputed(key, knows_mask=True):
    return hidden_values(tuple(np.asarray(jax.random.key_data(key)).tolist()), knows_mask)


def test_the_quadrature_values():
    x = np.linspace(-9, 9, 20_001)[:, None]
    density = stats.norm.pdf(x) * expit(A * x + B)
    total = np.trapezoid(density, x, axis=0)
    mean = np.trapezoid(x * density, x, axis=0) / total
    np.testing.assert_allclose(total, PROBABILITY, atol=1e-6)
    np.testing.assert_allclose(mean, MEAN, atol=1e-6)
    variance = np.trapezoid(x**2 * density, x, axis=0) / total - mean**2
    np.testing.assert_allclose(variance, VARIANCE, atol=1e-6)


@pytest.mark.slow
def test_values_that_hide_themselves_are_imputed_as_quadrature_says(key):
    """100,000 draws: P(miss), means and variances within 4.5 standard errors (about 0.01); at random the answer would be 0."""
    found, _ = imputed(key)
    weights = np.exp(found.log_weights.reshape(100_000, 3).astype(float))
    assert_unbiased(weights, PROBABILITY)
    mean, error, variance = moments(found)
    assert np.all(np.abs(mean - MEAN) < 4.5 * error) and np.all(error < 0.005)
    np.testing.assert_allclose(variance, VARIANCE, atol=0.02)
    np.testing.assert_allclose(found.mean[:, 0, 0], mean, atol=1e-6)


@pytest.mark.slow
def test_draws_of_hidden_values_are_weighted_to_what_quadrature_says(key):
    """The same answers from 2,000 draws of `hidden_law`, all but equal in weight where the logistic function is not steep."""
    holes = imputation.series(np.full((3, 1, 1), np.nan))
    model = self_masked(dist.Normal(0.0, 1.0), A, B, draws_hidden=True)
    found = imputation.impute(model, nothing, holes, key, num_particles=2000, num_imputations=1)
    weights = np.exp(found.log_weights.reshape(2000, 3).astype(float))
    assert_unbiased(weights, PROBABILITY)
    x, w = found.x.reshape(2000, 3), found.weights.reshape(2000, 3)
    error = np.sqrt((w**2 * (x - found.mean[:, 0, 0]) ** 2).sum(0))
    assert np.all(np.abs(found.mean[:, 0, 0] - MEAN) < 4.5 * error) and np.all(error < 0.03)
    assert np.all(found.ess > np.array([0.9, 0.9, 0.6]) * 2000)


@pytest.mark.fast("t")
@pytest.mark.parametrize(
    "law", [dist.Normal(0.3, 0.7), dist.StudentT(5.0, 0.3, 0.7)], ids=["normal", "t"]
)
def test_the_law_of_hidden_values_moves_missing_cells_only(law):
    """Near their moments by quadrature; where nothing depends on the value, and in other cells, it is p(x)."""
    cells = jnp.array([[True, False]])
    flat = type(law)(*(jnp.full((1, 2), v) for v in law.get_args().values()))
    moved = hidden_law(flat, jnp.full(2, 1.5), jnp.array([-0.5, 0.0]), cells)
    assert moved.loc[0, 1] == flat.loc[0, 1] and moved.scale[0, 1] == flat.scale[0, 1]
    same = hidden_law(flat, jnp.zeros(2), jnp.ones(2), jnp.ones((1, 2), bool))
    np.testing.assert_array_equal(same.loc, flat.loc)
    np.testing.assert_array_equal(same.scale, flat.scale)
    x = np.linspace(-6, 6, 20_001)
    density = stats.norm.pdf(x, 0.3, 0.7) * expit(1.5 * x - 0.5)
    mean = np.trapezoid(x * density, x) / np.trapezoid(density, x)
    spread = np.sqrt(np.trapezoid((x - mean) ** 2 * density, x) / np.trapezoid(density, x))
    assert abs(moved.loc[0, 0] - mean) < 0.02 and abs(moved.scale[0, 0] - spread) < 0.02


@pytest.mark.slow
def test_hidden_partners_are_imputed_as_quadrature_says(key):
    """The exact conditional of the second value given the first, weighted by p(s | x)."""
    _, found = imputed(key)
    ratio = found.log_weights.reshape(100_000, 2).astype(float) - stats.norm.logpdf(FIRST)
    assert_unbiased(np.exp(ratio), PAIR_PROBABILITY)
    mean, error, _ = moments(found)
    assert np.all(np.abs(mean - PAIR_MEAN) < 4.5 * error) and np.all(error < 0.005)


@pytest.mark.slow
def test_without_the_mask_the_answer_is_that_of_missing_at_random(key):
    """MIWAE gives 0, and 0.8 x1."""
    single, pairs = imputed(key, knows_mask=False)
    np.testing.assert_array_equal(single.mean, 0.0)
    for found, exact in ((single, 0.0), (pairs, PAIR_AT_RANDOM)):
        mean, error, _ = moments(found)
        assert np.all(np.abs(mean - exact) < 4.5 * error)


@pytest.mark.slow
def test_the_weighted_location_would_be_wrong_for_values_that_hide_themselves(key):
    """The released not-MIWAE imputes sum_k w_k mu(z_k); here that is 0."""
    found, _ = imputed(key)
    assert not np.einsum("kn,kntd->ntd", found.weights.sum(1), found.x_loc).any()
    assert np.all(found.mean > 0.5)
