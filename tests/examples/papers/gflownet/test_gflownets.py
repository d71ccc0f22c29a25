"""The GFlowNet scripts at smoke size."""

import pytest
import xarray
from _examples import run_example


@pytest.mark.slow  # compiles four losses on two problems
def test_sets_prints_every_loss_and_draws(tmp_path):
    text = run_example(
        "papers/gflownet/sets", "--smoke", "--out", tmp_path, "--sizes", "twelve", "small"
    )
    for name in (
        "FL-DB",
        "DB",
        "SubTB",
        "TB",
        "TB, log Z estimated",
        "exact draws",
        "FL-DB, 2 steps of each",
    ):
        assert f"  {name} " in text
    learned = xarray.open_datatree(tmp_path / "small_TB.nc")
    assert (learned["posterior/sets"].sum("item") == 20).all()
    again = run_example("papers/gflownet/sets", "--smoke", "--out", tmp_path, "--sizes", "small")
    assert again.splitlines()[2:] == text[text.index("small:") :].splitlines()[2:]  # read, not run
    assert (tmp_path / "sets.png").stat().st_size > 1_000


@pytest.mark.slow  # compiles a fit, a particle run and the export
def test_structure_has_an_unbiased_evidence(tmp_path):
    text = run_example("papers/gflownet/structure", "--smoke", "--out", tmp_path)
    assert "25 graphs" in text
    words = text.split("Z-hat / Z = ")[1].split()
    # Five runs of 200 particles: within 8 of their own standard errors (Student t, 4 degrees of freedom, 1e-3).
    assert abs(float(words[0]) - 1) < 8 * float(words[2]) + 1e-3
    for name in ("report.txt", "structure.png", "posterior.nc"):
        assert (tmp_path / name).stat().st_size > 100


@pytest.mark.slow  # compiles four losses
def test_energy_sampler_prints_every_loss(tmp_path):
    text = run_example("papers/gflownet/energy_sampler", "--smoke", "--out", tmp_path)
    for name in ("pathwise KL", "TB", "TB, wider paths", "FL-SubTB", "exact draws"):
        assert f"\n{name} " in text
    assert (tmp_path / "energy_sampler.png").stat().st_size > 1_000


@pytest.mark.slow  # compiles four losses in two orders
def test_bits_prints_every_loss_and_draws(tmp_path):
    text = run_example("papers/gflownet/bits", "--smoke", "--out", tmp_path)
    assert text.count("FL-SubTB") == 2 and "nats from" in text
    tree = xarray.open_datatree(tmp_path / "append_TB.nc")
    # Both divergences from the target are means of 60 log-weights, and not far from those of uniform strings at the start.
    away = float(text.split("strings are ")[1].split()[0])
    assert abs(float(tree["curves/forward_kl"][0].mean()) - away) < 0.5 * away
    assert (tmp_path / "bits.png").stat().st_size > 1_000


@pytest.mark.slow  # compiles three losses
def test_phylogeny_learns_every_law_some_way(tmp_path):
    text = run_example("papers/gflownet/phylogeny", "--smoke", "--out", tmp_path)
    assert "105 rooted trees" in text
    laws = xarray.open_datatree(tmp_path / "posterior.nc")["laws"]
    for name in ("exact", "FL-DB", "DB", "TB"):
        assert abs(float(laws[name].sum()) - 1) < 1e-4 and f"\n{name} " in text
    assert (tmp_path / "phylogeny.png").stat().st_size > 1_000
