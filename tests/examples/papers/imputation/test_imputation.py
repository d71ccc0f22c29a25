"""The imputation example at smoke size."""

import json

import numpy as np
import pytest
from _examples import run_example


@pytest.mark.slow  # compiles two training steps in a Python of its own
def test_imputation(tmp_path):
    options = [
        "--smoke",
        "--data",
        "ItalyPowerDemand",
        "--mechanism",
        "mnar",
        "--out",
        str(tmp_path),
    ]
    text = run_example("papers/imputation/speakers", *options)
    assert (tmp_path / "report.txt").read_text().strip() in text
    rows = json.loads((tmp_path / "metrics.json").read_text())
    for name in ("with ObsDropout", "without ObsDropout"):
        # Sixty steps of a tiny network: above chance, imputing better than the mean does.
        assert rows[name]["accuracy"] > 0.55 and rows[name]["mae"] < rows["zero"]["mae"]
        assert 0 < rows[name]["coverage"] <= 1 and rows[name]["ess"] >= 1
    assert rows["mask"]["accuracy"] < rows["interp"]["accuracy"]
    import xarray
    from matplotlib.image import imread

    with xarray.open_datatree(tmp_path / "imputed.nc") as tree:
        assert tree["posterior_predictive"]["x"].sizes["series"] == 1029
        np.testing.assert_allclose(
            tree["posterior_predictive"]["class_probs"].sum("class"), 1.0, rtol=1e-5
        )
    for figure in ("series", "training"):
        assert imread(tmp_path / f"{figure}.png")[..., :3].std() > 0.01
