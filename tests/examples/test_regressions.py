"""Regressions: the exact evidence against the joint normal law, and the script at smoke size."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import lognorm, multivariate_normal

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "regressions.py"


@pytest.mark.slow  # a long compilation
def test_the_exact_evidence_is_the_joint_normal_law():
    spec = importlib.util.spec_from_file_location("regressions_example", SCRIPT)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    columns, y = example.data()
    x, y = np.stack([columns[name][:100] for name in example.FEW], axis=1), y[:100]

    def density(noise):
        covariance = example.SLOPE**2 * x @ x.T + noise**2 * np.eye(100)
        return multivariate_normal(np.zeros(100), covariance).pdf(y) * lognorm(0.5).pdf(noise)

    want = np.log(quad(density, 0.4, 1.5, epsabs=0, epsrel=1e-8)[0])
    np.testing.assert_allclose(example.exact_evidence(x, y), want, rtol=1e-6)


@pytest.mark.slow  # four models compile, under two methods
def test_the_script_agrees_with_exact_evidence_and_with_nuts(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", SCRIPT, "--smoke", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.rsplit(maxsplit=4) for line in done.stdout.splitlines()[1:5]]
    for name, value, error, exact, z in rows:
        # Errors are estimated from 10 runs: beyond 8 of them is one in 10^5 (Student t, 9 degrees of freedom).
        if name.startswith("Normal"):
            assert abs(float(value) - float(exact)) < 8 * float(error), done.stdout
        assert float(z) < 8, done.stdout
    assert (tmp_path / "slopes.png").stat().st_size > 1_000
    assert (tmp_path / "posterior.nc").stat().st_size > 1_000
