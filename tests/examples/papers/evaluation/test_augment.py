"""Training sets with generated rows: the law of which all is known, row by row, and the script at smoke size."""

import json

import numpy as np
import pytest
from _examples import load_example, run_example
from scipy.stats import norm


@pytest.fixture(scope="module")
def law():
    return load_example("papers/evaluation/_normal_law")


def theta_of_rows(d, m, gamma, sigma, rng):
    """One theta from rows that are really drawn and a generator that is really fitted."""
    y = np.repeat([1.0, -1.0], m // 2)
    x = y[:, None] * np.eye(d)[0] + sigma * rng.normal(size=(m, d))
    means = {s: x[y == s].mean(0) for s in (1.0, -1.0)}
    left = x - np.stack([means[s] for s in y])
    spread = np.sqrt((left**2).sum(0) / (m - 2))
    more = np.tile(y, gamma)
    drawn = np.stack([means[s] for s in more]) + spread * rng.normal(size=(len(more), d))
    return (np.concatenate([y, more])[:, None] * np.concatenate([x, drawn])).mean(0)


def test_the_error_is_that_of_draws(law):
    """Of 400,000 rows: |z| < 4.5."""
    rng = np.random.default_rng(0)
    theta, mu = np.array([0.8, 0.5, -0.4]), np.eye(3)[0]
    y = rng.choice([-1.0, 1.0], 400_000)
    x = y[:, None] * mu + law.SIGMA * rng.normal(size=(len(y), 3))
    wrong = (np.sign(x @ theta) != y).mean()
    exact = float(law.risk(theta, mu))
    assert abs(wrong - exact) < 4.5 * (exact * (1 - exact) / len(y)) ** 0.5
    assert law.risk(mu, mu) == pytest.approx(norm.cdf(-1 / 0.6)) == pytest.approx(0.0478, abs=1e-4)
    assert law.risk(np.array([0.01]), np.ones(1)) == law.risk(np.array([7.0]), np.ones(1))


@pytest.mark.parametrize("gamma", [1, 4])
def test_sufficient_statistics_have_the_law_of_rows(law, gamma):
    """Mean excess log-likelihood and error over 3,000 repeats of 10 rows in 3 dimensions; |z| < 4.5 each."""
    d, m, rng = 3, 10, np.random.default_rng(gamma)
    mu = np.eye(d)[0]
    rows = np.stack([theta_of_rows(d, m, gamma, law.SIGMA, rng) for _ in range(3_000)])
    short = law.thetas(d, m, (gamma,), 30_000, rng)[0]
    exact = law.mean_excess_nll(d, m, gamma)
    for theta in (rows, short):
        nll = law.excess_nll(theta, mu)
        assert abs(nll.mean() - exact) < 4.5 * nll.std() / len(nll) ** 0.5
    a, b = law.risk(rows, mu), law.risk(short, mu)
    assert abs(a.mean() - b.mean()) < 4.5 * np.hypot(a.std() / len(a) ** 0.5, b.std() / len(b) ** 0.5)  # fmt: skip


@pytest.mark.slow_for("2", "10")
@pytest.mark.parametrize("d", [1, 2, 10])
def test_the_mean_error_without_generated_rows_is_its_quadrature(law, d):
    m, mu = 10, np.eye(d)[0]
    risks = law.risk(law.thetas(d, m, (0.0,), 200_000, np.random.default_rng(d))[0], mu)
    exact = law.mean_risk(d, law.SIGMA**2 / m)
    # The grid of midpoints is off by less than this.
    finer = law.mean_risk(d, law.SIGMA**2 / m, grid=4_000)
    assert exact == pytest.approx(finer, abs=2e-5)
    assert abs(risks.mean() - exact) < 4.5 * risks.std() / len(risks) ** 0.5 + 2e-5


def test_generated_rows_only_add_noise(law):
    """Most at gamma = 1, where it is a quarter; by paired repeats the error rises, at 10 rows in 10 dimensions."""
    gammas = (0.0, 0.5, 1.0, 2.0, 20.0)
    factors = [law.mean_excess_nll(10, 10, g) / 0.5 for g in gammas]
    assert factors[0] == 1 and max(factors) == factors[2] == 1.25 and min(factors) == 1
    found = law.thetas(10, 10, gammas, 20_000, np.random.default_rng(0))
    risks = law.risk(found, np.eye(10)[0])
    for row in risks[1:]:
        change = row - risks[0]
        assert change.mean() > 4.5 * change.std() / len(change) ** 0.5


@pytest.mark.slow  # trains several models
def test_the_script_prints_each_part(tmp_path):
    run_example("papers/evaluation/augment", "--smoke", "--out", tmp_path)
    found = json.loads((tmp_path / "metrics.json").read_text())
    for row in found["law"]:
        assert abs(row["nll"] - row["nll, exact"]) < 4.5 * row["nll error"]
    assert all(0.5 < share < 1 for share in found["digits"]["50 class normals 0"])
    kinds = {"real and generated", "generated", "copies with noise"}
    assert {r["kind"] for r in found["robust"]} == kinds
    assert all((tmp_path / name).stat().st_size > 100 for name in ("augment.png", "report.txt"))
