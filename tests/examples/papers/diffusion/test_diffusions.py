"""Scripts on diffusion models at smoke size."""

import pytest
from _examples import kept_by

pytestmark = pytest.mark.slow  # each trains a network or compiles many runs


def metrics(name, out):
    """What the script finds, once it has run without warnings of ours."""
    found = kept_by(f"diffusion/{name}", out)
    for pattern in ("*.png", "*.nc", "report.txt"):
        assert all(f.stat().st_size > 100 for f in out.glob(pattern)) and any(out.glob(pattern))
    return found


def test_weights_bring_added_scores_to_the_product(tmp_path):
    found = metrics("composition", tmp_path)
    plane = found["plane"]["2"]
    assert plane["exact draws"] < plane["FKC"] < 0.9 * plane["scores added"]
    # 400 steps of training: asked for ink, more of it comes than a class alone gives.
    assert found["digits"]["scores added"]["ink"] > found["digits"]["class alone"]["ink"]


def test_weights_give_cold_digits_their_shares(tmp_path):
    found = metrics("cold_digits", tmp_path)
    classes = lambda row: max(found[row]["classes"])
    assert classes("exact, FKC, automatic zeta") < 0.6 * classes("exact, scores doubled")
    assert max(map(abs, found["exact, FKC, automatic zeta"]["log Z error"])) < 1


def test_samplers_schedules_and_a_code_compare(tmp_path):
    """400 steps of training: nothing is asked but that long steps of Heun do not bear the start of the cosine schedule."""
    found = metrics("samplers", tmp_path)
    distance = {name: row["Frechet"] for name, row in found.items()}
    assert distance["real"] < min(v for name, v in distance.items() if name != "real")
    assert all(found[f"w = 0, {name}, 5"]["accuracy"] > 0.4 for name in ("DDPM", "DDIM", "Heun"))
    assert distance["cosine, Heun, 5"] > 10 * distance["cosine, DDIM, 5"]


def test_annealing_of_a_learned_molecule_runs(tmp_path):
    """A network of 60 steps knows nothing: only that reference samples cool down is asked."""
    found = metrics("lennard_jones", tmp_path)
    mean = lambda row: found[row]["mean energy"]
    assert mean("cold, molecular samples") < mean("warm, molecular samples") - 10
    assert found["warm, molecular samples"]["distance W2"] < 0.1


def test_the_smallest_denoising_error_classifies(tmp_path):
    found = metrics("diffusion_classifier", tmp_path)
    paired, independent = (found[f"Gaussians, {kind}"] for kind in ("paired", "independent"))
    assert paired["10"] > 0.9 and paired["3"] >= independent["3"]
    assert (
        found["Gaussians, eliminated"]["accuracy"] > 0.9 and found["Gaussians, bound"]["10"] > 0.9
    )
    order = {name: row["all"] for name, row in found.items() if "relations" in name}
    assert order["relations, logistic, pooled"] == 0.5
    assert (
        min(order[f"relations, {row}"] for row in ("Gaussians, paired, 10", "logistic, in places"))
        > 0.95
    )


def test_a_diffusion_prior_of_codes_is_better_than_a_normal_one(tmp_path):
    """150 steps of training, held out: each stage gains."""
    found = {name: row["held out"][0] for name, row in metrics("latent_prior", tmp_path).items()}
    normal, after, together = found.values()
    assert together > after + 0.05 and after > normal + 0.5


def test_search_leaves_the_tilt_and_steering_finds_it(tmp_path):
    found = metrics("search", tmp_path)
    tilt = lambda row: found[row]["tilt"]
    assert tilt("steering, N = 16") < tilt("steering, N = 1") < tilt("best of N, N = 16")
    assert found["best of N, N = 16"]["verifier"] > found["steering, N = 16"]["verifier"]
