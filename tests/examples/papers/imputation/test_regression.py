"""The example of a regression on a table with holes at smoke size."""

import json

import pytest
from _examples import run_example


@pytest.mark.slow  # compiles in a Python of its own
def test_regression(tmp_path):
    text = run_example("papers/imputation/regression", "--smoke", "--out", str(tmp_path))
    assert (tmp_path / "report.txt").read_text().strip() in text
    scores = json.loads((tmp_path / "metrics.json").read_text())
    pooled, one = scores["pooled tables"], scores["one completed table"]
    # One punched table: five slopes, correlated. What is said of one completed table is next to nothing.
    assert pooled["distance"] < 2.5 * pooled["said"] and one["said"] < 0.5 * pooled["said"]
