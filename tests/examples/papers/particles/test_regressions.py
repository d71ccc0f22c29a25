"""Regressions: the exact evidence against the joint normal law, and the script at smoke size."""

import numpy as np
import pytest
from _examples import load_example, run_example
from scipy.integrate import quad
from scipy.stats import lognorm, multivariate_normal


@pytest.mark.slow  # a long compilation
def test_the_exact_evidence_is_the_joint_normal_law():
    example = load_example("papers/particles/regressions")
    columns, y = example.data()
    x, y = np.stack([columns[name][:100] for name in example.FEW], axis=1), y[:100]

    def density(noise):
        covariance = example.SLOPE**2 * x @ x.T + noise**2 * np.eye(100)
        return multivariate_normal(np.zeros(100), covariance).pdf(y) * lognorm(0.5).pdf(noise)

    want = np.log(quad(density, 0.4, 1.5, epsabs=0, epsrel=1e-8)[0])
    np.testing.assert_allclose(example.exact_evidence(x, y), want, rtol=1e-6)


@pytest.mark.slow  # four models compile, under two methods
def test_the_script_agrees_with_exact_evidence_and_with_nuts(tmp_path):
    text = run_example("papers/particles/regressions", "--smoke", "--out", tmp_path)
    rows = [line.rsplit(maxsplit=4) for line in text.splitlines()[1:5]]
    for name, value, error, exact, z in rows:
        # Errors are estimated from 10 runs: beyond 8 of them is one in 10^5 (Student t, 9 degrees of freedom).
        if name.startswith("Normal"):
            assert abs(float(value) - float(exact)) < 8 * float(error), text
        assert float(z) < 8, text
    assert (tmp_path / "slopes.png").stat().st_size > 1_000
    assert (tmp_path / "posterior.nc").stat().st_size > 1_000
