"""The bound: closed forms, quadrature, the likelihood of the flow; its gradient; what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

from _stats import assert_unbiased
from lapilli import inference
from lapilli.models import diffusion

EDM, VP = diffusion.EDM(), diffusion.VP()
NORMAL = diffusion.gaussian_mixture(EDM, [1.0], [[0.0]], 1.0)
POINTS = np.array([0.0, 0.5, -1.0, 2.5])


def integral(v, x):
    """An antiderivative of 1/2 E|eps - eps^|^2 / v for data Normal(0, 1) and alpha = 1."""
    return 0.5 * (np.log(v / (1 + v)) + (1 - x**2) / (1 + v))


def exact(x, first, last):
    """The bound for data Normal(0, 1) between the variances first and last."""
    near = -0.5 * np.log(2 * np.pi * np.e * first)
    return near - x**2 / (2 * last) - integral(last, x) + integral(first, x)


def test_the_closed_form_tends_to_the_density():
    np.testing.assert_allclose(
        exact(POINTS, 1e-8, 1e8), dist.Normal(0.0, 1.0).log_prob(POINTS), atol=1e-5
    )


@pytest.mark.parametrize("importance", [None, [0.5, 1.0, 1.0, 0.2]], ids=["even", "importance"])
def test_the_bound_is_unbiased_point_by_point(importance, key):
    """Each of 2,000 estimates has sd 0.02 to 0.6 nats: a bias of 0.1 nats is over 7 standard errors."""
    one = jax.jit(
        lambda k: diffusion.bound(NORMAL, POINTS[:, None], k, num_times=20, importance=importance)
    )
    found = jax.vmap(one)(jax.random.split(key, 2000))
    assert_unbiased(found, exact(POINTS, 0.002**2, 80.0**2))


@pytest.mark.slow
def test_the_weights_matter(key):
    """Without them the mean error is no bound: the same errors, averaged over even times, are off by nats."""
    _, errors = diffusion.denoising_errors(NORMAL, POINTS[:, None], key, num_times=400)
    assert errors.shape == (4, 400)
    unweighted = -0.5 * errors.mean(-1)
    assert np.abs(unweighted - dist.Normal(0.0, 1.0).log_prob(POINTS)).min() > 0.4


def mixture_bound(noising, at):
    """The right side for a mixture on the line by quadrature, double precision, and its log density."""
    weights, means, variance = np.array([0.3, 0.7]), np.array([-1.5, 1.0]), 0.2
    nodes, probs = np.polynomial.hermite_e.hermegauss(80)
    probs = probs / probs.sum()
    log_probs = lambda x: np.log(weights) - 0.5 * (x[..., None] - means) ** 2 / variance
    exact = np.logaddexp.reduce(log_probs(POINTS), -1) - 0.5 * np.log(2 * np.pi * variance)
    gamma = lambda t: float(jnp.log(noising.variance(t)) - 2 * noising.log_alpha(t))
    low, high = gamma(at), gamma(noising.end)
    edges = np.linspace(low, high, 4001)
    sigma = np.exp(0.25 * (edges[1:] + edges[:-1]))[:, None, None]  # of x_t / alpha_t
    y = POINTS[:, None] + sigma * nodes
    wide = variance + sigma[..., None] ** 2
    logits = np.log(weights) - 0.5 * (y[..., None] - means) ** 2 / wide
    shares = np.exp(logits - np.logaddexp.reduce(logits, -1, keepdims=True))
    data = (shares * (means + variance / wide * (y[..., None] - means))).sum(-1)
    errors = (((POINTS[:, None] - data) / sigma) ** 2 * probs).sum(-1)
    loss = 0.5 * (high - low) * errors.mean(0)
    return -loss - 0.5 * np.log(2 * np.pi * np.e) - 0.5 * low - 0.5 * np.exp(
        -high
    ) * POINTS**2, exact


@pytest.mark.slow_for("EDM")
@pytest.mark.parametrize("noising", [VP, EDM], ids=["VP", "EDM"])
def test_a_mixtures_bound_is_its_density(noising, key):
    """Within 0.02 nats with the noise ending at 1e-4, by quadrature, of which the estimate is unbiased."""
    bound, density = mixture_bound(noising, 1e-4)
    np.testing.assert_allclose(bound, density, atol=0.02)
    model = diffusion.gaussian_mixture(noising, [0.3, 0.7], [[-1.5], [1.0]], 0.2)
    one = lambda k: diffusion.bound(model, POINTS[:, None], k, num_times=100, at=1e-4)
    assert_unbiased(jax.jit(jax.vmap(one))(jax.random.split(key, 400)), bound)


@pytest.mark.slow  # three grids are compiled
def test_the_chains_bound_tends_to_that_of_continuous_time(key):
    """80 steps lose less than half of what 40 lose; 10 are exact for data of the chain's own variance, but for their ends."""

    def gaps(num_steps, data_variance):
        times = EDM.log_snr_times(num_steps)
        one = lambda k: diffusion.bound(
            NORMAL, POINTS[:, None], k, times=times, data_variance=data_variance
        )
        found = jax.jit(jax.vmap(one))(jax.random.split(key, 80_000 // num_steps)).mean(0)
        return exact(POINTS, 0.002**2, 80.0**2) - found

    few, more = gaps(40, 0.0), gaps(80, 0.0)
    assert np.all(more < 0.5 * few) and np.all(more > 0), (few, more)
    assert np.abs(gaps(10, jnp.ones(1))).mean() < 0.02
    some = diffusion.bound(NORMAL, POINTS[:, None], key, times=EDM.log_snr_times(10), num_times=7)
    assert some.shape == (4,)


PROCESSES = {
    "VP": VP,
    "constant rate": diffusion.VP(10.05, 10.05),
    "Cosine": diffusion.Cosine(),
}


@pytest.mark.slow_for("VP", "Cosine")
@pytest.mark.parametrize("name", PROCESSES)
def test_the_bound_sees_the_ends_of_a_process_and_not_its_inside(name, key):
    """By the closed form of another process, in which only variance / alpha^2 at both ends occurs."""
    noising, at = PROCESSES[name], 0.01
    first, last = (float(noising.variance(t) / noising.alpha(t) ** 2) for t in (at, noising.end))
    model = diffusion.gaussian_mixture(noising, [1.0], [[0.0]], 1.0)
    one = lambda k: diffusion.bound(model, POINTS[:, None], k, num_times=20, at=at)
    found = jax.jit(jax.vmap(one))(jax.random.split(key, 2000))
    assert_unbiased(found, exact(POINTS, first, last))


def chains_bound(rate, x, times):
    """Of the chain under VP(0.1, rate) and the score -x / (1 + t): divergences of its normal laws, in double precision."""
    log_alpha = -0.05 * times - 0.25 * (rate - 0.1) * times**2
    alpha, var = np.exp(log_alpha), -np.expm1(2 * log_alpha)
    total = -((alpha[0] * x) ** 2) / (2 * var[0])
    for n, k in enumerate(1 / (1 + times[:-1])):
        ratio = (alpha[n] / alpha[n + 1]) ** 2 * var[n + 1] / var[n]
        narrow, slope = var[n + 1] * (1 - ratio), alpha[n + 1] * (1 - ratio)
        wide = narrow + slope**2 * var[n]  # alpha^2 + var = 1
        left = 1 - var[n] * k  # of x_t in the denoised point, times alpha
        error = (x * var[n] * k) ** 2 + var[n] * left**2 / alpha[n] ** 2
        total -= 0.5 * (narrow / wide + slope**2 * error / wide - 1 - np.log(narrow / wide))
    return total - 0.5 * np.log(2 * np.pi * np.e * var[-1] / alpha[-1] ** 2)


@pytest.mark.parametrize("num_times", [None, pytest.param(3, marks=pytest.mark.slow)])
def test_a_schedule_is_learned_by_the_gradient_of_the_chains_bound(num_times, key):
    """In the rate of a VP process, against central differences of the closed form; a bias of 6% is 7 standard errors."""
    times, x, rate, h = np.linspace(1.0, 0.05, 9), 0.8, 4.0, 1e-4

    def bound(rate, key):
        score = lambda x, t: -x / (1 + t)
        model = inference.diffusion.Diffusion(diffusion.VP(0.1, rate), score, (1,))
        return diffusion.bound(model, jnp.array([x]), key, times=times, num_times=num_times)

    run = jax.jit(jax.vmap(jax.value_and_grad(bound), (None, 0)))
    value, slope = run(rate, jax.random.split(key, 20_000))
    assert_unbiased(value, chains_bound(rate, x, times))
    ends = [chains_bound(rate + sign * h, x, times) for sign in (-1, 1)]
    assert_unbiased(slope, (ends[1] - ends[0]) / (2 * h))


@pytest.mark.slow  # several derivatives are compiled
def test_gradients_pass_to_the_point_and_to_the_model(key):
    """Of the closed form: d bound / dx, and d bound / d variance at a model of another variance, against differences."""
    keys = jax.random.split(key, 400)

    def mean(x, variance):
        model = diffusion.gaussian_mixture(EDM, [1.0], jnp.zeros((1, 1)), variance)
        return jax.vmap(lambda k: diffusion.bound(model, x, k, num_times=50))(keys).mean()

    x, h = jnp.array([0.7]), 1e-2
    by_x, by_variance = jax.jit(jax.grad(mean, (0, 1)))(x, 1.5)
    wider = mean(x, 1.5 + h) - mean(x, 1.5 - h)
    np.testing.assert_allclose(by_variance, wider / (2 * h), rtol=0.02, atol=5e-3)
    by_hand = jax.jit(jax.grad(mean))(x, 1.0)
    np.testing.assert_allclose(by_hand, -x, atol=0.02)
    assert by_x.shape == (1,)


@pytest.mark.slow
def test_equal_keys_give_equal_noise(key):
    """A model and its copy differ by nothing, so that differences of models are those of their errors alone."""
    other = diffusion.gaussian_mixture(EDM, [0.5, 0.5], [[0.0], [0.0]], 1.0)
    one, two = (diffusion.bound(m, POINTS[:, None], key) for m in (NORMAL, other))
    np.testing.assert_allclose(one, two, atol=2e-4)


@pytest.mark.slow  # a network is trained, and its flow solved with exact divergences
def test_the_bound_of_learned_digits_lies_below_the_likelihood_of_their_flow(key):
    """Two processes of one score: the bound is at most the flow's likelihood + 0.1 nats, and not far below."""
    from sklearn.datasets import load_digits

    x = load_digits().data.astype(np.float32)
    x = (x - x.mean()) / x.std() + np.random.default_rng(0).normal(size=x.shape).astype(np.float32) * 0.3  # fmt: skip
    net = diffusion.MLP((64,), width=128, key=key)
    fit = inference.fit(
        diffusion.score_matching(net, VP), optax.adam(optax.cosine_decay_schedule(2e-3, 2000)), (x[200:], None),
        num_steps=2000, subsample={"rows": 128}, key=key, average=0.999, progress=False,
    )  # fmt: skip
    model = diffusion.from_network(net, VP, (64,), params=fit.params)
    held = jnp.asarray(x[:100])
    found = jax.jit(lambda k: diffusion.bound(model, held, k, num_times=200))
    values = np.stack([found(k) for k in jax.random.split(key, 10)]).mean(-1)
    flow = float(jax.jit(lambda x: diffusion.flow_log_likelihood(model, x))(held).mean())
    print(
        f"bound {values.mean():.2f} +- {values.std() / 10**0.5:.2f}, flow {flow:.2f} nats an image"
    )
    assert values.mean() < flow + 0.1 + 4.5 * values.std() / 10**0.5
    assert values.mean() > flow - 3


LEVELS = np.array([-1.0, 0.0, 1.0])
SHARES = np.array([0.2, 0.5, 0.3])
DISCRETE = diffusion.gaussian_mixture(VP, SHARES, LEVELS[:, None], 0.0)


def discrete_bounds(at, num_draws, key):
    """Estimates at each level, [draws, levels]."""
    one = lambda k: diffusion.bound(
        DISCRETE, jnp.asarray(LEVELS[:, None]), k, num_times=200, at=at, levels=LEVELS
    )
    return jax.jit(jax.vmap(one))(jax.random.split(key, num_draws))


def test_the_bound_of_levels_is_their_log_probability(key):
    """Of the exact score, with the noise ending where levels are 13 standard deviations apart: the bound is tight."""
    assert 12.5 < 1 / float(VP.std(0.02)) < 13.5
    found = discrete_bounds(0.02, 400, key)
    assert_unbiased(found, np.log(SHARES))


@pytest.mark.slow
def test_the_bound_of_levels_stays_below_where_the_last_step_guesses(key):
    """Two standard deviations apart, by quadrature: log(share) is missed by the divergence of the guess from the posterior."""
    at = 0.15
    alpha, std = float(VP.alpha(at)), float(VP.std(at))
    nodes, probs = np.polynomial.hermite_e.hermegauss(80)
    y = LEVELS[:, None] + std / alpha * nodes
    logits = -0.5 * ((y[..., None] - LEVELS) * alpha / std) ** 2
    posterior = logits + np.log(SHARES)
    gap = lambda l: np.diagonal(l - np.logaddexp.reduce(l, -1, keepdims=True), axis1=0, axis2=2)
    exact = np.log(SHARES) + (probs / probs.sum()) @ (gap(logits) - gap(posterior))
    assert np.all(np.abs(exact - np.log(SHARES)) > 0.01) and np.exp(exact).sum() < 1
    assert_unbiased(discrete_bounds(at, 400, key), exact)


@pytest.mark.slow
def test_the_chains_bound_of_levels_is_below_that_of_continuous_time(key):
    """By 0.23 nats on 48 steps, six standard errors of 400 estimates away from 0 and from 0.5."""
    times = np.asarray(VP.log_snr_times(60))
    times = np.append(times[times > 0.02], 0.02)
    one = lambda k: diffusion.bound(
        DISCRETE, jnp.asarray(LEVELS[:, None]), k, times=times, levels=LEVELS
    )
    found = jax.jit(jax.vmap(one))(jax.random.split(key, 400)).mean(0)
    assert np.all(found < np.log(SHARES)) and np.all(found > np.log(SHARES) - 0.5)


def test_what_is_no_level_is_refused(key):
    at_levels = lambda x, levels: diffusion.bound(DISCRETE, x, key, levels=levels)
    with pytest.raises(ValueError, match="1 of 2 coordinates of x lie at none of the 3 levels"):
        at_levels(jnp.array([[1.0], [0.5]]), LEVELS)
    for levels in ([1.0], [1.0, 1.0], [0.0, np.nan], [[0.0, 1.0]]):
        with pytest.raises(ValueError, match="levels must be two or more different numbers"):
            at_levels(jnp.zeros((1, 1)), levels)
    found = jax.jit(lambda x: at_levels(x, LEVELS))(jnp.array([[1.0], [0.5]]))
    assert np.isfinite(found[0]) and np.isnan(found[1])
