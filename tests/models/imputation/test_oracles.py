"""Imputation against exact answers: linear-Gaussian evidence, and values that hide themselves, by quadrature."""

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


@pytest.mark.parametrize("average", ["inner", "outer"])
def test_imputed_means_and_bands_are_those_of_the_conditional(key, average):
    """20,000 particles: the mean within 4.5 standard errors, quantiles of 90% bands within 0.05 of the conditional's sd."""
    found = imputation.impute(
        linear, rough, DATA, key, num_particles=20_000, num_imputations=2, average=average
    )
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


def test_observed_cells_keep_their_value(key):
    found = imputation.impute(linear, rough, DATA, key, num_particles=5)
    seen = DATA.observed
    np.testing.assert_allclose(found.mean[seen], DATA.values[seen], rtol=1e-6)
    np.testing.assert_allclose(found.crps(DATA.values)[seen], 0.0, atol=1e-6)


# 2 and 3. Values that hide themselves, P(miss | x) = sigmoid(a x + b): quadrature answers.

ONE = imputation.series(np.full((1, 1, 1), np.nan))
# (a, b): P(miss), E[x | miss], var[x | miss]
HIDDEN = {
    (2, 0): (0.5, 0.605706, 0.633121),
    (2, -2): (0.224800, 1.000000, 0.591834),
    (5, 0): (0.5, 0.751449, 0.435325),
}
PAIR = {
    0.0: (0.5, 0.279740, 0.0),
    1.0: (0.779731, 0.929239, 0.8),
}  # x1: P(miss), E, answer at random


def self_masked(law, a, b):
    @ppl.model
    def model(data):
        with ppl.plate("rows", len(data.values)):
            ppl.deterministic("x_loc", law.mean * jnp.ones(data.values.shape))
            shape = data.values.shape[: 3 - law.event_dim]
            rows = law.expand(shape).to_event(2 - law.event_dim)
            x = ppl.sample("x", rows, obs=data.values, obs_mask=data.observed)
            hidden = dist.Bernoulli(logits=-(a * x[..., -1:] + b)).to_event(2)
            ppl.sample("s", hidden, obs=data.observed[..., -1:] * 1.0)

    return model


@ppl.model
def nothing(data):
    """A guide of a model without latent sites but its missing cells."""


def weighted_mean(found, index=(0, 0, 0)):
    """Mean of a cell and its standard error, from self-normalised weights."""
    x, w = found.x[:, :, *index].ravel(), found.weights[:, :, index[0]].ravel()
    mean = float((w * x).sum())
    return mean, np.sqrt((w**2 * (x - mean) ** 2).sum()), float((w * (x - mean) ** 2).sum())


def quadrature(a, b):
    x = np.linspace(-9, 9, 20_001)
    density = stats.norm.pdf(x) * expit(a * x + b)
    total = np.trapezoid(density, x)
    mean = np.trapezoid(x * density, x) / total
    return total, mean, np.trapezoid(x**2 * density, x) / total - mean**2


@pytest.mark.parametrize("a, b", HIDDEN)
def test_a_value_that_hides_itself_is_imputed_as_quadrature_says(key, a, b):
    """100,000 draws: P(miss), mean and variance within 4.5 standard errors (about 0.01); under MAR the answer would be 0."""
    np.testing.assert_allclose(quadrature(a, b), HIDDEN[a, b], atol=1e-6)
    model = self_masked(dist.Normal(0.0, 1.0), a, b)
    found = imputation.impute(model, nothing, ONE, key, num_particles=100, num_imputations=1000)
    probability, mean, variance = HIDDEN[a, b]
    assert_unbiased(np.exp(found.log_weights.ravel().astype(float)), probability)
    estimate, error, spread = weighted_mean(found)
    assert abs(estimate - mean) < 4.5 * error < 0.02
    assert abs(spread - variance) < 0.02
    assert found.mean[0, 0, 0] == pytest.approx(estimate, abs=1e-6)
    at_random = imputation.impute(
        ppl.block(model, ["s"]), nothing, ONE, key, num_particles=100, num_imputations=1000
    )
    assert at_random.mean[0, 0, 0] == 0.0
    assert abs(weighted_mean(at_random)[0]) < 4.5 / np.sqrt(100_000)


@pytest.mark.parametrize("first", PAIR)
def test_a_hidden_partner_is_imputed_as_quadrature_says(key, first):
    """Correlation 0.8, the second value hides itself: the exact conditional, weighted by p(s | x)."""
    probability, mean, at_random = PAIR[first]
    law = dist.MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.8], [0.8, 1.0]]))
    data = imputation.series(np.array([[[first, np.nan]]]))
    found = imputation.impute(
        self_masked(law, 2, 0), nothing, data, key, num_particles=100, num_imputations=1000
    )
    ratio = np.exp(found.log_weights.ravel().astype(float) - stats.norm.logpdf(first))
    assert_unbiased(ratio, probability)
    estimate, error, _ = weighted_mean(found, (0, 0, 1))
    assert abs(estimate - mean) < 4.5 * error < 0.02
    plain, error, _ = weighted_mean(
        imputation.impute(
            ppl.block(self_masked(law, 2, 0), ["s"]),
            nothing,
            data,
            key,
            num_particles=100,
            num_imputations=1000,
        ),
        (0, 0, 1),
    )
    assert abs(plain - at_random) < 4.5 * error


def test_the_weighted_location_would_be_wrong_for_values_that_hide_themselves(key):
    """The released not-MIWAE imputes sum_k w_k mu(z_k); here that is 0, and the truth 0.606."""
    model = self_masked(dist.Normal(0.0, 1.0), 2, 0)
    found = imputation.impute(model, nothing, ONE, key, num_particles=100, num_imputations=100)
    assert (found.weights.sum(1)[..., None, None] * found.x_loc).sum() == 0.0
    assert found.mean[0, 0, 0] > 0.5
