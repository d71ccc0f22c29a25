"""Several models at once, the order of models, and how estimates show themselves."""

import jax
import numpy as np
import pytest

from lapilli.inference import evaluation
from lapilli.inference.evaluation import Estimate
from lapilli.inference.evaluation._ranks import _tau


@pytest.fixture(scope="module")
def comparison():
    draws = np.random.default_rng(0)
    x, near, far, other = draws.normal(size=(4, 120, 2))
    models = {"near": near, "far": 1.5 * far + 1.0}
    return evaluation.compare_samples(x, models, jax.random.key(0), held_out=other)


def test_every_metric_puts_the_nearer_model_first(comparison):
    assert list(comparison.estimates) == list(evaluation._compare.METRICS)
    better = {m: comparison.ranking(m)[0] for m in comparison.estimates}
    assert set(better.values()) - {"near"} <= {"far"}
    blind = {"recall"}  # of a wide law, which reaches everywhere
    assert {m for m, name in better.items() if name != "near"} <= blind
    assert all(e.floor is not None for row in comparison.estimates.values() for e in row.values())


def test_a_comparison_is_a_table_and_a_data_set(comparison):
    lines = repr(comparison).splitlines()
    assert len(lines) == 2 + 9 and lines[0].split() == ["metric", "near", "far", "real", "best"]
    data = comparison.to_xarray()
    assert data["value"].dims == ("metric", "model")
    found = data["value"].sel(metric="kernel", model="far").item()
    assert found == comparison.estimates["kernel"]["far"].value
    plain = comparison.estimates["frechet plain"]["near"]
    assert plain.value == comparison.estimates["frechet"]["near"].details["plain"]
    assert plain.exact is None and plain.floor is not None


def test_a_metric_that_was_not_computed_is_told(comparison):
    with pytest.raises(
        ValueError, match="ranking: metric 'kernels' was not computed. Did you mean 'kernel'"
    ):
        comparison.ranking("kernels")


def test_an_estimate_is_one_line():
    floor = Estimate(0.1, 0.05)
    found = Estimate(0.512, 0.031, floor, 0.0, "kernel_distance", (1_000, 500))
    assert repr(found) == (
        "kernel_distance 0.512 +- 0.031 (floor 0.1 +- 0.05, equal laws 0, 1,000 against 500 rows)"
    )
    assert "pass held_out=" in repr(Estimate(1.0, 0.1, sizes=(9, 9)))


def test_how_far_above_equality():
    assert Estimate(0.7, 0.1, exact=0.5).z == pytest.approx(2.0)
    assert Estimate(0.7, 0.3, Estimate(0.2, 0.4)).z == pytest.approx(1.0)
    assert np.isnan(Estimate(0.7, 0.1).z) and np.isnan(Estimate(0.5, 0.0, exact=0.5).z)
    assert Estimate(0.7, 0.0, exact=0.5).z == np.inf


def test_estimates_are_exported_and_drawn():
    estimates = {"a": Estimate(1.0, 0.1, Estimate(0.5, 0.2), 0.0, "m"), "b": Estimate(2.0, 0.3, exact=0.0, name="m")}  # fmt: skip
    data = evaluation.to_xarray(estimates)
    assert data["floor"].sel(name="a") == 0.5 and np.isnan(data["floor"].sel(name="b"))
    assert estimates["a"].to_xarray()["floor_error"] == 0.2
    (axis,) = evaluation.plot_estimates(estimates).axes
    assert [t.get_text() for t in axis.get_yticklabels()] == ["a", "b"]
    assert axis.get_xlabel() == "m"
    assert len(estimates["b"].plot().axes) == 1


def test_orders_of_models(key):
    names = "abcd"
    one = {n: Estimate(float(i), 0.01) for i, n in enumerate(names)}
    turned = {n: Estimate(-float(i), 0.01) for i, n in enumerate(names)}
    same = evaluation.rank_stability(one, one, key)
    assert (same.value, same.standard_error, same.details["probability"]) == (1.0, 0.0, 1.0)
    assert evaluation.rank_stability(one, turned, key).value == -1.0
    noisy = {n: Estimate(float(i), 10.0) for i, n in enumerate(names)}
    loose = evaluation.rank_stability(noisy, noisy, key)
    assert loose.value == 1.0 and loose.details["low"] < 0 and loose.details["probability"] < 0.2
    tied = {n: Estimate(0.0, 0.0) for n in names}
    assert evaluation.rank_stability(one, tied, key).value == 0.0
    # Of noisy values one order has no known mean of tau.
    assert (
        np.isnan(loose.z)
        and repr(loose).startswith("rank stability 1 +- ")
        and "(" not in repr(loose)
    )


def test_a_distance_and_a_coverage_that_agree_have_one_order(key):
    """The best model has the smallest distance and the largest coverage; of unnamed estimates no direction is known."""
    of = lambda name, sign: {n: Estimate(sign * i, 0.01, name=name) for i, n in enumerate("abcd")}
    far, covers, own = of("frechet_distance", 1.0), of("coverage", -1.0), of("", -1.0)
    assert evaluation.rank_stability(far, covers, key).value == 1.0
    assert evaluation.rank_stability(covers, far, key).details["low"] == 1.0
    assert evaluation.rank_stability(covers, covers, key).value == 1.0
    assert evaluation.rank_stability(far, own, key).value == -1.0
    with pytest.raises(ValueError, match="one has estimates of .*Give one metric of all models"):
        evaluation.rank_stability(far | {"a": covers["a"]}, far, key)


def test_tau_is_that_of_scipy():
    from scipy.stats import kendalltau

    a, b = np.random.default_rng(0).integers(0, 4, size=(2, 20, 6)).astype(float)  # with ties
    exact = [kendalltau(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(_tau(a, b), exact, rtol=1e-12)
