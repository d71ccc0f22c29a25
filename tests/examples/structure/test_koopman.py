"""Koopman autoencoders beside independent codes, at smoke size."""

import numpy as np
import pytest
from _examples import load_example


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of aeon's and numba's
def test_the_script_runs(tmp_path):
    pytest.importorskip("aeon")
    scores = load_example("structure/koopman").main(["--smoke", "--out", str(tmp_path)])
    assert len(scores) == 3
    for (_, _, kind), rows in scores.items():
        assert np.isfinite(rows[:, :3]).all()
        assert np.isfinite(rows[:, 3]).all() == (kind != "real series")
    assert (tmp_path / "koopman.png").exists() and (tmp_path / "koopman.nc").exists()
