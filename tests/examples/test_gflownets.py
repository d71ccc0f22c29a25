"""The GFlowNet scripts at smoke size."""

import pytest
from _examples import run_example


@pytest.mark.slow  # compiles four losses on two problems
def test_sets_prints_every_loss_and_draws(tmp_path):
    text = run_example("sets", "--smoke", "--out", tmp_path, "--sizes", "twelve", "small")
    for name in ("FL-DB", "DB", "SubTB", "TB", "FL-DB, 2 steps of each"):
        assert f"  {name} " in text
    assert (tmp_path / "sets.png").stat().st_size > 1_000


@pytest.mark.slow  # compiles a fit, a particle run and the export
def test_structure_has_an_unbiased_evidence(tmp_path):
    text = run_example("structure", "--smoke", "--out", tmp_path)
    assert "25 graphs" in text
    words = text.split("Z-hat / Z = ")[1].split()
    # Five runs of 200 particles: within 8 of their own standard errors (Student t, 4 degrees of freedom, 1e-3).
    assert abs(float(words[0]) - 1) < 8 * float(words[2]) + 1e-3
    for name in ("report.txt", "structure.png", "posterior.nc"):
        assert (tmp_path / name).stat().st_size > 100


@pytest.mark.slow  # compiles four losses
def test_energy_sampler_prints_every_loss(tmp_path):
    text = run_example("energy_sampler", "--smoke", "--out", tmp_path)
    for name in ("pathwise KL", "TB", "TB, wider paths", "FL-SubTB", "exact draws"):
        assert f"\n{name} " in text
    assert (tmp_path / "energy_sampler.png").stat().st_size > 1_000
