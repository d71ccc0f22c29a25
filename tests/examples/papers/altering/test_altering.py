"""Scripts on altered models at smoke size."""

import json

import numpy as np
import pytest
from _examples import kept_by, load_example, run_example

pytestmark = pytest.mark.slow  # each trains several policies


def metrics(name, out):
    return kept_by(f"altering/{name}", out, "report.txt")


def test_every_way_to_a_tilt_of_strings(tmp_path):
    """60 steps: all policies are nearer than the model was; best of N and search are where their laws are."""
    found = metrics("strings", tmp_path)
    before = found["the model itself"]["KL to p*"][0]
    assert all(
        row["KL to p*"][0] < before / 2
        for name, row in found.items()
        if "leave" in name or "log-" in name
    )
    end = lambda name: found[name]["gradient variance, end"][0]
    assert end("reinforce, leave one out") < end("reinforce") / 2
    best = [found[f"best of {n}"]["KL to p*"] for n in (4, 16, 64)]
    np.testing.assert_allclose(best, [[0.8789, 0], [0.4171, 0], [0.3832, 0]], atol=1e-4)
    searched = [found[f"zero-order search, {n} moves"]["E r"][0] for n in (4, 64, 512)]
    assert searched == sorted(searched) and searched[-1] > found["resampling of 256"]["E r"][0]


def test_a_class_is_forgotten(tmp_path):
    found = metrics("forget", tmp_path)
    left = {name: row["left of the class"][0] for name, row in found.items()}
    assert abs(left["the model itself, exact"] - 1) < 0.2
    assert abs(left["particles, exact"] - left["draws without the class"]) < 0.05
    assert abs(found["particles, exact"]["log Z"][0] + 0.105) < 0.02


def test_rare_events_are_told(tmp_path):
    found = {
        name: {k: v[0] for k, v in row.items()} for name, row in metrics("rare", tmp_path).items()
    }
    mean, best = found["P(Z > 4.5), mean"], found["P(Z > 4.5), the optimum"]
    assert abs(mean["relative error"]) < 4.5 * mean["its standard error"]
    assert mean["narrow rays"] == 0 < best["narrow rays"]
    assert found["P(Z > 4.5), mean and width"]["width"] < 0.4


@pytest.mark.parametrize("by", ["labels", "examples"])
def test_a_learned_model_forgets_and_keeps_a_class(tmp_path, by):
    """At smoke size nothing is learned well: kept draws and particles have less of the class than the model, or more."""
    run_example("papers/altering/forget_learned", "--smoke", "--by", by, "--out", tmp_path)
    found = json.loads((tmp_path / "metrics.json").read_text())
    for way in ("draws that are kept", "particles"):
        if by == "labels":
            assert found[f"without it: {way}"]["share"][0] < 1
        else:
            shares = [found[f"alone: {name}"]["share"][0] for name in (way, "the model itself")]
            assert shares[0] > shares[1]


def test_a_discriminator_mends_a_wrong_reference_and_no_maximum(tmp_path):
    """In closed form: the musts that the loss has; on digits only that rounds run."""
    found = metrics("ddo", tmp_path)
    assert all(np.isfinite(row["nats, held out"][0]) for row in found.values())


def test_the_loss_of_a_discriminator_in_closed_form():
    found = load_example("papers/altering/_ddo_closed_forms").closed_forms()
    assert found["KL to the data, table"] < 1e-3 and found["KL to the data, line"] < 1e-3
    assert found["gradient at two modes' MLE"] < 1e-5
    assert abs(found["alpha where it turns, beta 1 (3)"] / 3 - 1) < 0.01
    assert abs(found["alpha where it turns, beta 0.5 (1.667)"] / (5 / 3) - 1) < 0.01


def test_chains_of_codes_have_the_law_of_the_tilt(tmp_path):
    found = metrics("ppgn", tmp_path)
    assert found["MALA, tau 0.08"]["worst share, errors"][0] < 4.5
    assert found["no prior"]["Frechet"][0] > 2 * found["MALA, tau 0.08"]["Frechet"][0]


def test_a_verifier_rises_with_what_a_search_spends(tmp_path):
    found = metrics("its_search", tmp_path)
    scores = [
        found[f"wide: {way}"]["verifier"][0] for way in ("one draw", "best of 4", "best of 8")
    ]
    assert scores == sorted(scores)


def test_codes_of_a_generator_are_controlled(tmp_path):
    found = metrics("promptgen", tmp_path)
    assert found["even, particles"]["KL to even"][0] < found["the generator"]["KL to even"][0] / 2
    assert (
        found["one class, particles"]["of the class"][0] > found["the generator"]["of the class"][0]
    )


def test_experts_of_noise_are_nearer_than_a_clean_classifier(tmp_path):
    found = metrics("ppap", tmp_path)
    exact = found["exact draws"]["class rate"][0]
    assert abs(found["p(y | x_t), weighted"]["class rate"][0] - exact) < 0.1
    assert found["p(y | x_t)"]["KL of p(y | x_t)"][0] < 1e-4
