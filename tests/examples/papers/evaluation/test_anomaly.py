"""The tenth digit as an anomaly, at smoke size."""

import json

import pytest
from _examples import run_example


@pytest.mark.slow  # trains a model
def test_a_digit_that_was_left_out_is_found(tmp_path):
    run_example("papers/evaluation/anomaly", "--smoke", "--out", tmp_path)
    (row,) = json.loads((tmp_path / "metrics.json").read_text()).values()
    for bound in ("ELBO", "IWELBO", "blurred"):
        area, error = row[bound]
        assert area - 4.5 * error > 0.5  # chance, and 7e-6 of false alarm
    assert all((tmp_path / f"anomaly.{end}").stat().st_size > 100 for end in ("png", "nc"))
