"""Averages of stationary iterates: on a noisy quadratic, whose iterates are an autoregression with known moments."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

from lapilli import inference, ppl
from lapilli.inference.fitting.stationarity import Averaging, noise_shares

KEY = jax.random.key(0)
CURVATURE, SIGMA, RATE = np.array([1.0, 0.2]), 1.0, 0.1
OPTIMUM = np.array([2.0, -1.0])


class Bowl(inference.AbstractObjective):
    """Loss a_i (x_i - o_i)^2 / 2 with gradients of noise sigma; SGD of rate r is x' - o = (1 - r a)(x - o) + r noise."""

    name, direction, model, guide = "bowl", "min", None, None

    def init(self, key, *args):
        return ppl.Params({"x": jnp.array([10.0, 10.0])})

    def step(self, params, state, key, *args):
        away = params["x"] - OPTIMUM
        noise = SIGMA * jax.random.normal(key, (2,))
        value = 0.5 * jnp.sum(CURVATURE * away**2) + away @ noise
        return value, ppl.Params({"x": CURVATURE * away + noise}), state


def run(average="stationary", rate=RATE, **options):
    options = {"key": KEY, "progress": False} | options
    return inference.fit(Bowl(), optax.sgd(rate), (), average=average, **options)


@pytest.fixture(scope="module")
def runs():
    """64 runs of 12,000 steps."""
    return run(num_steps=12_000, num_seeds=64)


@pytest.mark.slow
def test_spread_and_error_are_those_of_the_autoregression(runs):
    found = runs.averaging
    assert np.all(found.start > 100) and np.all(found.count + found.start == 12_000)
    variance = RATE * SIGMA**2 / (CURVATURE * (2 - RATE * CURVATURE))
    error = SIGMA**2 / (CURVATURE**2 * found.count[:, None])
    # The second coordinate's correlation time is 99 steps: over 100 independent values a run, 64 runs. z of the means over runs;
    # blocks of 500 steps lose 10 % of the error's square to correlation between them.
    for values, exact, slack in (
        (found.spread["x"] ** 2, variance, 0.03),
        (found.error["x"] ** 2, error, 0.15),
    ):
        ratio = np.asarray(values / exact)
        assert np.all(np.abs(ratio.mean(0) - 1) < 4.5 * ratio.std(0) / 8 + slack)


@pytest.mark.slow
def test_the_average_is_as_far_from_the_optimum_as_it_says(runs):
    z = np.asarray((runs.params["x"] - OPTIMUM) / runs.averaging.error["x"])
    assert np.all(np.abs(z.mean(0)) < 4.5 / 8)
    # t with 19 degrees of freedom has variance 19 / 17; chi-squared of 64 runs.
    assert np.all(np.abs((z**2).mean(0) * 17 / 19 - 1) < 4.5 * (3 / 64) ** 0.5)


@pytest.mark.slow
def test_errors_as_of_independent_iterates_would_be_far_too_small(runs):
    naive = runs.averaging.spread["x"] / np.sqrt(np.asarray(runs.averaging.count))[:, None]
    assert np.all(naive.mean(0) < 0.35 * np.asarray(runs.averaging.error["x"]).mean(0))


@pytest.mark.slow  # 12,000 steps of 64 seeds
def test_it_beats_the_last_iterate_and_the_average_from_the_start(runs):
    off = lambda params: float(np.sqrt(np.mean((np.asarray(params["x"]) - OPTIMUM) ** 2)))
    everything = run("polyak", num_steps=12_000, num_seeds=64)
    assert off(runs.params) < 0.25 * off(runs.last_params)
    assert off(runs.params) < 0.75 * off(everything.params)


@pytest.mark.slow
def test_without_a_number_of_steps_it_goes_on_until_the_iterates_have_mixed():
    fit = run()
    found = fit.averaging
    assert fit.stop_reason == "settled" and fit.steps == found.start + found.count
    assert found.r_hat <= 1.1 and found.count >= 1000
    assert "R-hat 1.0" in repr(fit)


def test_iterates_that_drift_are_told():
    # A gain that is not worth having is left, and 2,500 steps are the time of the second coordinate.
    start = ppl.Params({"x": jnp.array([2.0, 0.0])})
    fit = run(rate=0.002, num_steps=2000, params=start)
    assert fit.averaging.start > 0 and fit.averaging.r_hat > 1.1
    assert "above 1.1, take more steps" in str(fit.averaging)


@pytest.mark.slow
def test_where_the_value_never_settles_nothing_is_averaged():
    fit = run(num_steps=300)
    assert fit.averaging.start == -1 and not fit.averaging.is_averaged
    np.testing.assert_array_equal(fit.params["x"], fit.last_params["x"])
    assert "these are the last iterates" in repr(fit)


@pytest.mark.slow_for("None", "2")
@pytest.mark.parametrize("seeds", [None, 2])
def test_a_resumed_run_averages_the_same(tmp_path, seeds):
    options = {"num_steps": 3000, "num_seeds": seeds}
    whole, path = run(**options), tmp_path / "run.npz"
    for steps in (700, 2500):
        # The number of steps is the end of the average: said at once, and cut short by a callback.
        stop = lambda info, steps=steps: info.step >= steps
        run(**options, checkpoint=path, callbacks=[stop], callback_every=100)
        resumed = run(**options, checkpoint=path)
        for name in ("spread", "error"):
            one, two = (getattr(f.averaging, name)["x"] for f in (whole, resumed))
            np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(whole.params["x"], resumed.params["x"])
        path.unlink()


# Beside the posterior


def normal_guide():
    scale = ppl.param("scale", jnp.array([1.0, 0.1]), constraint=dist.constraints.positive)
    ppl.sample("z", dist.Normal(ppl.param("loc", jnp.zeros(2)), scale).to_event(1))


def test_noise_beside_the_posterior_is_the_ratio_of_widths():
    guide = ppl.as_program(normal_guide)
    params = guide.init(KEY)
    still = jax.tree.map(jnp.zeros_like, params)
    assert noise_shares(guide, params, still, KEY, ())["z"] < 1e-6
    moving = ppl.Params({**still, "loc": jnp.array([0.2, 0.03])}, still.constraints)
    # 0.03 of 0.1 is more than 0.2 of 1. 16 points: a relative error of 18 %, 100 draws: 7 %.
    found = noise_shares(guide, params, moving, KEY, ())["z"]
    assert abs(found / 0.3 - 1) < 4.5 * (0.18**2 + 0.07**2) ** 0.5


@pytest.mark.slow
def test_a_fit_tells_the_noise_of_its_iterates():
    x = np.random.default_rng(0).normal(size=50).astype(np.float32)

    def model(x):
        mu = ppl.sample("mu", dist.Normal(0.0, 2.0))
        with ppl.plate("rows", 50):
            ppl.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x):
        scale = ppl.param("scale", 0.15, constraint=dist.constraints.positive)
        ppl.sample("mu", dist.Normal(ppl.param("loc", 0.0), scale))

    bound, precision = inference.elbo(model, guide), 50.25
    fits = {
        rate: inference.fit(
            bound, optax.adam(rate), (x,), num_steps=6000, average="stationary", progress=False
        )
        for rate in (0.01, 0.3)
    }
    for rate, fit in fits.items():
        one, mean = fit.averaging.noise["mu"]
        # The location's noise over the posterior's width, by hand; 16 points: 18 %, the width of the guide: 20 %.
        by_hand = float(fit.averaging.spread["loc"]) * precision**0.5
        assert 0.3 < one / by_hand < 2.5 and mean < 0.2 * one
        assert ("widths are biased, lower the rate: 'mu' by" in repr(fit)) == (rate == 0.3)
    widths = {r: float(jnp.exp(f.params["scale"])) * precision**0.5 for r, f in fits.items()}
    assert abs(widths[0.01] - 1) < 0.03 and widths[0.3] < 0.93


def test_too_few_iterates_for_r_hat_are_told_in_words():
    few = Averaging(start=5, count=12, spread={}, error={}, r_hat=np.nan)
    assert (
        str(few)
        == "12 iterates from step 5 on: too few to tell whether they have mixed, take more steps"
    )
