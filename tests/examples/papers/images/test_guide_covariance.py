"""Correlated codes in a VAE's guide: the script at smoke size."""

import numpy as np
import pytest
from _examples import load_example


@pytest.mark.slow  # compiles two models
def test_the_script_runs(tmp_path):
    scores = load_example("papers/images/guide_covariance").main(
        ["--smoke", "--out", str(tmp_path)]
    )
    for (one,) in scores.values():
        # The weighted bound is the tighter one; 196 pixels at chance are 136 nats.
        assert np.isfinite(one).all() and -200 < one.elbo < one.iwelbo < 0
    assert (tmp_path / "guide_covariance.png").exists()
    assert (tmp_path / "guide_covariance.nc").exists()
