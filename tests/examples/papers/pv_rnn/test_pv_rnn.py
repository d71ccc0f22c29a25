"""The PV-RNN examples: the machine's exact numbers, and the scripts at smoke size."""

import itertools

import numpy as np
import pytest
from _examples import load_example


@pytest.fixture(scope="module")
def machine():
    return load_example("papers/pv_rnn/machine")


def test_block_entropies_of_the_machine(machine):
    """H_n grows by the entropy rate from n = 2 on; sizes of the support."""
    known = {1: 0.684616, 2: 0.989949, 3: 1.255542, 4: 1.521135, 8: 2.583508, 12: 3.645881}
    sizes = {1: 2, 2: 3, 3: 4, 4: 5, 8: 16, 12: 49}
    np.testing.assert_allclose(machine.RATE, 0.2655932, atol=1e-7)
    for n, entropy in known.items():
        p = machine.law_of_strings(n)
        legal = p[p > 0]
        np.testing.assert_allclose(-(legal * np.log(legal)).sum(), entropy, atol=1e-6)
        assert legal.size == sizes[n]
    triples = machine.law_of_strings(3)[[0b001, 0b010, 0b100, 0b101]]
    np.testing.assert_allclose(triples, [0.13043, 0.43478, 0.13043, 0.30435], atol=1e-5)


def test_strings_and_their_floor(machine):
    """Sampled strings are possible ones, of the right frequency of 1; the machine's own loss has the mean of its rate."""
    rng = np.random.default_rng(0)
    symbols = machine.strings(rng, 400, 30)
    from lapilli.models import pv_rnn

    assert pv_rnn.ngram_divergence(machine.law_of_strings(12), symbols[..., 0], 12).illegal == 0
    ones = symbols[:, 0, 0]
    assert abs(ones.mean() - 0.4347826) < 4.5 * ones.std() / np.sqrt(ones.size)
    losses = machine.floor_of(symbols)
    assert abs(losses.mean() - machine.RATE) < 4.5 * losses.std() / np.sqrt(losses.size)


@pytest.mark.slow  # the training loop, two filters and the skeleton are compiled: 20 s of CPU
def test_machine_at_smoke_size(machine, tmp_path, capsys):
    data = machine.main(["--smoke", "--out", str(tmp_path)])
    assert (tmp_path / "machine.nc").exists() and (tmp_path / "machine.png").exists()
    out = capsys.readouterr().out
    assert "0.26559" in out and "positive exponents" in out
    for method in ("regression", "particles"):
        # Nothing can be below the machine itself; after 30 steps networks are far above it.
        assert float(data[f"excess_{method}"].min()) > 0.1
    assert np.all(np.isfinite(data.to_array()))


@pytest.mark.slow  # two fits and three filters are compiled: 40 s of CPU
def test_motions_at_smoke_size(tmp_path, capsys):
    data = load_example("papers/pv_rnn/motions").main(["--smoke", "--out", str(tmp_path)])
    assert (tmp_path / "motions.nc").exists() and (tmp_path / "motions.png").exists()
    assert capsys.readouterr().out.count(" is chosen") == 3
    assert np.all(np.isfinite(data.mse)) and np.all(np.isfinite(data.nll))
    assert data.mse.shape == (5, 2, 2, 5)
    for one, other in itertools.combinations(data.mse.values, 2):
        assert not np.allclose(one, other)


@pytest.fixture(scope="module")
def patterns():
    return load_example("papers/pv_rnn/patterns")


@pytest.mark.slow  # chains of 36 and 48 states are compiled
def test_drawings_are_read_and_their_floor_is_known(patterns, machine):
    """Drawings are read back curve by curve; the machine's loss is its entropy by step: of choices and of the hand."""
    x, labels = patterns.drawings(np.random.default_rng(0), 100, 8)
    found, whole = patterns.read(x[:4])
    for row, expected in zip(found, labels, strict=False):
        np.testing.assert_array_equal(row, expected)
    assert np.all(whole == 1)
    losses = patterns.exact_loss(x)
    hand = 2 * (0.5 + 0.5 * np.log(2 * np.pi) + np.log(patterns.NOISE))
    error = losses.std() / np.sqrt(losses.size)
    assert abs(losses.mean() - (machine.RATE / patterns.POINTS + hand)) < 4.5 * error


@pytest.mark.slow  # a fit, two chains and two filters are compiled: 30 s of CPU
def test_patterns_at_smoke_size(patterns, tmp_path, capsys):
    data = patterns.main(["--smoke", "--out", str(tmp_path)])
    assert (tmp_path / "patterns.nc").exists() and (tmp_path / "patterns.png").exists()
    assert "more information at the choice" in capsys.readouterr().out
    for method in ("regression", "particles"):
        assert float(data[f"excess_{method}"].min()) > 0.1  # after 20 steps far above the machine
    assert float(data.whole.max()) < 0.5
