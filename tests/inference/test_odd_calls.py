"""Public functions given an argument that is none of its kind: each is refused in the library's words, or is no mistake."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _odd_calls import ODD, Call, outcomes

from lapilli import inference, ppl

evaluation, diagnostics, checks = (
    inference.evaluation,
    inference.diagnostics,
    inference.posterior_checks,
)
KEY = jax.random.key(0)
rng = np.random.default_rng(0)
A, B, C = (rng.normal(size=(80, 3)) for _ in range(3))
IMAGES, LABELS = rng.normal(size=(24, 8, 8)), np.arange(80) % 2
HITS = [np.arange(80) < n for n in (40, 50, 60)]
ROWS = {"real": A, "generated": B}
RIGHT = ("right", "right_shifted", "others", "others_shifted")
LABELLED = {**ROWS, "real_labels": LABELS, "generated_labels": LABELS, "key": KEY}
# What is a legal number, if an unusual one: function -> argument -> ways.
LEGAL = {
    "blur": {"width": {"float"}},
    "quantise": {"low": {"negative", "zero"}, "high": {"float", "zero", "huge"}},
    "rescale": {"factor": {"float", "huge"}},
    "sliced_wasserstein_flow": {"step_size": {"float", "huge"}},
    "plot_estimates": {"estimates": {"dict"}},
    "to_xarray": {"estimates": {"dict"}},
    "smc": {"args": {"list"}},
    "plot_smc": {"sites": {"list", "dict"}},
    "to_arviz": {
        "args": {"list", "dict", "ragged"},
        "groups": {"list", "dict"},
        "path": {"word", "path"},
        "coords": {"dict"},
        "dims": {"dict"},
        "constant_data": {"dict"},
    },
}


def gap(a, b):
    """A statistic of two samples."""
    return float(a.mean() - b.mean())


@pytest.fixture(scope="module")
def calls():
    @ppl.model
    def model(y=(0.0, 0.0)):
        z = ppl.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        ppl.sample("y", dist.Normal(z, 1.0).to_event(1), obs=np.array(y))

    def posterior(key, data):
        return {"z": data["y"] / 2 + 0.7 * jax.random.normal(key, (20, 2))}

    simulated = {
        "simulations": checks.simulate(model, posterior, KEY, num_simulations=20),
        "key": KEY,
    }
    cov = np.cov(A.T)
    two = {"a": evaluation.nearest_distance(A, B), "b": evaluation.nearest_distance(A, C)}
    return [
        Call(evaluation.attribution, {"samples": {"a": A, "b": B}, "key": KEY}),
        Call(evaluation.blur, {"images": IMAGES, "width": 1.0}),
        Call(evaluation.classification_accuracy_score, {**LABELLED, "test": C, "test_labels": LABELS}),
        Call(evaluation.classifier_test, {**ROWS, "key": KEY}),
        Call(evaluation.compare_samples, {"real": A, "generated": {"a": B, "b": C}, "key": KEY, "metrics": ("frechet",)}),
        Call(evaluation.effective_robustness, dict(zip(RIGHT, [HITS[0], HITS[0], HITS, HITS], strict=True))),
        Call(evaluation.expected_coverage, {"num_real": 10, "num_generated": 10, "k": 2}),
        Call(evaluation.fidelity_diversity, ROWS),
        Call(evaluation.frechet_distance, {**ROWS, "key": KEY}),
        Call(evaluation.frechet_of_moments, {"mean": A.mean(0), "cov": cov, "other_mean": B.mean(0), "other_cov": cov}),
        Call(evaluation.high_pass, {"images": IMAGES, "cutoff": 0.2}),
        Call(evaluation.intra_class_frechet, LABELLED),
        Call(evaluation.kernel_distance, ROWS),
        Call(evaluation.nearest_distance, ROWS),
        Call(evaluation.permutation_test, {"statistic": gap, **ROWS, "key": KEY, "num_permutations": 19}),
        Call(evaluation.plot_estimates, {"estimates": two}),
        Call(evaluation.quantise, {"images": IMAGES, "levels": 4, "low": -1.0, "high": 1.0}),
        Call(evaluation.rank_stability, {"one": two, "other": two, "key": KEY, "num_draws": 20}),
        Call(evaluation.rescale, {"images": IMAGES, "factor": 2.0}),
        Call(evaluation.sliced_wasserstein, {**ROWS, "key": KEY, "num_directions": 8}),
        Call(evaluation.sliced_wasserstein_flow, {"start": A, "real": B, "key": KEY, "num_steps": 2}),
        Call(evaluation.sliced_wasserstein_gradient, {"points": A, "real": B, "key": KEY}),
        Call(evaluation.spectral_gap, {"real": IMAGES, "generated": IMAGES}),
        Call(evaluation.to_xarray, {"estimates": two}),
        Call(diagnostics.expected_calibration_error, {"probs": np.full((4, 2), 0.5), "labels": np.arange(4) % 2}),
        Call(diagnostics.importance_diagnostics, {"log_weights": rng.normal(size=100)}),
        Call(checks.coverage, simulated),
        Call(checks.directions, simulated),
        Call(checks.tarp, simulated),
        Call(checks.vsbc, simulated),
        Call(checks.z_scores, {"simulations": simulated["simulations"]}),
        Call(checks.misspecification, {"simulated": {"y": A}, "observed": {"y": B[0]}, "key": KEY, "num_permutations": 19}),
        Call(checks.local_coverage, simulated),
    ]  # fmt: skip


def is_mistake(found):
    """Whether an outcome is other than a refusal; None where it is the default, and what is legal, are none."""
    is_legal = found.odd in LEGAL.get(found.call, {}).get(found.argument, ())
    is_default = found.odd == "None" and found.kind == "accepted"
    return found.kind != "refused" and not is_legal and not is_default


def particle_calls():
    @ppl.model
    def walk():
        def step(x, y):
            x = ppl.sample("x", dist.Normal(x, 1.0))
            ppl.sample("y", dist.Normal(x, 1.0), obs=y)
            return x, None

        ppl.scan(step, 0.0, jnp.zeros(3))

    result = inference.smc(walk, KEY, num_particles=8)
    particles = inference.particles
    return [
        Call(inference.smc, {"model": walk, "key": KEY, "num_particles": 8}),
        Call(inference.to_arviz, {"result": result, "key": KEY}),
        Call(particles.evidence_variance, {"result": result}),
        Call(particles.plot_smc, {"result": result, "sites": ["x"]}),
        Call(particles.replicate, {"run": functools.partial(inference.smc, walk, num_particles=8), "key": KEY, "num_runs": 2}),
        Call(particles.unique_ancestors, {"result": result}),
    ]  # fmt: skip


@pytest.mark.slow  # some 800 calls, those that are taken compile
def test_odd_arguments_of_particles_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # words are paths, too
    assert [*filter(is_mistake, outcomes(particle_calls()))] == []


@pytest.mark.slow  # some 3,000 calls
def test_odd_arguments_are_refused(calls):
    found = outcomes(calls)
    assert len(found) > 2500, collections.Counter(o.kind for o in found)
    assert [*filter(is_mistake, found)] == []


def test_odd_arguments_of_some_functions_are_refused(calls):
    some = [
        c
        for c in calls
        if c.name in ("frechet_of_moments", "fidelity_diversity", "coverage", "rank_stability")
    ]
    assert [*filter(is_mistake, outcomes(some))] == []


def test_what_is_accepted_and_what_breaks_is_told_apart():
    def careless(x: int = 1) -> float:
        return 1 / x

    found = {o.odd: o.kind for o in outcomes([Call(careless, {"x": 1})])}
    assert set(found) == set(ODD) and found["float"] == "accepted" and found["zero"] == "foreign"
