"""Directions of a code: what the matching measures, and the script at smoke size."""

import numpy as np
import pytest
from _examples import load_example


def test_turned_directions_are_matched_with_the_factors_that_they_follow():
    example = load_example("papers/structure/directions")
    factors = np.random.default_rng(0).uniform(-1, 1, (4000, 4))
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 4)))[0]
    codes = factors @ turn.T
    np.testing.assert_allclose(example.matched(codes, turn, factors), 1.0, rtol=1e-6)
    # In another order, with a sign: the same. A rotation of two of them by 45 degrees: 1 / sqrt(2) for these two.
    mixed = turn[:, [2, 0, 3, 1]] * np.array([1, -1, 1, 1])
    np.testing.assert_allclose(example.matched(codes, mixed, factors), 1.0, rtol=1e-6)
    mixed = np.stack([turn[:, 0] + turn[:, 1], turn[:, 0] - turn[:, 1], *turn.T[2:]], 1)
    found = example.matched(codes, mixed / np.linalg.norm(mixed, axis=0), factors)
    # A correlation of independent factors has the standard error 1 / sqrt(4000).
    np.testing.assert_allclose(found, [0.5**0.5] * 2 + [1.0] * 2, atol=4.5 / 4000**0.5)


@pytest.mark.slow  # compiles three models
def test_the_script_runs(tmp_path):
    found = load_example("papers/structure/directions").main(["--smoke", "--out", str(tmp_path)])
    for one in found.values():
        assert np.isfinite(one.nats).all()
        assert all(c.shape == (2, 4) and (c <= 1).all() for c in one.correlations.values())
    assert (tmp_path / "directions.png").exists() and (tmp_path / "directions.nc").exists()
