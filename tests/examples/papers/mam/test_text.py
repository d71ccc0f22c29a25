"""The text example: its measures on known numbers, and the script at smoke size."""

import numpy as np
import pytest
import xarray
from _examples import load_example, run_example


@pytest.fixture(scope="module")
def example():
    return load_example("papers/mam/text")


def test_thinning_keeps_values_that_are_far_apart():
    thinned = load_example("papers/mam/_two_stages").thinned
    assert thinned(np.array([3.0, 0.0, 8.1, 5.5, 20.0]), 5.0).tolist() == [1, 3, 4]
    assert thinned(np.array([1.0, 1.0]), 5.0).tolist() == [0]


def test_lines_are_text_and_test_lines_come_later(example):
    x, test = example.data(example.FULL)
    assert x.shape[1] == test.shape[1] == 32 and x.max() == 26 and x.min() == 0
    assert x.shape[0] > 30_000 and len(test) == 200
    assert np.array_equal(x[0, 8:], x[1, :-8])
    assert " the " in " ".join(example.text_of(row, example.ALPHABET) for row in x[:50])
    known = np.array([True, True, False])
    assert example.text_of(np.array([1, 0, 26]), example.ALPHABET, known) == "a _"


def test_counts_learn_what_follows_what(example):
    """In a cycle of three letters one symbol of context says all; the first of a line has its frequency only, or is given."""
    rows = (np.arange(30) + np.arange(300)[:, None]) % 3
    count = lambda *options: example.backoff(rows, rows[:9], 3, *options)
    np.testing.assert_allclose(count(0), -30 * np.log(3), atol=0.1)
    np.testing.assert_allclose(count(2), -np.log(3), atol=0.1)
    np.testing.assert_allclose(count(2, 1), 0, atol=0.1)


@pytest.mark.slow  # compiles and runs the whole script
def test_the_script_beats_nothing_known_and_keeps_evidence(example, tmp_path):
    text = run_example("papers/mam/text", "--smoke", "--out", tmp_path)
    bits = {
        line.split("  ")[1].strip(): float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith(("  any order", "  frequency"))
    }
    # The mixture's orders are not those of single rows: either may come out ahead by a little.
    assert bits["any order, 2"] < bits["any order, one"] + 0.1 and bits["any order, one"] < np.log2(
        27
    )
    _, test = example.data(example.SMOKE)
    with xarray.open_datatree(tmp_path / "draws.nc") as tree:
        draws = tree.posterior["every_other_character"].to_numpy()[0]
    assert (draws[:, ::2] == test[1][::2]).all()
    assert (tmp_path / "text.png").stat().st_size > 5_000
