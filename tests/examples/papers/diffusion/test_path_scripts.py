"""Scripts on paths, views and curves at smoke size."""

import pytest
from _examples import kept_by

pytestmark = pytest.mark.slow  # each trains networks


def metrics(name, out):
    (found,) = kept_by(f"diffusion/{name}", out, "report.txt")
    return found


def test_poisson_flows_of_digits_run(tmp_path):
    found = metrics("poisson_flow", tmp_path)
    distances = [found[f"distance to Normal, D = {d}"] for d in (1, 8, 64, 512)]
    assert distances == pytest.approx([0.59, 0.32, 0.11, 0.015], abs=0.011)  # by simulation
    for row in ("D = 16", "D = infinite"):
        few, wrong = (found[f"{row}, 12 steps, alpha = {alpha}"] for alpha in ("0", "1.6"))
        assert found["real images"] < few < wrong
    assert (tmp_path / "poisson_flow.png").stat().st_size > 100


def test_fitted_paths_have_the_least_kinetic_energy(tmp_path):
    found = metrics("kinetic_paths", tmp_path)
    for name in ("digits", "10 digits", "20 points of 3,072", "ring"):
        least, *others = (found[f"{name}: energy, {way}"] for way in ("optimal", "conditional OT", "cosine"))  # fmt: skip
        assert least < 1.01 * min(others)
        assert abs(least - found[f"{name}: energy by its formula"]) < 0.05 * least  # 60 angles
    assert (tmp_path / "kinetic_paths.png").stat().st_size > 100


def test_every_noise_carries_one_law_to_the_other(tmp_path):
    found = metrics("interpolants", tmp_path)
    # Two sets of 4,000 exact draws: 0.007, standard deviation 0.005.
    for noise in ("0", "0.5", "2"):
        assert found[f"exact, eps = {noise}"] < 0.06 + 0.01
    errors = [found[f"log density, nats, eps = {noise}"] for noise in ("0", "0.5")]
    assert errors[0] < 0.1 and errors[1] < 0.3
    assert (tmp_path / "interpolants.png").stat().st_size > 100


def test_thin_digits_become_thicker(tmp_path):
    found = metrics("translation", tmp_path)
    distance = lambda name: found[f"{name}: distance to other thick digits"]
    for name in ("random pairs", "optimal transport", "bridge"):
        assert distance(name) < distance("left as it is")  # 200 steps
    assert found["thickened: squared distance to the digit thickened"] == 0
    assert (tmp_path / "translation.png").stat().st_size > 100


def test_views_say_what_they_do_not_show(tmp_path):
    found = metrics("views", tmp_path)
    assert found["halves: directions that no second view shows"] == 0
    assert found["each fourth in neither: directions that no second view shows"] == 4
    assert found["halves: error of the covariance"] < 1


def test_noise_helps_to_find_a_curve(tmp_path):
    found = metrics("curve", tmp_path)
    assert found["circle, 100 points, noise 0.1: W1"] < 0.5
    assert all(value > 0 for value in found.values())
