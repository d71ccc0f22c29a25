"""Steps that are long: when their weights have a variance, the exponential ones, and times even in log-SNR."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from lapilli import inference
from lapilli.inference.diffusion._composition import Composition
from lapilli.inference.diffusion.grid._finite_variance import infinite_steps
from lapilli.inference.diffusion.grid._grid import coefficients
from lapilli.inference.diffusion.grid._noise_scale import bound
from lapilli.models import diffusion

VP, COSINE, EDM = diffusion.VP(), diffusion.Cosine(), diffusion.EDM(0.01, 10.0)


def gaussian(noising, variance, dim=1):
    return diffusion.gaussian_mixture(noising, [1.0], np.zeros((1, dim)), variance)


def known(noising, times, exponents, zeta="auto", weights="auto", integrator="euler"):
    models = tuple(gaussian(noising, 1.0) for _ in exponents)
    composition = Composition(models, tuple(exponents))
    return coefficients(composition, np.asarray(times), zeta, weights, integrator)


def count(noising, num_steps, beta, variance=0.3):
    grid = known(noising, noising.times(num_steps), [beta])
    is_bad, _ = infinite_steps(grid, ["exact"], np.array([variance]))
    return int(is_bad.sum())


def test_steps_of_infinite_variance():
    """As many as an independent program counts, which integrates by the backward kernels alone."""
    assert [count(VP, n, 3.0) for n in (50, 100, 200)] == [43, 28, 0]
    assert [count(COSINE, n, 2.0) for n in (200, 1000)] == [6, 1]


@pytest.mark.parametrize("ratio", ["exact", "rne", "euler"])
@pytest.mark.parametrize("exponents", [(2.0,), (3.0,), (-4.0, 5.0)], ids=str)
def test_short_steps_have_a_variance_above_the_bound_and_none_below(exponents, ratio):
    """The finite step against its limit; models with a negative exponent are wide, where the bound is sharp."""
    least = float(np.sqrt(bound(np.array(exponents))))
    widths = np.where(np.array(exponents) < 0, 1e4, 0.1)
    ratios = "euler" if ratio == "euler" else [ratio] * len(exponents)
    for factor, is_finite in ((0.93, False), (1.07, True)):
        grid = known(VP, np.linspace(1, 0, 8001), exponents, factor * least, "exact")
        is_bad, _ = infinite_steps(grid, ratios, widths)
        assert bool(is_bad.any()) != is_finite, factor


def test_the_mean_weight_to_come_obeys_its_equation():
    """P of two models of other widths by the equation of E[weight | x] itself, against that of p = P / Lambda with root p*."""
    w, v0, zeta = np.array([-2.0, 3.0]), np.array([1.0, 0.2]), 1.4

    def parts(t):
        g2, alpha2 = 0.1 + 19.9 * t, np.exp(-0.1 * t - 9.95 * t**2)
        v = alpha2 * v0 + 1 - alpha2
        return g2, (w / v).sum(), (w / v**2).sum()

    def of_p(t, y):
        g2, precision, squares = parts(t)
        root = (1 - squares / precision**2) / (2 * zeta**2)
        return [2 * zeta**2 * g2 * precision * (y[0] - root) * (y[0] - 0.5)]

    def of_weight(t, y):
        g2, precision, squares = parts(t)
        rate = g2 / 2 - (1 + zeta**2) / 2 * g2 * precision
        return [g2 / 2 * (precision**2 - squares) + 2 * rate * y[0] + 2 * zeta**2 * g2 * y[0] ** 2]

    solve = functools.partial(solve_ivp, t_span=(0, 0.3), y0=[0.0], rtol=1e-10, atol=1e-12)
    p, weight = solve(of_p).y[0, -1], solve(of_weight).y[0, -1]
    assert p > 0.05
    np.testing.assert_allclose(weight / parts(0.3)[1], p, rtol=1e-7)


def test_the_bound_holds_where_negative_exponents_are_of_wide_models():
    """(sum w y^2) / (sum w y)^2 >= 1 / W+ for 10,000 draws; and not where they are narrow."""
    rng = np.random.default_rng(0)
    positive, y = rng.exponential(size=(10_000, 3)), rng.exponential(size=(10_000, 3))
    negative = rng.exponential(size=(10_000, 2))
    mean = (positive * y).sum(1) / positive.sum(1)
    ends = rng.uniform(size=(10_000, 2)) * mean[:, None]
    w = np.concatenate([positive, -negative], 1)
    c = lambda ends: (
        (w * (z := np.concatenate([y, ends], 1)) ** 2).sum(1),
        (w * z).sum(1),
    )
    squares, precision = c(ends)
    is_law = precision > 1e-3
    assert is_law.mean() > 0.5
    gap = squares / precision**2 - 1 / positive.sum(1)
    assert gap[is_law].min() > -1e-9
    squares, precision = c(1.5 * mean[:, None] * np.ones(2))
    is_law = precision > 1e-3
    assert (squares / precision**2 < 1 / positive.sum(1))[is_law].any()


REMEDIES = {
    "exponential": lambda n: (VP.times(n), "exponential"),
    "exponential, log-SNR": lambda n: (VP.log_snr_times(n), "exponential"),
}


@pytest.mark.parametrize(
    "noising", [VP, COSINE, EDM, diffusion.VE()], ids=lambda n: type(n).__name__
)
@pytest.mark.parametrize("beta", [0.4, 2.0, 3.0, 10.0])
def test_exponential_steps_have_a_variance_where_those_of_euler_have_none(noising, beta):
    """Annealing in 50 steps, even in log-SNR: no warning, and one for Euler's where beta exceeds 1."""
    model, times = gaussian(noising, 0.3), noising.log_snr_times(50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inference.diffusion.fkc(model, times, exponents=beta, integrator="exponential")
    if beta > 1:
        with pytest.warns(UserWarning, match="too long for their noise"):
            inference.diffusion.fkc(model, times, exponents=beta)


def test_log_snr_times_are_even_in_it():
    for noising in (VP, COSINE, EDM, diffusion.VE()):
        times = noising.log_snr_times(30)
        log_snr = 2 * jax.vmap(noising.log_alpha)(times) - jnp.log(
            jax.vmap(noising.variance)(times)
        )
        assert times[0] == noising.times(1)[0] and times[-1] == noising.times(1)[-1]
        steps = np.diff(log_snr)
        np.testing.assert_allclose(
            steps, steps.mean(), rtol=2e-3
        )  # float32 of times near their end
    assert noising.log_snr_times(1).shape == (2,)


def log_evidence_error(noising, times, beta, integrator, keys, num_particles, dim=4):
    model = inference.diffusion.fkc(
        gaussian(noising, 0.3, dim), times, exponents=beta, integrator=integrator
    )
    t = float(times[-1])
    v = float(noising.alpha(t)) ** 2 * 0.3 + float(noising.variance(t))
    exact = dim / 2 * ((1 - beta) * np.log(2 * np.pi * v) - np.log(beta))

    def run(key):
        result = inference.smc(model, key, num_particles=num_particles, history="none")
        return result.log_evidence - exact, result.mean(lambda p: jnp.mean(p.x**2)) * beta / v

    return jax.jit(lambda keys: jax.lax.map(run, keys, batch_size=8))(keys)


@pytest.mark.slow_for("exponential, log-SNR", "exponential")
@pytest.mark.parametrize("name", REMEDIES)
def test_evidence_is_unbiased_in_few_exponential_steps(name, key):
    """Four dimensions annealed to 3 in 50 steps, where Euler's have Z-hat / Z = 0.36: more than 7 standard errors off."""
    times, integrator = REMEDIES[name](50)
    errors, ratios = log_evidence_error(VP, times, 3.0, integrator, jax.random.split(key, 64), 500)
    for found in (np.exp(np.asarray(errors, float)), np.asarray(ratios, float)):
        error = found.std() / 8
        assert error < 0.09 and abs(found.mean() - 1) < 4.5 * error
    assert np.std(errors) < 0.4


@pytest.mark.slow  # one more compilation
def test_evidence_is_unbiased_in_log_snr_times_of_the_cosine_schedule(key):
    """By Euler's steps, where those even in time are off by 0.57 nats."""
    keys = jax.random.split(key, 64)
    errors, _ = log_evidence_error(COSINE, COSINE.log_snr_times(200), 2.0, "euler", keys, 500)
    ratio = np.exp(np.asarray(errors, float))
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / 8 and np.std(errors) < 0.4


@pytest.mark.filterwarnings("ignore:fkc")  # few steps
def test_exponential_steps_are_exact_for_a_point(key):
    """Data without width: M is the law of x_s given x_t and the data, and weights of the model itself are 1."""
    model = inference.diffusion.fkc(
        gaussian(VP, 1e-12), VP.times(10), zeta=1.0, integrator="exponential"
    )
    previous = model.corrector.at(jax.random.normal(key, (1,)), 3, None)
    mean, _ = model.corrector.moments(previous, jnp.asarray(3))
    t, s = (float(VP.times(10)[n]) for n in (3, 4))
    u, v = (float(VP.variance(x) / VP.alpha(x) ** 2) for x in (t, s))
    steps = model.corrector.grid.steps
    ratio = float(VP.alpha(s) / VP.alpha(t)) * v / u
    np.testing.assert_allclose(float(mean[0]) / float(previous.x[0]), ratio, rtol=1e-4)
    # Between the variances of M, v (1 - v / u), and of B, u - v.
    np.testing.assert_allclose(steps.noise[3], np.sqrt(v * (1 - v / u) * (u - v)), rtol=1e-3)
