"""Annealed mixtures: the closed form against a grid, and the script at smoke size."""

import json

import numpy as np
import pytest
from _examples import load_example, run_example


@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # in a docstring of POT
@pytest.mark.slow  # loads POT and SciPy, and compiles
def test_the_cold_mixture_is_the_cube_of_the_warm_one():
    module = load_example("papers/diffusion/annealing")
    x = np.stack(np.meshgrid(*[np.linspace(-1.2, 1.2, 1201)] * 2), -1).reshape(-1, 2)
    density = np.zeros(len(x))
    for mean in module.MEANS:
        square = ((x - mean) ** 2).sum(1) / module.SCALE**2
        density += np.exp(-square / 2) / (2 * np.pi * module.SCALE**2) / 40
    log_z, means, weights, _ = module.cold_mixture()
    cube = density**3
    np.testing.assert_allclose(np.log(cube.sum() * 0.002**2), log_z, atol=1e-4)
    np.testing.assert_allclose(cube @ x / cube.sum(), weights @ means, atol=1e-4)


@pytest.mark.slow  # nine arms compile
def test_weights_and_noise_bring_the_samples_to_the_target(tmp_path):
    run_example("papers/diffusion/annealing", "--smoke", "--out", tmp_path, timeout=600)
    table = json.loads((tmp_path / "metrics.json").read_text())
    mean = lambda arm, metric: np.mean(table[arm][metric])
    assert mean("automatic zeta, FKC", "energy W2") < mean("target score", "energy W2")
    assert mean("automatic zeta, FKC", "MMD^2") < mean("tempered noise", "MMD^2")
    assert mean("automatic zeta, FKC", "TV") < mean("tempered noise", "TV")
    assert (
        abs(mean("automatic zeta, FKC", "log Z error"))
        < 1
        < abs(mean("tempered noise, FKC", "log Z error"))
    )
    # A control is what tempered noise lacks.
    controlled = "tempered noise, control, FKC"
    assert abs(mean(controlled, "log Z error")) < 0.3
    assert mean(controlled, "TV") < mean("tempered noise, FKC", "TV")
    assert abs(mean("replica exchange", "log Z error")) < 1
    for shares in table["shares"].values():  # of the toys' modes, which weigh the same
        assert np.abs(np.array(shares) * len(shares) - 1).max() < 0.05 * len(shares)
    for name in ("annealing.png", "samples.nc", "report.txt"):
        assert (tmp_path / name).stat().st_size > 100
