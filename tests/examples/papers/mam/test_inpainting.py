"""The inpainting example: its measures on known numbers, and the script at smoke size."""

import numpy as np
import pytest
import xarray
from _examples import load_example, run_example


@pytest.fixture(scope="module")
def example():
    return load_example("papers/mam/inpainting")


@pytest.mark.slow
def test_data_are_split_without_overlap_of_rows(example):
    x, test = example.data(example.Config())
    assert x.shape == (1500, 64) and test.shape == (297, 64) and set(np.unique(x)) == {0, 1}
    x, test = example.data(example.MNIST)
    assert x.shape == (4000, 784) and test.shape == (100, 784)


@pytest.mark.slow  # compiles and runs the whole script
def test_the_script_beats_independent_pixels_and_keeps_evidence(example, tmp_path):
    text = run_example("papers/mam/inpainting", "--smoke", "--out", tmp_path)
    value = {
        name: float(line.split(name)[1].split()[0])
        for line in text.splitlines()
        for name in ("independent pixels", "one order", "2 orders", "marginal network")
        if line.strip().startswith(name)
    }
    assert value["2 orders"] >= value["one order"] > value["independent pixels"]
    _, test = example.data(example.SMOKE)
    with xarray.open_datatree(tmp_path / "draws.nc") as tree:
        for i, (name, observed) in enumerate(example.masks(8).items()):
            draws = tree.posterior[name.replace(" ", "_")].to_numpy()[0]
            assert (draws[:, observed] == test[i][observed]).all()
    for name in ("inpainting", "consistency"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000
