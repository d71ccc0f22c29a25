"""The random tables: their scale, what counts as an error, and the script at smoke size."""

import numpy as np
import pytest
import xarray
from _examples import load_example
from scipy.special import logsumexp


@pytest.fixture(scope="module")
def example():
    return load_example("papers/mam/random_tables")


def test_the_leading_state_has_the_stated_probability(example):
    table = example.random_table(6, 3)
    assert table.shape == (2,) * 6
    np.testing.assert_allclose(np.exp(table.max() - logsumexp(table)), 0.38, rtol=1e-6)


def test_the_larger_error_counts(example):
    """Off by 0.03 in both tables, with errors 0.01 and 0.02, and 0.03 and 0.015."""
    total, unseen, times = (0.9, 0.4, 0.02), (0.7, 0.1, 0.0), (8.0, 10.0, 15.0)
    row = example.Row(*total, *unseen, 1.1, 1.03, 0.01, 0.02, 0.02, *times)
    rows = [row, row._replace(ratio=0.97, own=0.03, both=0.015, tv_anneal=0.04, time_anneal=25.0)]
    found = example.summary(rows)
    np.testing.assert_allclose(found["in own errors, largest"], 3.0)
    np.testing.assert_allclose(found["in errors, largest"], 1.5)
    np.testing.assert_allclose(found["TV of anneal, mean"], 0.03)
    np.testing.assert_allclose(found["Z-hat / Z of energy, least"], 1.1)
    np.testing.assert_allclose(found["time over that of energy, largest"], 2.5)


@pytest.mark.slow  # six trainings
def test_the_script_keeps_the_modes_and_leaves_its_files(example, tmp_path, capsys):
    """Two tables of 32 states, which a tempering run of 400 particles lists."""
    rows = example.main(["--smoke", "--out", str(tmp_path)])
    assert len(rows) == 2 and max(row.tv_anneal for row in rows) < 0.1
    assert all(row.tv_energy > row.tv_anneal for row in rows)
    assert "in errors, largest" in capsys.readouterr().out
    with xarray.open_dataset(tmp_path / "random_tables.nc") as found:
        np.testing.assert_array_equal(found["tv_own"], [row.tv_own for row in rows])
    assert (tmp_path / "random_tables.png").stat().st_size > 5_000
    with pytest.raises(SystemExit):
        example.main(["--smoke", "--record", "--out", str(tmp_path)])
