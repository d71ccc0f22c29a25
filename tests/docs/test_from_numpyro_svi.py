"""What docs/from_numpyro_svi.md says of its program holds; test_pages.py runs the page itself."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from _pages import BLOCK, Page
from numpyro.primitives import mutable

from lapilli import inference, ppl

pytestmark = pytest.mark.docs
PAGE = Page("from_numpyro_svi")


@pytest.fixture(scope="module")
def names():
    """What the page has defined at its end."""
    return PAGE.run(is_full=True).names


def test_the_page_has_all_its_snippets():
    assert len([block for block in BLOCK.finditer(PAGE.text) if block["code"]]) == 6


@pytest.mark.slow
def test_both_ways_find_the_components(names):
    # The means of 60 and 40 rows, shrunk by the prior and by shared rows: 0.15 and more is a wrong assignment.
    expected = [names["x"][:60].mean(), names["x"][60:].mean()]
    for found in (names["result"].params["mean"], names["fitted"]["mean"]):
        np.testing.assert_allclose(found, expected, atol=0.15)
    assert abs(names["fit"].history["value"][-50:].mean() + names["result"].losses[-50:].mean()) < 1


@pytest.mark.slow
def test_the_plan_is_the_one_that_is_told(names):
    plan = names["objective"].plan(names["params"], names["x"])
    assert plan["k"].strategy == "enum" and plan["k"].evaluations.startswith("2")
    assert plan["loc"].strategy == "reparam"


@pytest.mark.slow
def test_the_tree_has_the_axes_that_are_told(names):
    assert names["tree"]["posterior"]["k"].sizes == {"chain": 1, "draw": 1000, "rows": 100}
    assert names["tree"]["posterior"]["loc"].dims == ("chain", "draw", "loc_dim_0")
    assert {"log_weight", "lp", "log_q"} == set(names["tree"]["sample_stats"].data_vars)


@pytest.mark.slow
def test_the_guide_is_as_good_as_is_told(names):
    attrs = names["tree"]["sample_stats"].attrs
    assert attrs["pareto_k"] < attrs["pareto_k_threshold"] and attrs["ess"] > 300
    assert "resampled" in names["posterior"]["posterior"].attrs["draws"]


@pytest.mark.slow
def test_the_differences_are_as_told(names):
    model, guide, x = names["model"], names["guide"], names["x"]
    with pytest.raises(ValueError, match="Site 'k'.*no strategy was chosen.*'enum'"):
        inference.elbo(model, guide).plan(names["params"], x)
    with pytest.raises(ValueError, match="typo.*'k'"):
        inference.elbo(model, guide, strategies={"k": "enum", "typo": "enum"}).plan(
            names["params"], x
        )
    with pytest.raises(ValueError, match="misses the latent site.*'loc'"):
        inference.elbo(model, lambda x: None).init(jax.random.key(0), x)

    def wrong(x):
        loc = numpyro.sample("loc", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
        with numpyro.plate("rows", x.shape[0]):
            k = numpyro.sample("k", dist.Bernoulli(0.4))
            numpyro.sample("x", dist.Normal(loc[k], 1.0), obs=x[:, None])

    with pytest.raises(ValueError, match="Site 'x': the observation has shape"):
        inference.elbo(wrong, guide, strategies={"k": "enum"}).init(jax.random.key(0), x)


@pytest.mark.slow
def test_the_limits_are_errors(names):
    x = names["x"]

    def raw(x):
        jax.lax.scan(lambda c, x: (c, numpyro.sample("z", dist.Normal(x, 1.0))), 0.0, x)

    with pytest.raises(ValueError, match="ppl.scan"):
        ppl.model(raw).simulate(jax.random.key(0), x)
    with pytest.raises(TypeError, match="mutable"):
        ppl.model(lambda: mutable("count", 0)).simulate(jax.random.key(0))
