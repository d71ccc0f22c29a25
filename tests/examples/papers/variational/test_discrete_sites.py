"""The examples with discrete sites, air.py, discrete_vae.py and mixture.py, at smoke size."""

import arviz
import numpy as np
import pytest
from _examples import load_example
from scipy.special import logsumexp
from scipy.stats import norm


def assert_is_picture(path):
    from matplotlib.image import imread

    picture = imread(path)
    assert min(picture.shape[:2]) > 150 and picture[..., :3].std() > 0.01


@pytest.mark.slow  # reads 5,000 images from text, twice
def test_scenes_are_the_same_every_time_and_show_what_they_count():
    scenes = load_example("papers/variational/_air_scenes")
    one, two = scenes.make_scenes(60, 30), scenes.make_scenes(60, 30)
    np.testing.assert_array_equal(one.train, two.train)
    assert one.train.shape == (60, 2500) and one.train.min() >= 0 and one.train.max() <= 1
    ink = one.train.sum(1)
    assert np.all((ink > 0) == (one.train_counts > 0))
    assert ink[one.train_counts == 2].mean() > 1.5 * ink[one.train_counts == 1].mean()


def test_resizing_keeps_the_mean():
    matrix = load_example("papers/variational/_air_scenes")._resize(20, 13)
    np.testing.assert_allclose(matrix.sum(1), 1.0)
    np.testing.assert_allclose(matrix.sum(0), 13 / 20)


@pytest.mark.slow  # compiles four training steps and nine gradients
def test_air(tmp_path):
    runs = load_example("papers/variational/air").main(["--smoke", "--out", str(tmp_path)])
    for run in runs.values():
        values = run.fit.history["value"]
        assert values[-10:].mean() > values[:10].mean()
        assert np.all((run.accuracy >= 0) & (run.accuracy <= 1))
    tree = arviz.from_netcdf(tmp_path / "posterior.nc")
    assert tree["posterior"]["windows"].sizes["images"] == 64
    assert tree["constant_data"]["true_count"].size == 64
    for name in ("scenes", "learning", "gradient_variance"):
        assert_is_picture(tmp_path / f"{name}.png")


@pytest.mark.slow  # compiles six training steps and nine gradients
def test_discrete_autoencoder(tmp_path):
    runs, gradients = load_example("papers/variational/discrete_vae").main(
        ["--smoke", "--out", str(tmp_path)]
    )
    for name, run in runs.items():
        values = run.fit.history["value"]
        assert values[-20:].mean() > values[:20].mean() and run.iwelbo > run.elbo, name
        if name != "concrete":
            # The squared distance of means over its expectation; its spread is below 1 here.
            assert gradients[name].distance < 6, name
    assert gradients["DisARM"].variance < gradients["no baseline"].variance
    assert "concrete (biased)" in (tmp_path / "report.txt").read_text()
    for name in ("estimators", "images"):
        assert_is_picture(tmp_path / f"{name}.png")


@pytest.fixture(scope="module")
def mixture():
    return load_example("papers/variational/mixture")


@pytest.mark.slow
def test_rows_of_the_mixture_have_the_density_of_the_formula(mixture):
    marginal, _ = mixture.make_programs(3, 2)
    rng = np.random.default_rng(0)
    weights, means = rng.dirichlet(np.ones(3)), rng.normal(size=(3, 2))
    scales, x = rng.uniform(0.5, 2.0, (3, 2)), rng.normal(size=(7, 2))
    parts = norm.logpdf(x[:, None], means, scales).sum(-1) + np.log(weights)
    drawn = {"logits": np.log(weights), "means": means, "scales": scales}
    np.testing.assert_allclose(
        mixture.row_log_density(marginal, drawn, x), logsumexp(parts, 1), rtol=1e-5
    )
    np.testing.assert_allclose(
        marginal.posterior_probs(drawn, x)["component"],
        np.exp(parts - logsumexp(parts, 1, keepdims=True)),
        atol=1e-5,
    )


@pytest.mark.slow  # compiles two fits of four starts
def test_mixture_is_as_good_as_expectation_maximisation(mixture, tmp_path):
    table = mixture.main(["--smoke", "--out", str(tmp_path)])
    reference = table[5]["GaussianMixture"].log_density.mean()
    for name in ("lapilli, all rows", "lapilli, minibatches"):
        assert table[5][name].log_density.mean() > reference - 0.2
    assert "means" in arviz.from_netcdf(tmp_path / "posterior.nc")["posterior"]
    for name in ("held_out", "components"):
        assert_is_picture(tmp_path / f"{name}.png")
