"""The carbon dioxide record: Kalman's answer against the joint normal law, and the script at smoke size."""

import numpy as np
import pytest
from _examples import load_example
from scipy.stats import multivariate_normal


@pytest.fixture(scope="module")
def co2():
    return load_example("papers/particles/co2")


def test_kalman_is_the_joint_normal_law_of_the_weeks_seen(co2):
    data, numbers = co2.series(30), co2.Numbers(0.9, 0.3, 0.4)
    gaps = np.abs(np.subtract.outer(np.arange(30), np.arange(30)))
    level = 0.09 / (1 - 0.81) * 0.9**gaps
    seen = data.seen
    assert 0 < seen.sum() < 30
    cov = level[np.ix_(seen, seen)] + 0.16 * np.eye(seen.sum())
    log_z, mean, std = co2.kalman(data, numbers)
    assert log_z == pytest.approx(
        multivariate_normal(np.zeros(seen.sum()), cov).logpdf(data.values[seen])
    )
    before = np.linalg.solve(cov, np.stack([data.values[seen], level[seen, -1]], 1))
    assert mean[-1] == pytest.approx(level[-1, seen] @ before[:, 0])
    assert std[-1] ** 2 == pytest.approx(level[-1, -1] - level[-1, seen] @ before[:, 1])


@pytest.mark.slow  # eight filters compile
def test_the_script_agrees_with_kalman(co2, tmp_path, capsys):
    co2.main(["--smoke", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith("normal noise"))
    assert abs(float(row.split("z = ")[1].split()[0])) < 4.5
    assert {p.name for p in tmp_path.iterdir()} == {"co2.png", "posterior.nc", "report.txt"}
