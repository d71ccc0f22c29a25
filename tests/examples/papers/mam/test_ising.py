"""The Ising example: its rival without a model is unbiased, and the script at smoke size."""

import jax
import numpy as np
import pytest
import xarray
from _examples import load_example, run_example

from _stats import assert_unbiased
from lapilli import inference
from lapilli.models.ising import Ising


@pytest.fixture(scope="module")
def example():
    return load_example("papers/mam/ising")


@pytest.mark.slow
def test_particles_in_a_heat_bath_estimate_z(example, key):
    """Z from 16 particles, 2,000 runs; a bias of 3 % is more than 7 standard errors."""
    lattice = Ising(3, 4, coupling=0.2, field=0.2)
    chain = example.heat_bath(lattice)
    run = lambda key: inference.smc(chain, key, num_particles=16).log_evidence
    log_z = jax.jit(jax.vmap(run))(jax.random.split(key, 2000))
    assert_unbiased(np.exp(log_z - lattice.log_partition()), 1.0)


@pytest.mark.slow
def test_questions_are_the_golden_ones_on_ten_by_ten(example):
    """The learned side asks the exact model itself here."""
    lattice = Ising(10, 10, coupling=0.2, field=0.2)
    found = example.questions(lattice, lattice)
    exact = [-0.2985936, -1.3542565, -0.5381162, -1.8450731, -0.5971797, -2.3909592, -9.4198983]
    exact += [-57.6331438, -18.6880562]
    np.testing.assert_allclose([b for _, b in found.values()], exact, atol=1e-6)


@pytest.mark.slow  # compiles and runs the whole script
def test_the_script_learns_something_and_leaves_its_files(tmp_path):
    text = run_example("papers/mam/ising", "--smoke", "--out", tmp_path)
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    # 60 steps on 4 x 4; independent fair spins are at -11.1, the exact value is -12.60.
    assert -12.7 < float(rows["E[log p - log f]"][5]) < -11.6
    with xarray.open_datatree(tmp_path / "draws.nc") as tree:
        assert tree.posterior["spin"].sizes["site"] == 16
        assert set(np.unique(tree.posterior["spin"])) == {-1, 1}
    assert (tmp_path / "ising.png").stat().st_size > 10_000
    assert (tmp_path / "report.txt").read_text() in text
