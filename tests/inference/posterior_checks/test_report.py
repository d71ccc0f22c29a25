"""The report: what it says, its tree, its picture; posteriors from guides and samplers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from _planted import planted, posterior_draws

from lapilli import inference, ppl
from lapilli.inference import posterior_checks as pc
from lapilli.inference.posterior_checks import _words

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def report():
    at = np.array([0.5, 9.0])
    draws = posterior_draws(np.random.default_rng(0), "pulled", at[None], 200)[0]
    return pc.check_simulations(planted("pulled"), KEY, observed={"x": at}, draws={"m": draws})


def test_the_report_is_short_and_printing_it_says_all(report):
    assert len(repr(report).splitlines()) <= 10
    text = str(report)
    assert all(f"- {sentence}." in text for sentence in report.sentences)
    assert "objects" in text and report.objections == tuple(
        n for n, p in report.corrected.items() if p < 0.05
    )
    quiet = pc.check_simulations(planted("right", 5, num=100), KEY)
    assert quiet.sentences == () and "No check objects" in str(quiet)


def test_data_that_the_model_does_not_predict_are_told_beside(report):
    assert "model" in report.objections
    assert any("unlike the model's predictions" in sentence for sentence in report.sentences)


def test_holm_corrects_step_by_step():
    assert _words.holm({"a": 0.02, "b": 0.01, "c": 0.5}) == pytest.approx(
        {"a": 0.04, "b": 0.03, "c": 0.5}
    )


def test_the_tree_holds_the_numbers_and_goes_through_netcdf(report, tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("netCDF4")
    pc.report_tree(report).to_netcdf(tmp_path / "report.nc")
    with xarray.open_datatree(tmp_path / "report.nc") as tree:
        checks = tree["posterior_checks"]
        np.testing.assert_allclose(checks["p_value"], list(report.p_values.values()))
        assert checks.attrs["findings"].splitlines() == list(report.sentences)
        curve = tree["coverage_central"]
        assert curve["coverage"].shape == (99, 2)
        assert (curve["low"] <= curve["level"]).all() and (curve["high"] >= curve["level"]).all()
        np.testing.assert_allclose(tree["z_scores"]["shrinkage"], report.z.shrinkage)
        assert {"local_coverage", "local_c2st", "misspecification"} <= set(tree.children)


def test_the_picture_has_four_panels(report):
    pytest.importorskip("matplotlib")
    figure = pc.plot_report(report)
    assert len(figure.axes) == 4
    assert "x[0]" in figure.axes[3].get_xlabel()


def test_results_print(report):
    for thing in (report.simulations, report.z, *report.checks.values()):
        assert len(repr(thing).splitlines()) <= 10
        assert str(thing)


@ppl.model
def model(x):
    m = ppl.sample("m", dist.Normal(0.0, 1.0))
    ppl.sample("x", dist.Normal(m, 1.0), obs=x)


@pytest.mark.slow  # fits
@pytest.mark.parametrize("kind", ["guide", "fit"])
def test_guides_and_fits_pass(kind):
    """An amortised guide, which is exact at its optimum, and a fit for each data set. False alarm 0.01."""

    def guide(x):
        slope, scale = ppl.param("slope", 0.0), ppl.param("scale", 1.0)
        ppl.sample("m", dist.Normal(slope * x, scale))

    def of_guide(key, observed):
        return jax.vmap(lambda key: trained.guide.simulate(key, observed["x"]).choices)(
            jax.random.split(key, 49)
        )

    def of_fit(key, observed):
        fit_key, draw_key = jax.random.split(key)
        found = inference.fit(
            inference.elbo(model, guide), optax.adam(0.03), (observed["x"],),
            num_steps=600, key=fit_key, average="polyak", progress=False,
        )  # fmt: skip
        return {"m": found.posterior(draw_key, 49).choices["m"]}

    if kind == "guide":
        loss = inference.sleep(
            model, guide, data_args=lambda made, x: (made["x"],), num_replicates=64
        )
        trained = inference.fit(
            loss, optax.adam(0.02), (jnp.array(0.0),), num_steps=1500, key=KEY,
            average="polyak", progress=False,
        )  # fmt: skip
    report = pc.check_posterior(
        model, of_guide if kind == "guide" else of_fit, KEY, jnp.array(0.3), level=0.01,
        num_simulations=200 if kind == "guide" else 25, loop="compiled" if kind == "guide" else "python",
    )  # fmt: skip
    assert report.objections == ()


@pytest.mark.slow  # chains
@pytest.mark.parametrize("sampler", ["nuts", "smc"])
def test_samplers_pass(sampler):
    """False alarm 0.01."""
    from numpyro.infer import MCMC, NUTS

    def chains(key, observed):
        mcmc = MCMC(NUTS(model), num_warmup=200, num_samples=400, thinning=8, progress_bar=False)
        mcmc.run(key, observed["x"])
        return mcmc.get_samples()

    def particles(key, observed):
        run, choose = jax.random.split(key)
        result = inference.smc(model, run, observed["x"], num_particles=2_000)
        picked = jax.random.categorical(choose, result.log_weights, shape=(19,))
        return {"m": result.particles["m"][picked]}

    fn = {"nuts": chains, "smc": particles}[sampler]
    report = pc.check_posterior(
        model, fn, KEY, jnp.array(0.3), observed={"x": jnp.array(0.3)}, num_simulations=100, level=0.01,
        loop="compiled" if sampler == "nuts" else "python",
    )  # fmt: skip
    assert report.objections == ()
