"""NIW-Meta: its density, exact sites, padding, gradient modes, measures."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from _few_shot import classification, mlp, regression, weights_of
from scipy import stats

from lapilli import inference, ppl
from lapilli.models import niw_meta


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.slow
def test_density_is_the_product_of_population_and_likelihoods():
    network, episodes = mlp(), regression(((3, 3), (2, 2)))
    model, _ = niw_meta.programs(network, niw_meta.GaussianNoise(0.3), prior_scale=0.2)
    start = weights_of(network)
    theta = start + 0.1 * np.random.default_rng(2).normal(size=(2, 1, start.size))
    expected = stats.norm.logpdf(theta, start, 0.2).sum()
    unravel = jax.flatten_util.ravel_pytree(eqx.filter(network, eqx.is_inexact_array))[1]
    for i in range(2):
        net = eqx.combine(unravel(theta[i, 0]), network)
        for points in episodes:
            expected += stats.norm.logpdf(points.y[i], jax.vmap(net)(points.x[i])[:, 0], 0.3).sum()
    found = jax.jit(model.log_density)({"theta": theta}, episodes)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.slow
def test_linear_layer_on_features_with_a_gaussian_head_is_ridge_regression():
    """The mean of the site is (Z'Z + rho)^-1 Z'y with rho = noise^2 / prior_scale^2, Z the features with a one."""
    features, episodes = mlp(num_outputs=5), regression(((4, 4), (2, 2)))
    zero = jax.tree.map(jnp.zeros_like, eqx.nn.Linear(5, 1, key=jax.random.key(0)))
    _, guide = niw_meta.programs(
        zero,
        niw_meta.GaussianNoise(0.3),
        features=features,
        prior_scale=0.7,
        inner=inference.local.Newton(1),
        curvature="gauss_newton",
    )
    draws = jax.jit(lambda key: niw_meta.adapt(guide, key, episodes, 2000))(jax.random.key(0))[
        "theta"
    ]
    for i in range(2):
        Z = np.column_stack([jax.vmap(features)(episodes.support.x[i]), np.ones(4)])
        A = Z.T @ Z + (0.3 / 0.7) ** 2 * np.eye(6)
        ridge = np.linalg.solve(A, Z.T @ episodes.support.y[i])
        error = np.sqrt(0.09 * np.diag(np.linalg.inv(A)) / 2000)
        assert np.all(np.abs(draws[:, i, 0].mean(0) - ridge) < 4.5 * error)


@pytest.mark.slow  # a fit at test time is compiled
@pytest.mark.parametrize("widths", ["weight", "layer"])
def test_variational_adaptation_finds_the_posterior_where_it_is_diagonal(widths):
    """One point for each of two weights; 4,000 draws, |z| < 4.5 but for a tenth of a deviation that the fit may err."""
    x, y = np.array([[[1.0, 0.0], [0.0, 2.0]]]), np.array([[0.8, -1.0]])
    points = niw_meta.Points(x, y, np.ones((1, 2), bool))
    episodes = niw_meta.Episodes(points, points)
    network = eqx.nn.Linear(2, 1, use_bias=False, key=jax.random.key(0))
    model, guide = niw_meta.programs(
        network, niw_meta.GaussianNoise(0.5), prior_scale=0.7, widths=widths
    )
    rate = optax.adam(optax.cosine_decay_schedule(0.05, 1500))
    draw = lambda model: niw_meta.adapt_by_vi(
        model, jax.random.key(0), episodes, 4000, optimizer=rate, num_steps=1500
    )
    with pytest.raises(ValueError, match=r"fitted parameters \[\], but the population's 'loc'"):
        draw(model)
    params = inference.elbo(model, guide, kl="analytic").init(jax.random.key(0), episodes)
    draws = draw(model.bind(params))["theta"][:, 0, 0]
    start = weights_of(network)
    variance = 1 / (1 / 0.49 + np.array([1.0, 4.0]) / 0.25)
    mean = variance * (start / 0.49 + np.array([1.0, 2.0]) * y[0] / 0.25)
    assert np.all(np.abs(draws.mean(0) - mean) < (0.1 + 4.5 / 4000**0.5) * variance**0.5)
    assert np.all(np.abs(draws.var(0) / variance - 1) < 0.2 + 4.5 * (2 / 4000) ** 0.5)


class TwoLayers(eqx.Module):
    """Two linear layers side by side, on two inputs each: exact sites."""

    first: eqx.nn.Linear
    second: eqx.nn.Linear

    def __init__(self):
        keys = jax.random.split(jax.random.key(0))
        self.first, self.second = (eqx.nn.Linear(2, 1, use_bias=False, key=key) for key in keys)

    def __call__(self, x):
        return self.first(x[:2]) + self.second(x[2:])


LOC, WIDTHS, NOISE = np.array([1.0, -1.0, 0.5, 2.0]), np.array([0.3, 1.5]), 0.2


def layered(num_episodes=200, num_points=6, has_query=False):
    """Episodes of `TwoLayers` with weights from Normal(LOC, WIDTHS by layer); the query is masked, or one point."""
    rng = np.random.default_rng(0)
    theta = LOC + np.repeat(WIDTHS, 2) * rng.normal(size=(num_episodes, 4))
    x = rng.normal(size=(num_episodes, num_points, 4))
    y = np.einsum("end,ed->en", x, theta) + NOISE * rng.normal(size=(num_episodes, num_points))
    part = lambda s, known: niw_meta.Points(x[:, s], y[:, s], np.full(y[:, s].shape, known))
    return niw_meta.Episodes(part(slice(0, 5), True), part(slice(5, 6), has_query))


def layered_bound(kl):
    programs = niw_meta.programs(
        TwoLayers(), niw_meta.GaussianNoise(NOISE), prior_scale=np.array([0.6, 0.7]), widths="layer",
        inner=inference.local.Newton(1),
    )  # fmt: skip
    return inference.elbo(*programs, kl=kl)


def test_layers_are_the_modules_that_hold_arrays():
    assert niw_meta.Weights(TwoLayers()).layer.tolist() == [0, 0, 1, 1]
    assert niw_meta.Weights(mlp()).layer.tolist() == [0] * 12 + [1] * 5  # weight and bias are one
    assert set(niw_meta.Weights(eqx.nn.Linear(2, 3, key=jax.random.key(0))).layer) == {0}


@pytest.mark.slow  # a Laplace site and its gradient are compiled
def test_gradient_of_a_layers_width_is_that_of_the_exact_evidence():
    """Of support alone, where log p - log q is the evidence in every draw."""
    episodes = layered(7)

    def evidence(params):
        x, y, _ = episodes.support
        width = jnp.exp(params["scale"])[jnp.array([0, 0, 1, 1])]
        covariance = (x * width**2) @ jnp.swapaxes(x, 1, 2) + NOISE**2 * jnp.eye(5)
        return dist.MultivariateNormal(x @ params["loc"], covariance).log_prob(y).sum()

    bound = layered_bound("sampled")
    params = bound.init(jax.random.key(0), episodes)
    np.testing.assert_allclose(np.exp(params["scale"]), [0.6, 0.7])
    found = jax.jit(bound.value_and_grad)(params, jax.random.key(1), episodes)
    value, slope = jax.value_and_grad(evidence)(params)
    np.testing.assert_allclose(found[0], value, rtol=1e-9)
    for name in params:
        np.testing.assert_allclose(found[1][name], slope[name], rtol=1e-8)


@pytest.mark.slow  # a fit
def test_known_widths_of_layers_are_recovered_at_the_rate_of_widths():
    """200 episodes, two weights a layer, well observed: standard errors of 1 / sqrt(800) on the log scale, 4.5 of them.

    At a low rate they stay near their start in as many steps. Queries count under draws that have not seen them: narrower.
    """
    bound = layered_bound("analytic")
    bound = bound.with_plate_sizes({"episodes": math.inf})

    def found(widths, has_query=False):
        fit = inference.fit(
            bound, niw_meta.optimizer(1000, weights=0.05, widths=widths), (layered(has_query=has_query),),
            num_steps=1000, subsample={"episodes": 50}, key=jax.random.key(0), progress=False,
        )  # fmt: skip
        return fit.params["loc"], np.exp(fit.params["scale"]) / WIDTHS

    loc, ratio = found(0.05)
    assert np.all(np.abs(np.log(ratio)) < 4.5 / 800**0.5)
    assert np.all(np.abs(loc - LOC) < 4.5 * np.repeat(WIDTHS, 2) / 200**0.5)
    assert np.all(np.abs(found(1e-4)[1] - 1) > 0.4)
    assert found(0.05, has_query=True)[1][0] < 0.9 * ratio[0]


def test_rates_go_by_what_a_parameter_is():
    """The first step of Adam is the rate, whatever the slope; what is named in no group is a weight."""
    groups = {"weights": ("loc", "features"), "head": ("head_log_scale",)}
    groups["widths"] = ("scale", "mean_precision", "concentration", "rate")
    rates = {"weights": 1e-3, "head": 0.02, "widths": 0.3}
    optimizer = niw_meta.optimizer(100, **rates)
    params = {name: {"a": jnp.ones(2)} for names in groups.values() for name in names}
    moves, _ = optimizer.update(params, optimizer.init(params))
    for group, names in groups.items():
        for name in names:
            np.testing.assert_allclose(moves[name]["a"], -rates[group], rtol=1e-6)


@pytest.mark.slow
def test_unequal_episodes_are_those_without_padding():
    network = mlp()
    model, guide = niw_meta.programs(network, niw_meta.GaussianNoise(0.3))
    episodes = regression(((3, 2), (4, 1)))
    wide = niw_meta.Episodes(*(
        niw_meta.Points(np.pad(p.x, [(0, 0), (0, 2), (0, 0)]), np.pad(p.y, [(0, 0), (0, 2)]), np.pad(p.mask, [(0, 0), (0, 2)]))
        for p in episodes
    ))  # fmt: skip
    theta = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, weights_of(network).size)))
    # Draws take one number per row of U, padding too: the laws are compared at the same weights.
    one, two = (
        jax.jit(lambda theta: [p.log_density({"theta": theta}, e) for p in (model, guide)])(theta)  # noqa: B023
        for e in (episodes, wide)
    )
    np.testing.assert_allclose(one, two, rtol=1e-10)


@pytest.mark.slow  # compiles for long
def test_finite_population_learns_a_law_of_phi_and_offers_three_priors():
    network, episodes = mlp(), regression()
    choices = {}
    for at in ("expected", "mode", "marginal"):
        model, guide = niw_meta.programs(
            network, niw_meta.GaussianNoise(0.3), population="finite", parent_at=at
        )
        trace = jax.jit(guide.simulate)(jax.random.key(0), episodes)
        assert np.isfinite(jax.jit(model.log_density)(trace.choices, episodes))
        choices[at] = trace.choices["theta"][:, 0] - weights_of(network)
    # concentration 5, rate 5 s^2, mean precision 10: expected variance s^2, mode s^2 5 / 6.5, Student t of scale s 1.1^0.5.
    mode, expected, marginal = (
        np.abs(choices[at]).mean() for at in ("mode", "expected", "marginal")
    )
    assert mode < expected < marginal


@pytest.mark.slow  # a Laplace site is compiled
def test_labels_may_be_vectors():
    """Two coordinates of one label are two labels of noise of their own: the ridge site of each column alone."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(1, 4, 2))
    y = rng.normal(size=(1, 4, 2))
    points = niw_meta.Points(x, y, np.ones((1, 4), bool))
    network = eqx.nn.Linear(2, 2, use_bias=False, key=jax.random.key(0))
    model, guide = niw_meta.programs(
        network,
        niw_meta.GaussianNoise(0.5, num_outputs=2),
        prior_scale=0.7,
        inner=inference.local.Newton(1),
    )
    start = weights_of(network).reshape(2, 2)
    trace = guide.simulate(jax.random.key(0), niw_meta.Episodes(points, points))
    precision = np.eye(2) / 0.7**2 + x[0].T @ x[0] / 0.5**2
    mean = np.linalg.solve(precision, start.T / 0.7**2 + x[0].T @ y[0] / 0.5**2).T
    theta = np.asarray(trace.choices["theta"]).reshape(2, 2)
    want = sum(
        stats.multivariate_normal(mean[k], np.linalg.inv(precision)).logpdf(theta[k])
        for k in range(2)
    )
    np.testing.assert_allclose(trace.log_density, want, rtol=1e-8)


@pytest.mark.slow  # compiles for long
def test_classification_episode_is_adapted_and_predicted():
    episodes = classification()
    model, guide = niw_meta.programs(mlp(num_outputs=3), niw_meta.Softmax(), prior_scale=0.5)

    @jax.jit
    def run(key):
        prediction = niw_meta.predict(model, niw_meta.adapt(guide, key, episodes, 5), episodes)
        return prediction.class_probs(), prediction.log_density()

    probs, log_density = run(jax.random.key(0))
    np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-6)
    seen = np.take_along_axis(np.asarray(probs), episodes.query.y[..., None], -1)[..., 0]
    np.testing.assert_allclose(
        log_density[episodes.query.mask], np.log(seen)[episodes.query.mask], rtol=1e-5
    )
    blind = episodes._replace(query=episodes.query._replace(y=None))
    draws = jax.jit(lambda key: niw_meta.adapt(guide, key, blind, 5))(jax.random.key(0))
    again = niw_meta.predict(model, draws, blind)
    np.testing.assert_allclose(again.class_probs(), probs, rtol=1e-6)


def test_queries_without_labels_are_predicted_and_not_scored():
    """By a program without latent sites: the nearest class mean of the support."""
    episodes = classification()
    parts = [(x[mask], None) for x, _, mask in zip(*episodes.query, strict=True)]
    blind = episodes._replace(query=niw_meta.pad_points(parts))
    assert blind.query.y is None and np.array_equal(blind.query.x, episodes.query.x)

    @ppl.model
    def model(episodes):
        support, query = episodes
        with ppl.plate("episodes", support.x.shape[0], dim=-2):
            niw_meta.observe("query", niw_meta.NearestCentroid(3), query.x, support.x, episodes)

    found, seen = (niw_meta.predict(model, {}, each) for each in (blind, episodes))
    np.testing.assert_array_equal(found.scores, seen.scores)
    assert found.log_prob is None and np.isfinite(seen.log_density()).all()
    with pytest.raises(ValueError, match="queries have no labels .* Predict episodes with labels"):
        found.log_density()
    head = niw_meta.GaussianNoise(1.0)
    for method in (
        lambda scores, points: niw_meta.with_fitted_noise(head, scores, points),
        niw_meta.fitted_temperature,
        lambda scores, points: niw_meta.regression_ece(head, scores, points),
    ):
        with pytest.raises(ValueError, match="the points have no labels"):
            method(found.scores, blind.query)
        nothing = episodes.query._replace(mask=np.zeros_like(episodes.query.mask))
        with pytest.raises(ValueError, match="no point counts, the mask of shape"):
            method(found.scores, nothing)
    for shift in (3, -3):
        wrong = episodes.query._replace(y=episodes.query.y + shift)
        with pytest.raises(ValueError, match="labels are no classes of 0 to 2"):
            niw_meta.fitted_temperature(found.scores, wrong)
    with pytest.raises(ValueError, match=r"2 episodes of \[1, 1\] points with \[0, 1\] labels"):
        niw_meta.pad_points([(np.zeros((1, 2)), None), (np.zeros((1, 2)), [0])])


def test_fitted_noise_is_the_most_probable_one():
    """One draw: the root mean square of what is left, padding apart. Draws around the labels explain a part of it."""
    rng = np.random.default_rng(5)
    y, scores = rng.normal(size=(4, 6)), np.zeros((1, 4, 6, 1))
    points = niw_meta.Points(None, y, np.arange(6) < np.array([[6], [3], [5], [6]]))
    fitted = niw_meta.with_fitted_noise(niw_meta.GaussianNoise(0.01), scores, points)
    np.testing.assert_allclose(fitted.noise, np.sqrt(np.mean(y[points.mask] ** 2)), rtol=1e-4)
    spread = rng.normal(size=(50, 4, 6, 1))
    assert niw_meta.with_fitted_noise(fitted, spread, points).noise < 0.8 * fitted.noise


def test_noise_is_found_in_any_unit():
    """Beyond 1,100 times its start, or less than 1/1,100, it ended there."""
    rng = np.random.default_rng(7)
    y, scores, mask = rng.normal(size=(2, 6)), np.zeros((1, 2, 6, 1)), np.ones((2, 6), bool)
    for power in (-6, -1, 6):
        points = niw_meta.Points(None, y * 10.0**power, mask)
        fitted = niw_meta.with_fitted_noise(niw_meta.GaussianNoise(0.3), scores, points)
        np.testing.assert_allclose(fitted.noise, np.sqrt(np.mean(points.y**2)), rtol=1e-3)
    for start in (1e-36, 1e36):
        with pytest.raises(
            ValueError, match="no noise is found: the most probable one is 0, or farther"
        ):
            niw_meta.with_fitted_noise(niw_meta.GaussianNoise(start), scores, points)


def test_fitted_tails_are_the_most_probable_ones():
    """No scale and degrees of freedom near them, nor the true ones, give the labels a higher density."""
    rng = np.random.default_rng(6)
    y, scores = 0.5 * rng.standard_t(3.0, size=(1, 5000)), np.zeros((1, 1, 5000, 1))
    points = niw_meta.Points(None, y, np.ones(y.shape, bool))
    fitted = niw_meta.with_fitted_noise(niw_meta.Student(0.1, 10.0), scores, points)
    density = lambda noise, df: stats.t.logpdf(y / noise, df).mean() - np.log(noise)
    best = density(fitted.noise, fitted.df)
    others = [
        (0.5, 3.0),
        *((fitted.noise * a, fitted.df * b) for a, b in ((1.05, 1), (0.95, 1), (1, 1.1), (1, 0.9))),
    ]
    assert all(best > density(*other) for other in others)
    vectors = niw_meta.Student(0.5, 3.0, 2).law(np.zeros((4, 2)))
    assert vectors.batch_shape == (4,) and vectors.event_shape == (2,)


@pytest.mark.slow
def test_fitted_spread_undoes_draws_that_are_too_wide():
    """Draws four times as wide as the errors of their mean, and labels without noise: a quarter of the spread remains."""
    rng = np.random.default_rng(8)
    y = rng.normal(size=(1, 4000))
    center = y + 0.25 * rng.normal(size=y.shape)
    draws = rng.normal(size=(30, *y.shape, 1))
    draws += center[..., None] - draws.mean(0)  # the mean is known without error
    points = niw_meta.Points(None, y, np.ones(y.shape, bool))
    start = niw_meta.Tempered(niw_meta.GaussianNoise(0.1))
    fitted = niw_meta.with_fitted_noise(start, draws, points)
    # Spread and noise make up one variance, 1/16; which of them, decides how Gaussian a mixture of 30 is.
    assert abs(fitted.spread**2 + fitted.head.noise**2 - 1 / 16) < 0.006  # standard error 0.0014
    # Errors are Gaussian at every spread, and calibrated.
    assert niw_meta.regression_ece(fitted, draws, points) < 0.02
    assert niw_meta.regression_ece(start, draws, points) > 0.1
    with pytest.raises(ValueError, match=r"the spread of 1 draw .* Give several draws"):
        niw_meta.with_fitted_noise(start, draws[:1], points)


def test_fitted_temperature_finds_the_one_that_labels_are_drawn_with():
    """Labels drawn at a temperature of 1/3, padding never; with draws, the mean of probabilities is more timid."""
    rng = np.random.default_rng(10)
    scores = rng.normal(size=(1, 2, 4000, 3))
    noise = rng.gumbel(size=scores.shape)
    y, mask = (3 * scores + noise)[0].argmax(-1), np.arange(4000) < np.array([[4000], [2000]])
    points = niw_meta.Points(None, np.where(mask, y, 0), mask)
    one = niw_meta.fitted_temperature(scores, points)
    assert abs(1 / one - 3.0) < 4.5 * 0.05
    draws = scores + 0.3 * rng.normal(size=(20, *scores.shape[1:]))
    assert niw_meta.fitted_temperature(draws, points) < one


@pytest.mark.slow
def test_calibration_errors_of_calibrated_and_of_sure_predictions():
    rng = np.random.default_rng(3)
    y = rng.normal(size=(1, 20_000))
    points = niw_meta.Points(None, y, np.ones(y.shape, bool))
    scores = np.zeros((1, *y.shape, 1))
    assert niw_meta.regression_ece(niw_meta.GaussianNoise(1.0), scores, points) < 0.01
    own = np.concatenate(
        [scores, np.full_like(scores, np.log(np.e - 1))], -1
    )  # softplus of it is 1
    assert niw_meta.regression_ece(niw_meta.GaussianWithScale(0.0), own, points) < 0.01
    pairs = niw_meta.Points(None, y.reshape(1, -1, 2), np.ones((1, 10_000), bool))
    vectors = niw_meta.GaussianNoise(1.0, num_outputs=2)
    assert niw_meta.regression_ece(vectors, np.zeros((1, 1, 10_000, 2)), pairs) < 0.01
    sure = niw_meta.regression_ece(
        niw_meta.GaussianNoise(1e-6), scores, points
    )  # CDF 0 or 1: half below every level
    np.testing.assert_allclose(sure, np.mean(np.abs(np.linspace(0.1, 0.9, 9) - 0.5)), atol=0.01)


SCORED = {
    "noise": niw_meta.with_fitted_noise,
    "calibration": niw_meta.regression_ece,
    "temperature": lambda head, scores, points: niw_meta.fitted_temperature(scores, points),
}


@pytest.mark.parametrize("name", SCORED)
def test_labels_are_compared_with_the_scores_of_their_own_points(name):
    """An episode's labels were broadcast against all of its scores, and the noise .79 in place of .77."""
    rng = np.random.default_rng(0)
    for episodes, n in ((1, 4), (3, 3), (2, 1)):
        num_outputs = 3 if name == "temperature" else 1
        scores = rng.normal(size=(2, episodes, n, num_outputs))
        y, mask = rng.integers(0, 3, (episodes, n)), np.ones((episodes, n), bool)
        head = niw_meta.GaussianNoise(0.3)
        SCORED[name](head, scores, niw_meta.Points(None, y, mask))
        for points in (
            niw_meta.Points(None, y[..., None], mask),
            niw_meta.Points(None, y, mask[:1] if episodes > 1 else mask[0]),
            niw_meta.Points(None, np.concatenate([y, y]), mask),
        ):
            with pytest.raises(ValueError, match="be compared with the scores of other points"):
                SCORED[name](head, scores, points)
        if name != "temperature":
            with pytest.raises(ValueError, match="be compared with the scores of other points"):
                vectors = niw_meta.GaussianNoise(0.3, num_outputs=1)
                SCORED[name](vectors, scores, niw_meta.Points(None, y, mask))


@pytest.mark.parametrize("name", SCORED)
def test_numbers_that_are_none_are_refused_where_they_count(name):
    """Of a search over NaN came the start of it, or a golden section of its bounds."""
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(3, 2, 5, 3 if name == "temperature" else 1))
    y, mask = rng.integers(0, 3, (2, 5)).astype(float), np.ones((2, 5), bool)
    mask[1, 3:] = False
    head = niw_meta.GaussianNoise(0.3)
    run = lambda scores, y: SCORED[name](head, scores, niw_meta.Points(None, y, mask))
    want = run(scores, y)
    for bad in (np.nan, np.inf):
        lost = scores.copy()
        lost[1, 0, 2] = bad
        with pytest.raises(ValueError, match="1 of 8 points that count have scores or labels"):
            run(lost, y)
        lost = y.copy()
        lost[0, 1] = bad
        with pytest.raises(ValueError, match="1 of 8 points that count have scores or labels"):
            run(scores, lost)
    behind = scores.copy()
    behind[:, 1, 3:] = np.nan
    assert run(behind, np.where(mask, y, np.nan)) == want
    if name == "temperature":  # a class that is impossible
        scores[:, 0, 0] = [1.0, 2.0, -np.inf]
        y[0, 0] = 1
        assert np.isfinite(run(scores, y))


@pytest.mark.parametrize(
    ("head", "size"),
    [
        (niw_meta.GaussianNoise(0.3), 2),
        (niw_meta.GaussianNoise(0.3, 3), 1),
        (niw_meta.Student(0.3, 4.0), 2),
        (niw_meta.GaussianWithScale(0.1), 4),
        (niw_meta.GaussianWithScale(0.1, 2), 2),
    ],
)
def test_outputs_that_no_label_reads_are_refused(head, size):
    with pytest.raises(ValueError, match=rf"a network has \d outputs, .* \(2, 5, {size}\)"):
        head.law(jnp.zeros((2, 5, size)))


@pytest.mark.parametrize("part", ["support", "query"])
def test_labels_that_are_no_classes_are_refused_in_either_part(part):
    """Those of a support, e.g. coded from 1, were left out of the centroids."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 4, 3)), np.arange(4)[None].repeat(2, 0) % 3
    good = niw_meta.Points(x, y, np.ones((2, 4), bool))

    @ppl.model
    def model(episodes):
        with ppl.plate("episodes", 2, dim=-2):
            niw_meta.observe("query", niw_meta.NearestCentroid(3), x, x, episodes)

    for wrong, count in ((y + 1, 2), (y - 1, 4)):
        bad = niw_meta.Episodes(good, good)._replace(**{part: good._replace(y=wrong)})
        with pytest.raises(ValueError, match=rf"niw_meta: the {part}: {count} of 8 labels are no"):
            niw_meta.predict(model, {}, bad)
        if part == "support":
            scores = jax.jit(lambda bad: niw_meta.predict(model, {}, bad).scores)(bad)
            assert np.isnan(scores).all()
    hidden = good._replace(y=np.where(y == 2, 3, y), mask=y < 2)
    assert niw_meta.predict(model, {}, niw_meta.Episodes(hidden, hidden)).scores.shape[-1] == 3


def test_directions_of_long_vectors_are_those_of_short_ones():
    """Squares of more than 32 bits hold made all scores zero, and classes equally probable."""
    rng = np.random.default_rng(0)
    outputs, support = rng.normal(size=(2, 6, 3)), rng.normal(size=(2, 6, 3))
    points = niw_meta.Points(None, np.arange(6)[None].repeat(2, 0) % 3, np.ones((2, 6), bool))
    head = niw_meta.NearestCentroid(3)
    want = head.scores(jnp.asarray(outputs), jnp.asarray(support), points)
    for power in (1, 20, 36):
        long = jnp.asarray(outputs * 10.0**power, jnp.float32)
        found = head.scores(long, jnp.asarray(support), points)
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_episodes_and_options_are_checked():
    with pytest.raises(ValueError, match=r"2 episodes of \[1, 2\] points with \[1, 3\] labels"):
        niw_meta.pad_points([(np.zeros((1, 2)), [0]), (np.zeros((2, 2)), [0, 1, 2])])
    with pytest.raises(ValueError, match="has 3 points, more than num_points=2"):
        niw_meta.pad_points([(np.zeros((3, 2)), np.zeros(3))], num_points=2)
    with pytest.raises(ValueError, match="parent_at='mode' needs population='finite'"):
        niw_meta.programs(mlp(), niw_meta.GaussianNoise(1.0), parent_at="mode")
    for options in ({"widths": "network"}, {"population": "some"}):
        with pytest.raises(
            ValueError, match="widths='(network|weight)', population='(infinite|some)'"
        ):
            niw_meta.programs(mlp(), niw_meta.GaussianNoise(1.0), **options)


@pytest.mark.slow  # a fit of networks
def test_training_improves_the_prediction_of_new_episodes():
    rng = np.random.default_rng(0)

    def lines(num):
        x = rng.uniform(-1, 1, size=(num, 8, 2))
        slope = np.array([2.0, -1.0]) + 0.1 * rng.normal(size=(num, 1, 2))
        y = (x * slope).sum(-1) + 0.1 * rng.normal(size=(num, 8))
        part = lambda s: niw_meta.Points(x[:, s], y[:, s], np.ones(y[:, s].shape, bool))
        return niw_meta.Episodes(part(slice(0, 2)), part(slice(2, 8)))

    train, test = lines(200), lines(50)
    model, guide = niw_meta.programs(mlp(width=8), niw_meta.GaussianNoise(0.1))
    bound = inference.elbo(model, guide, kl="analytic").with_plate_sizes({"episodes": math.inf})
    fit = inference.fit(
        bound, optax.adam(5e-3), (train,), num_steps=800, key=jax.random.key(0), subsample={"episodes": 8}, progress=False
    )  # fmt: skip

    @jax.jit
    def density(params):
        draws = niw_meta.adapt(guide.bind(params), jax.random.key(0), test, 10)
        return niw_meta.predict(model.bind(params), draws, test).log_density().mean()

    before = density(bound.init(jax.random.key(0), train))
    assert density(fit.params) > max(before + 1.0, 0.0)
    tree = inference.to_arviz(fit, key=jax.random.key(1), num_samples=5, args=(test,))
    assert tree["posterior"]["theta"].dims[:3] == ("chain", "draw", "episodes")
