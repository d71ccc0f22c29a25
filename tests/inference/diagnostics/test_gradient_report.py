"""Gradient reports against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl
from lapilli.inference.diagnostics._operations import num_operations


@inference.objective
def cost(model, guide):
    """E[u^2 / 2 + v (w_1 + ... + w_4)]: u alone, v and the steps of w together."""
    q = ppl.draw(guide).choices
    return q["u"] ** 2 / 2 + q["v"] * q["w"].sum()


@ppl.model
def guide():
    ppl.sample("u", dist.Normal(ppl.param("a", 1.0), 2.0))
    ppl.sample("v", dist.Normal(ppl.param("b", jnp.array(0.5)), 1.0))

    def step(carry, _):
        return carry, ppl.sample("w", dist.Normal(ppl.param("c", 0.0), 3.0))

    ppl.scan(step, 0.0, None, 4)


@ppl.model
def empty():
    pass


NUM_DRAWS = 4_000


@pytest.fixture(scope="module")
def report():
    objective = cost(empty, guide)
    params = objective.init(jax.random.key(0))
    return inference.diagnostics.gradient_report(
        objective, params, jax.random.key(1), num_draws=NUM_DRAWS
    )


@pytest.mark.slow
def test_parameters_have_their_means_and_spreads(report):
    """Reparameterised: d/da = u, d/db = sum w, d/dc = 4 v. Relative error of an sd of 4,000 draws is 0.011."""
    for name, mean, sd in (("a", 1.0, 2.0), ("b", 0.0, 6.0), ("c", 2.0, 4.0)):
        got = report.parameters[name]
        np.testing.assert_allclose(got.sd, sd, rtol=4.5 * 0.011)
        assert abs(got.mean - mean) < max(4.5 * sd / NUM_DRAWS**0.5, 0.3 * (mean == 0))
        np.testing.assert_allclose(got.snr, got.mean / got.sd)
        assert got.size == 1


def test_sites_have_their_total_effects(report):
    for name, variance in (("u", 4.0), ("v", 16.0), ("w", 36.0)):
        site = report.sites[name]
        assert abs(site.variance - variance) < 4.5 * site.error, name
        assert site.error < 0.05 * variance
        np.testing.assert_allclose(site.share, site.variance / report.variance)
        assert site.strategy == "reparam"
    np.testing.assert_allclose(report.variance, 56.0, rtol=4.5 * 0.02)


@pytest.mark.slow
def test_an_enumerated_site_has_no_noise_and_a_score_site_has():
    @ppl.model
    def model():
        k = ppl.sample("k", dist.Bernoulli(0.5))
        ppl.sample("x", dist.Normal(k, 1.0), obs=jnp.array(0.3))

    @ppl.model
    def guide():
        ppl.sample("k", dist.Bernoulli(logits=ppl.param("t", 0.4)))

    reports = []
    for strategy in ("enum", "reinforce"):
        objective = inference.elbo(model, guide, strategies={"k": strategy})
        params = objective.init(jax.random.key(0))
        reports.append(inference.diagnostics.gradient_report(objective, params, jax.random.key(1)))
    enum, reinforce = reports
    assert enum.variance < 1e-10 and enum.sites["k"].variance < 1e-10
    assert enum.parameters["t"].snr > 1e4
    # The only site: redrawing it is redrawing everything.
    np.testing.assert_allclose(reinforce.sites["k"].share, 1.0, atol=0.35)
    assert reinforce.sites["k"].strategy == "reinforce"
    assert reinforce.seconds > 0 and reinforce.num_operations > 0


def test_it_prints_both_tables(report):
    text = str(report)
    assert "4000 estimates" in text and "|mean|" in text
    assert any(line.split()[:2] == ["w", "reparam"] for line in text.splitlines())


def test_an_objective_without_parameters_is_refused():
    with pytest.raises(ValueError, match="'cost' has no parameters, so there is no gradient"):
        inference.diagnostics.gradient_report(cost(empty, empty), {}, jax.random.key(0))


def test_arguments_that_are_no_arrays_pass():
    @ppl.model
    def model(kind):
        ppl.sample("z", {"normal": dist.Normal}[kind](0.0, 1.0))

    @ppl.model
    def guide(kind):
        ppl.sample("z", dist.Normal(ppl.param("m", 0.5), 1.0))

    objective = inference.elbo(model, guide)
    params = objective.init(jax.random.key(0), "normal")
    report = inference.diagnostics.gradient_report(
        objective, params, jax.random.key(1), "normal", num_draws=4
    )
    assert report.num_operations > 0


def test_operations_of_loops_count_by_their_length():
    matrix, vector = jnp.ones((3, 4)), jnp.ones(4)
    count = lambda fn, *args: num_operations(jax.make_jaxpr(fn)(*args))
    assert count(lambda x: matrix @ x, vector) == 2 * 3 * 4
    assert count(lambda x: jnp.exp(x).sum(), vector) == 4 + 4
    step = lambda x, _: (jnp.exp(x), None)
    assert count(lambda x: jax.lax.scan(step, x, None, length=10)[0], vector) == 10 * 4
    image, kernel = jnp.ones((1, 1, 5, 5)), jnp.ones((2, 1, 3, 3))
    convolve = lambda x: jax.lax.conv(x, kernel, (1, 1), "VALID")
    assert count(convolve, image) == 2 * (2 * 3 * 3) * 9


def test_one_draw_is_refused():
    with pytest.raises(ValueError, match="num_draws must be an integer >= 2, got 1"):
        inference.diagnostics.gradient_report(
            cost(empty, guide), {}, jax.random.key(0), num_draws=1
        )
