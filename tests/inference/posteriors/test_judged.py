"""The verdict on chains: each problem is seen, and none where there is none."""

import re
import types

import jax
import numpy as np
import pytest

from lapilli.inference.posteriors._clock import Clock
from lapilli.inference.posteriors._judged import of_chains
from lapilli.inference.posteriors.chains._chains import ChainSettings, run_chains
from lapilli.inference.posteriors.chains._sampler import Run
from lapilli.inference.posteriors.weighted._weighted import GuideNormal, smoothed_and_judged

SHAPE = (4, 1000)


def judged(change):
    rng = np.random.default_rng(0)
    x, energy = rng.standard_normal((*SHAPE, 2)), rng.standard_normal(SHAPE)
    broken = np.zeros(SHAPE, bool)
    x, energy, broken = change(x, energy, broken)
    return of_chains(x, ["a", "b"], energy, broken)


def shifted(x, energy, broken):
    x[0, :, 1] += 1.0
    return x, energy, broken


def wide(x, energy, broken):
    x[0, :, 0] *= 2.0
    return x, energy, broken


def slow(x, energy, broken):
    x[:, :, 0] = np.cumsum(x[:, :, 0], 1)
    return x, energy, broken


def stuck(x, energy, broken):
    x[1, :, 0] = 0.3
    return x, energy, broken


def standing(x, energy, broken):
    x[:, :, 0] = 0.3
    return x, energy, broken


def broken_off(x, energy, broken):
    broken[2, 5] = True
    return x, energy, broken


def stiff(x, energy, broken):
    return x, np.cumsum(energy, 1), broken


def nan(x, energy, broken):
    x[0, 0, 0] = np.nan
    return x, energy, broken


def test_good_chains_have_no_problem():
    verdict = judged(lambda *x: x)
    assert verdict.is_certified and not verdict.is_short and verdict.seen["r_hat"] < 1.01


@pytest.mark.parametrize(
    "change, words",
    [
        (shifted, "R-hat is .* at b"),
        (wide, "R-hat is .* at a"),
        (slow, "R-hat is .* at a"),
        (stuck, "R-hat is .* at a"),
        (standing, "R-hat is inf at a"),
        (nan, "R-hat is inf at a"),
        (broken_off, "1 of 4000 trajectories broke off"),
        (stiff, "E-BFMI is 0"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_each_problem_is_seen(change, words):
    verdict = judged(change)
    assert not verdict.is_certified
    assert re.search(words, "; ".join(verdict.problems))
    assert verdict.is_funnel == (change is stiff)


@pytest.mark.parametrize("number, is_good", [(4, True), (5, False)])
def test_one_trajectory_of_ten_thousand_may_break_off(number, is_good):
    rng = np.random.default_rng(0)
    broken = np.zeros((4, 10_000), bool)
    broken[0, :number] = True
    x, energy = rng.standard_normal((4, 10_000, 1)), rng.standard_normal((4, 10_000))
    assert of_chains(x, ["a"], energy, broken).is_certified == is_good


def test_few_draws_are_short_and_nothing_else():
    rng = np.random.default_rng(3)
    verdict = of_chains(
        rng.standard_normal((4, 60, 1)),
        ["a"],
        rng.standard_normal((4, 60)),
        np.zeros((4, 60), bool),
    )
    assert not verdict.is_certified and verdict.is_short


def of_weights(*args):
    return smoothed_and_judged(*args)[0]


@pytest.mark.parametrize("scale, is_good", [(1.0, True), (0.25, False)])
def test_weights_of_a_fit_are_judged(scale, is_good):
    """A normal guide of the right and of a quarter of the scale for a standard normal posterior."""
    z = scale * np.random.default_rng(0).standard_normal(4000)
    log_weights = -0.5 * z**2 + 0.5 * (z / scale) ** 2
    assert of_weights(log_weights).is_certified == is_good


@pytest.mark.parametrize("power, is_good", [(0.1, True), (0.8, False)])
def test_a_width_that_weighted_draws_do_not_tell_is_a_problem(power, is_good):
    """Draws of a normal law for one a third as wide again: its weights do, but not with squares of a number of long tails."""
    u = np.random.default_rng(0).standard_normal(4000)
    log_weights = 0.5 * u**2 * (1 - 1 / 1.33**2)
    assert of_weights(log_weights, {"u": u}).is_certified
    verdict = of_weights(log_weights, {"x": np.exp(power * u)[:, None]})
    assert verdict.is_certified == is_good
    assert is_good or "x[0]: its tail is heavier" in verdict.outcome


def test_the_coordinates_of_a_guide_are_those_of_the_chains():
    """Sites stand in another order, and their Normal is the same one."""
    rng = np.random.default_rng(0)
    factor, sizes = np.tril(rng.normal(size=(6, 6))), {"a": 1, "b": 3, "c": 2}
    normal = GuideNormal(sizes, rng.normal(size=6), factor)
    rows = [4, 5, 0, 1, 2, 3]
    frame = normal.frame(["c", "a", "b"], is_dense=True)
    covariance = (factor @ factor.T)[np.ix_(rows, rows)]
    np.testing.assert_allclose(frame.factor @ frame.factor.T, covariance, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(frame.location, normal.mean[rows], rtol=1e-6)
    widths = normal.frame(["c", "a", "b"], is_dense=False).factor
    np.testing.assert_allclose(widths, np.sqrt(np.diag(covariance)), rtol=1e-5)


def test_weights_that_are_no_numbers_are_a_problem():
    for bad in (np.nan, np.inf):
        log_weights = np.zeros(100)
        log_weights[3] = bad
        verdict = of_weights(log_weights)
        assert not verdict.is_certified and not verdict.seen


@pytest.mark.parametrize("steps, is_stiff", [((900, 7, 7), False), ((900, 900, 7), True)])
def test_long_trajectories_count_at_the_end_of_the_warm_up(monkeypatch, steps, is_stiff):
    """Those before the mass matrix is learned say nothing."""
    rng, left = np.random.default_rng(0), list(steps)

    def advance(state, frame, accept, num, what="draws"):
        x, energy = rng.standard_normal((8, num, 1)), rng.standard_normal((8, num))
        parts = 2 if "warm-up" in what else 1
        length = np.repeat([[left.pop(0) for _ in range(parts)]], num // parts, 1).repeat(8, 0)
        return state, Run(x, energy, energy, np.zeros((8, num), bool), length)

    sampler = types.SimpleNamespace(
        frame=lambda: None, advance=advance, clock=Clock(), num_gradients=0
    )
    monkeypatch.setattr("lapilli.inference.posteriors.chains._chains._started", lambda *of: None)
    monkeypatch.setattr(
        "lapilli.inference.posteriors.chains._chains.Sampler", lambda *of, **options: sampler
    )
    target = types.SimpleNamespace(log_density=None, arrays=[], dimension=1, names=["a"])
    settings = ChainSettings(8, 500, 500, (0.9,), 2, is_dense=True)
    _, verdict = run_chains("infer", target, jax.random.key(0), settings, np.zeros((8, 1)))
    assert verdict.is_stiff == is_stiff == ("at the end of the warm-up" in verdict.outcome)
    assert len(left) == (1 if is_stiff else 0)
