"""The molecules example: its grammar and its coding on known strings; with the data, the script at smoke size."""

import importlib.metadata
import importlib.util

import numpy as np
import pytest
import xarray
from _examples import load_example, run_example

GOOD = [
    "CCCS(=O)c1ccc2[nH]c(=NC(=O)OC)[nH]c2c1",
    "CC1C2CCC(C2)C1CN(CCO)C(=O)c1ccc(Cl)cc1",
    "N#CC=CC=1C=CC=CC1Br",
]
BAD = {
    "no end of a bracket": "CC(C",
    "no start of a bracket": "CC)C(",
    "a ring that stays open": "C1CC",
    "an empty bracket": "CC()C",
    "two bonds": "C=#C",
    "a bond at the end": "CC=",
    "a bond at the start": "=CC",
    "a ring after a bracket": "C(1)C1",
    "a blank inside": "CC CC",
    "half an atom": "CC[nH",
    "nothing": "",
}


@pytest.fixture(scope="module")
def example():
    return load_example("papers/mam/molecules")


def test_the_grammar_knows_good_from_bad(example):
    assert all(map(example.is_well_formed, GOOD))
    assert [name for name, smiles in BAD.items() if example.is_well_formed(smiles)] == []


def test_rows_are_tokens_and_read_back_as_the_strings(example):
    x, test, symbols = example.encode(GOOD[:2], GOOD[2:])
    assert symbols[0] == " " and {"Cl", "Br", "[nH]", "("} < set(symbols)
    assert x.shape == (2, 37) and test.shape == (1, 37)
    texts = ["".join(symbols[i] for i in row).rstrip() for row in (*x, *test)]
    assert texts == GOOD
    observed = example.masks(test[0])
    assert observed["a fragment in the middle"].sum() == example.FRAGMENT
    assert (observed["a fragment in the middle"] != observed["a gap in the middle"]).all()


def test_without_the_data_the_error_says_how_to_get_them(example, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ImportError, match="molsets, which is not installed.*--no-deps molsets"):
        example.read("train", 1)


needs_data = pytest.mark.skipif(
    importlib.util.find_spec("moses") is None, reason="molsets is not installed"
)


@needs_data
def test_molecules_of_the_data_are_well_formed(example):
    assert all(map(example.is_well_formed, example.read("train", 20_000)))


@needs_data
@pytest.mark.slow  # compiles and runs the whole script
def test_the_script_beats_nothing_known_and_keeps_evidence(example, tmp_path):
    text = run_example("papers/mam/molecules", "--smoke", "--out", tmp_path)
    nats = {
        line.split("  ")[1].strip(): float(line.split()[-3])
        for line in text.splitlines()
        if line.startswith("  any order, ")
    }
    x, test, symbols = example.encode(
        example.read("train", 5_000), example.read("test", example.SMOKE.num_test)
    )
    uniform = x.shape[1] * np.log(len(symbols))
    # The mixture's orders are not those of single rows: either may come out ahead by a little.
    assert nats["any order, 2"] < nats["any order, one"] + 2 and nats["any order, one"] < uniform
    with xarray.open_datatree(tmp_path / "draws.nc") as tree:
        draws = tree.posterior["a_gap_in_the_middle"].to_numpy()[0]
    observed = example.masks(test[0])["a gap in the middle"]
    assert (draws[:, observed] == test[0][observed]).all()
    assert (tmp_path / "molecules.png").stat().st_size > 5_000
