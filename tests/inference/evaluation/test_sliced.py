"""Sliced Wasserstein distances: exact where a control is the distance, unbiased over directions, and their gradient."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from lapilli.inference import evaluation
from lapilli.inference.evaluation._inputs import generator
from lapilli.inference.evaluation._sliced import corrected, directions, projected, slope, transport
from lapilli.inference.evaluation._sliced_flow import _gradient


@pytest.fixture
def draws(seed):
    return generator(seed)


@pytest.mark.parametrize("num_directions", [4, 5, 40])
def test_shifts_are_exact_by_the_lower_control(draws, num_directions, key):
    x, shift = draws.normal(size=(50, 6)), draws.normal(size=6)
    found = evaluation.sliced_wasserstein(
        x, x + shift, key, num_directions=num_directions, control="lower"
    )
    assert found.value == pytest.approx(shift @ shift / 6, rel=1e-12)
    assert found.details["directions"] < 1e-12


@pytest.mark.parametrize("num_directions", [4, 5, 40])
def test_scales_are_exact_by_the_upper_control(draws, num_directions, key):
    x = draws.normal(size=(50, 6))
    x -= x.mean(0)
    found = evaluation.sliced_wasserstein(
        x, 1.7 * x, key, num_directions=num_directions, control="upper"
    )
    assert found.value == pytest.approx(0.49 * x.var(0).sum() / 6, rel=1e-12)


@pytest.mark.fast("seed0")
def test_normal_laws_in_closed_form(draws, key):
    """|m|^2 / d + (s - t)^2, to 2%."""
    mean = np.array([1.0, 0.0, 0.5, 0.0])
    x, y = draws.normal(size=(20_000, 4)), mean + 1.5 * draws.normal(size=(20_000, 4))
    found = evaluation.sliced_wasserstein(x, y, key, num_directions=40)
    exact = mean @ mean / 4 + 0.25
    assert found.value == pytest.approx(exact, rel=0.02)
    assert abs(found.value - exact) < 4.5 * found.standard_error
    with_fewer = evaluation.sliced_wasserstein(x[:9_000], y, key, num_directions=40)
    assert with_fewer.value == pytest.approx(exact, rel=0.03)


def test_quantiles_of_other_sizes_are_those_of_repeated_rows(draws):
    x, y = draws.normal(size=(6, 3)), draws.normal(size=(4, 3))
    np.testing.assert_allclose(
        transport(x, y), transport(np.repeat(x, 2, 0), np.repeat(y, 3, 0)), rtol=1e-12
    )


def repeats(x, y, draws, num, control, coefficient="cross"):
    found = [
        corrected(*projected(x, y, directions(draws, num, x.shape[1]), control), coefficient)
        for _ in range(400)
    ]
    return np.array(found).T


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return images[labels == 3] / 16, images[labels == 5] / 16


@pytest.mark.slow  # 400 repeats, and a hundred thousand directions
@pytest.mark.parametrize("num, least", [(10, 4), (100, 30)])
def test_controls_lower_the_variance_of_digits_and_leave_the_mean(digits, num, least, seed):
    """Bias within 4.5 errors, false alarm 7e-6 each; the ratio of variances has a relative error of 10%."""
    x, y = digits
    draws = generator(seed)
    w = projected(x, y, directions(draws, 100_000, 64), "none")[0]
    plain = repeats(x, y, draws, num, "none")[0]
    values, errors, _ = repeats(x, y, draws, num, "both")
    assert plain.var() / values.var() > least
    z = (values.mean() - w.mean()) / np.hypot(values.std() / 20, w.std() / 1e5**0.5)
    assert abs(z) < 4.5
    assert 0.8 < (errors**2).mean() ** 0.5 / values.std() < 1.8


@pytest.mark.slow  # twenty thousand directions
@pytest.mark.parametrize("pair, reach", [((3, 5), (9, 280, 410)), ((0, 1), (39, 83, 250))])
def test_what_any_coefficient_can_reach_is_told_by_correlations(pair, reach, draws):
    """1 / (1 - rho^2) of "upper", "lower", "both" to 20%, where the noise is 5%: "upper" cannot reach 30 for 3 and 5."""
    images, labels = load_digits(return_X_y=True)
    x, y = (images[labels == c] / 16 for c in pair)
    w, g = projected(x, y, directions(draws, 20_000, 64), "both")
    found = [w.var() / (w - g[:, part] @ slope(w, g[:, part])).var() for part in ([1], [0], [0, 1])]
    np.testing.assert_allclose(found, reach, rtol=0.2)


def test_plug_in_is_biased_where_crossing_is_not():
    """Directions that are two, W = G^2 in form: the mean over all pairs of halves, enumerated."""
    g = np.array([0.0, 1.0, 2.0, 5.0])[:, None] - 2.0
    w = (g[:, 0] + 2.0) ** 2
    rows = np.array(np.meshgrid(*[range(4)] * 4)).reshape(4, -1).T  # every draw of four directions
    mean = lambda how: np.mean([corrected(w[r], g[r], how)[0] for r in rows])
    assert mean("cross") == pytest.approx(w.mean(), rel=1e-12)
    assert abs(mean("plug-in") - w.mean()) > 0.1


@pytest.mark.parametrize("control", ["none", "lower", "upper", "both"])
@pytest.mark.parametrize("rows", [40, 30])
def test_gradients_are_those_of_differences_at_fixed_coefficients(control, rows, draws):
    x, y = draws.normal(size=(40, 3)), 1 + 2 * draws.normal(size=(rows, 3))
    theta = directions(draws, 10, 3)
    w, g = projected(x, y, theta, control)
    half = np.arange(10) % 2 == 1
    a = np.where(half[:, None], slope(w[~half], g[~half]), slope(w[half], g[half]))

    def value(x):
        w, g = projected(x, y, theta, control)
        return (w - (a * g).sum(1)).mean()

    found, step = _gradient(x, y, theta, control)[1], np.zeros((40, 3))
    step[7, 1] = 1e-6
    assert found[7, 1] == pytest.approx((value(x + step) - value(x - step)) / 2e-6, rel=1e-5)


def test_the_flow_moves_points_to_the_sample(draws, key):
    start, real = draws.normal(size=(50, 2)), np.array([4.0, -2.0]) + draws.normal(size=(50, 2))
    flow = evaluation.sliced_wasserstein_flow(start, real, key, num_steps=60)
    assert flow.points.shape == (50, 2) and flow.values.shape == (60,)
    assert flow.values[-1] < 0.01 * flow.values[0]
    once = evaluation.sliced_wasserstein_flow(start, real, key, num_steps=1, step_size=0.5)
    gradient = evaluation.sliced_wasserstein_gradient(start, real, key)
    np.testing.assert_allclose(once.points, start - 25 * gradient, rtol=1e-12)
    with pytest.raises(ValueError, match="step_size is 0. Give a positive"):
        evaluation.sliced_wasserstein_flow(start, real, key, step_size=0)


@pytest.mark.fast("seed0")
def test_errors_have_the_noise_of_rows_and_of_directions(seed):
    """Standard deviation over samples against the mean error, 200 repeats: 5% of noise in either."""
    draws, found = generator(seed), []
    for number in range(200):
        x, y = draws.normal(size=(100, 2)), 1 + draws.normal(size=(100, 2))
        e = evaluation.sliced_wasserstein(x, y, jax.random.key(number), num_directions=10)
        found.append((e.value, e.standard_error))
    value, error = np.array(found).T
    assert 0.85 < (error**2).mean() ** 0.5 / value.std() < 1.3
