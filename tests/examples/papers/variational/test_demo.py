"""The demo runs at smoke size, does what it says, and leaves files that can be read."""

import json

import numpy as np
import pytest
from _examples import run_example

FIGURES = ("samples", "reconstructions", "latents", "bounds", "gradient_variance")


def assert_is_picture(path):
    from matplotlib.image import imread

    picture = imread(path)
    assert min(picture.shape[:2]) > 150 and picture[..., :3].std() > 0.01


def read_tree(path):
    import xarray

    with xarray.open_datatree(path) as tree:
        return tree.load()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    text = run_example("papers/variational/demo", "--smoke", "--out", str(out))
    return text, out, json.loads((out / "metrics.json").read_text())


@pytest.mark.slow  # compiles the training step of three estimators
class TestDemo:
    def test_the_bound_rises_under_every_estimator(self, demo):
        for name, run in demo[2]["runs"].items():
            assert run["elbo"] > run["first_bound"] + 0.5, name
            assert run["iwelbo"] > run["elbo"], name

    def test_classes_agree_with_digits_beyond_chance(self, demo):
        assert demo[2]["runs"]["enum"]["accuracy"] > 0.25

    def test_estimators_differ_in_variance_and_agree_in_mean(self, demo):
        for table in demo[2]["gradients"].values():
            assert table["reinforce"]["variance"] > 2 * table["enum"]["variance"]
            assert all(np.isfinite(entry["variance"]) for entry in table.values())
            # The squared distance of means over its expectation; its spread is below 1 here.
            assert all(entry["distance"] < 6 for entry in table.values())

    def test_the_tree_holds_the_draws(self, demo):
        tree = read_tree(demo[1] / "posterior.nc")
        assert {"posterior", "posterior_predictive", "sample_stats", "observed_data"} <= set(
            tree.children
        )
        assert tree.posterior["z"].sizes["rows"] == tree.observed_data["x"].sizes["rows"] == 100
        assert np.isfinite(tree.sample_stats["log_weight"]).all()

    def test_the_figures_are_pictures(self, demo):
        for name in FIGURES:
            assert_is_picture(demo[1] / f"{name}.png")

    def test_the_report_says_what_was_measured(self, demo):
        text, out, metrics = demo
        assert (out / "report.txt").read_text().strip() in text
        assert f"{metrics['runs']['enum']['elbo']:.2f}" in text
        assert "strategies['k']" in text and "not comparable" in text
