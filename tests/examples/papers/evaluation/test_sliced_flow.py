"""Sliced distances with control variates, at smoke size."""

import json

import pytest
from _examples import run_example


@pytest.mark.slow  # hundreds of distances, and some flows
def test_controls_lower_variances_and_flows_come_nearer(tmp_path):
    pytest.importorskip("ot", reason="the exact distance needs the extra transport")
    run_example("papers/evaluation/sliced_flow", "--smoke", "--out", tmp_path)
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert all(row["both"] > 4 for row in found["ratios"].values())
    # No control is better than its correlation allows: the ratio of 60 repeats has a relative error of 26%.
    for name, row in found["ratios"].items():
        most = found["limits"][name.partition(",")[0]]
        assert all(row[c] < 3 * most[c] for c in most)
    start = 7.0  # of a standard Normal in 64 dimensions from images between 0 and 1
    assert all(max(ends) < start for ends in found["W2"].values())
    assert all((tmp_path / name).stat().st_size > 100 for name in ("sliced_flow.png", "report.txt"))
