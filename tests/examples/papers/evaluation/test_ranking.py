"""Ranking by votes: modes in closed form, the order of votes, calibration, coverage, and the script at smoke size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _examples import load_example
from scipy.optimize import minimize

from lapilli import inference
from lapilli.inference import posterior_checks as pc

KEY = jax.random.key(0)
MODELS, VOTES = 4, 60


@pytest.fixture(scope="module")
def ranking():
    return load_example("papers/evaluation/ranking")


def votes_of(ranking, wins, ties, losses):
    outcome = np.repeat([0, 1, 2], [wins, ties, losses])
    return ranking.Votes(np.zeros(len(outcome), int), np.ones(len(outcome), int), outcome)


def mode_of(ranking, votes, num_models, scale):
    """Mode of the density in (strengths, nu), with nu by its logarithm and no Jacobian."""
    with jax.enable_x64():

        def loss(x):
            choices = {"strength": x[:-1], "nu": jnp.exp(x[-1])}
            return -ranking.davidson.log_density(choices, *votes, num_models, scale)

        found = minimize(
            jax.jit(loss), np.zeros(num_models + 1), jac=jax.jit(jax.grad(loss)), tol=1e-12
        )
    return found.x[:-1], np.exp(found.x[-1])


def test_the_mode_of_two_models_is_that_of_a_closed_form(ranking):
    """Under a flat prior s_1 - s_2 = log(wins / losses) and nu = ties / sqrt(wins losses); the prior's scale is 1e4."""
    strengths, nu = mode_of(ranking, votes_of(ranking, 30, 12, 10), 2, 1e4)
    assert strengths[0] - strengths[1] == pytest.approx(np.log(3.0), abs=1e-4)
    assert nu == pytest.approx(12 / 300**0.5, abs=1e-4)


def test_the_mode_under_the_prior_solves_its_equations(ranking):
    """s_1 = -s_2 = (wins - losses - N (p_1 - p_2)) / 2,   ties / nu = N p_0 / nu + nu."""
    strengths, nu = mode_of(ranking, votes_of(ranking, 30, 12, 10), 2, 1.0)
    shares = np.array([np.exp(strengths[0]), nu * np.exp(strengths.mean()), np.exp(strengths[1])])
    p = shares / shares.sum()
    assert strengths.sum() == pytest.approx(0.0, abs=1e-4)
    assert strengths[0] == pytest.approx((20 - 52 * (p[0] - p[2])) / 2, abs=1e-3)
    assert 12 - 52 * p[1] == pytest.approx(nu**2, abs=1e-3)


@pytest.mark.slow
def test_the_order_of_votes_moves_elo_and_not_the_posterior(ranking):
    rng = np.random.default_rng(0)
    first = rng.integers(0, MODELS, VOTES)
    votes = ranking.Votes(
        first, (first + rng.integers(1, MODELS, VOTES)) % MODELS, rng.integers(0, 3, VOTES)
    )
    other = ranking.shuffled(votes, rng)
    assert np.abs(ranking.elo(votes, MODELS) - ranking.elo(other, MODELS)).max() > 10
    for seed in range(3):
        choices = {"strength": jax.random.normal(jax.random.key(seed), (MODELS,)), "nu": 0.7}
        both = [ranking.davidson.log_density(choices, *v, MODELS) for v in (votes, other)]
        assert float(both[0]) == pytest.approx(float(both[1]), rel=1e-6)


def test_elo_and_ranks_by_hand(ranking):
    votes = ranking.Votes(np.array([0, 0]), np.array([1, 1]), np.array([0, 1]))
    after_one = 1000 + 16
    expected = 1 / (1 + 10 ** (-32 / 400))
    assert ranking.elo(votes, 2)[0] == pytest.approx(after_one + 32 * (0.5 - expected))
    draws = np.array([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(
        ranking.rank_probabilities(draws), [[0.5, 0, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0]]
    )


@pytest.fixture(scope="module")
def arenas(ranking):
    """200 simulated arenas, 99 thinned draws of NUTS for each."""
    rng = np.random.default_rng(1)
    first = rng.integers(0, MODELS, VOTES)
    second = (first + rng.integers(1, MODELS, VOTES)) % MODELS

    def posterior(key, observed):
        votes = ranking.Votes(first, second, observed["outcome"])
        draws = ranking.draws_of(votes, MODELS, key, 300, 990).get_samples()
        return {name: draws[name][9::10] for name in ("strength", "nu")}

    args = (first, second, np.zeros(VOTES, int), MODELS)
    return (
        posterior,
        args,
        pc.simulate(ranking.davidson, posterior, KEY, *args, num_simulations=200),
    )


@pytest.mark.slow  # 200 chains
def test_intervals_of_ninety_percent_cover_as_often(arenas):
    coverage = pc.coverage(arenas[2], KEY, kind="central")
    shares = [np.interp(0.9, coverage.levels, curve) for curve in coverage.curves.T]
    at = dict(zip(coverage.labels, shares, strict=True))
    mean = np.mean([share for label, share in at.items() if label != "nu"])
    print(f"coverage at 0.9: {at}, strengths together {mean:.3f}")
    assert 0.85 < mean < 0.95 and 0.85 < at["nu"] < 0.95
    assert coverage.smallest_p_value > 1e-3


@pytest.mark.slow  # 200 chains
def test_the_posterior_is_calibrated(ranking, arenas):
    """False alarm 1e-3 by ranks; of all checks together 1e-2."""
    posterior, args, simulations = arenas
    found = inference.diagnostics.calibrate(
        ranking.davidson, posterior, jax.random.key(7), *args, num_simulations=200
    )
    print(f"calibrate: {found.smallest_p_value:.3g}")
    assert found.smallest_p_value > 1e-3
    report = pc.check_simulations(simulations, KEY, level=0.01)
    print(report)
    assert report.objections == ()


@pytest.mark.slow  # two chains compile
def test_the_script_ranks(ranking, tmp_path, capsys):
    ranking.main(["--smoke", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    assert "Elo's first over 20 orders" in text
    row = next(line for line in text.splitlines() if line.startswith("tree "))
    assert float(row.split()[2]) < 0  # the worst model's strength
    assert {p.name for p in tmp_path.iterdir()} == {"posterior.nc", "ranking.png", "report.txt"}
