"""Learned posteriors against conjugate ones, their report, their weights, their refusals."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal

from lapilli import inference, ppl
from lapilli.inference.simulators import ReferenceTable, reference_table
from lapilli.inference.simulators.amortised._given import check_prior

KEY = jax.random.key(0)
SD = np.array([1.0, 0.5])  # of the noise; the priors have 1
DESIGN = np.array([[1.0, 1.0], [1.0, 0.0]])
slow = pytest.param(2, marks=pytest.mark.slow(reason="four couplings to compile"))


def simulated(size):
    """The simulator of two numbers from so many parameters."""

    def model(x):
        theta = ppl.sample("theta", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
        ppl.sample("x", dist.Normal(DESIGN[:, :size] @ theta, SD).to_event(1), obs=x)

    return model


def exact(x, size):
    """Mean and covariance of theta given x."""
    design = DESIGN[:, :size]
    covariance = np.linalg.inv(np.eye(size) + design.T @ np.diag(SD**-2) @ design)
    return np.asarray(x, float) / SD**2 @ design @ covariance, covariance


@pytest.fixture(scope="module", params=[1, slow])
def table(request):
    x = np.zeros(2)
    return reference_table(simulated(request.param), (x,), num_simulations=4_000, key=KEY)


@pytest.fixture(scope="module")
def found(table):
    return inference.amortise(table, key=jax.random.key(1), num_steps=200, progress=False)


def size_of(table):
    return table.parameters["theta"].shape[1]


def test_the_posterior_is_that_of_normal_laws_within_hundredths_of_a_nat(found, table):
    """On rows that nothing was trained on: E[log p(theta | x) - log q(theta | x)], an average of KL."""
    parameters, data = table.rows("held out")
    mean, covariance = exact(data["x"], size_of(table))
    log_p = multivariate_normal(np.zeros(len(covariance)), covariance).logpdf(
        parameters["theta"] - mean
    )
    density = jax.jit(jax.vmap(lambda t, x: found.guide.log_density({"theta": t}, x=x)))
    gaps = log_p - np.asarray(density(parameters["theta"], data["x"]))
    assert abs(gaps.mean()) < 0.02
    assert found.held_out[0] == pytest.approx(np.mean(log_p) - gaps.mean(), abs=1e-4)


def test_its_density_is_traced(found, table):
    """Under jit, with a parameter, data, or both inside of it."""
    theta = jnp.array([0.1, 0.2])[: size_of(table)]
    choices, x = {"theta": theta}, jnp.array([1.0, 0.5])
    exact = float(found.log_density(choices, {"x": x}))
    of_theta = jax.jit(lambda t: found.log_density({"theta": t}, {"x": np.array([1.0, 0.5])}))
    of_both = jax.jit(lambda t, x: found.log_density({"theta": t}, {"x": x}))
    assert float(of_theta(choices["theta"])) == pytest.approx(exact, abs=1e-4)
    assert float(of_both(choices["theta"], x)) == pytest.approx(exact, abs=1e-4)


def test_weighted_draws_have_the_exact_evidence(found, table):
    x = np.array([1.5, -0.5])
    posterior = found.posterior(KEY, x, num_samples=1_000)
    worth = inference.diagnostics.importance_diagnostics(posterior.log_weights)
    design = DESIGN[:, : size_of(table)]
    log_z = multivariate_normal(np.zeros(2), design @ design.T + np.diag(SD**2)).logpdf(x)
    assert worth.ess > 900
    assert worth.log_evidence == pytest.approx(log_z, abs=5 * worth.log_evidence_std_error + 1e-3)
    mean, _ = exact(x, size_of(table))
    draws = found.draws(KEY, {"x": x}, 1_000)["theta"]
    assert np.allclose(draws.mean(0), mean, atol=0.12)  # 5 standard errors and the guide's own


def test_the_report_is_part_of_it_and_sees_what_is_wrong(found, table):
    assert min(found.report.corrected.values()) > 1e-3 and "below" in str(found)

    @ppl.model
    def narrow(x):
        scale = ppl.param("scale", 0.1, constraint=dist.constraints.interval(0.05, 0.2))
        mean = jnp.stack([x[1], x[0] - x[1]])[: size_of(table)] / 2
        ppl.sample("theta", dist.Normal(mean, scale).to_event(1))

    planted = inference.amortise(table, guide=narrow, num_steps=20, progress=False)
    assert "central" in planted.report.objections and "object" in repr(planted)


def test_a_guide_of_ones_own_may_make_its_network_from_a_key(table):
    def own(x):
        net = ppl.module("net", eqx.nn.Linear(2, size_of(table), key=ppl.rng_key("init")))
        ppl.sample("theta", dist.Normal(net(x), 1.0).to_event(1))

    found = inference.amortise(table, guide=own, num_steps=20, progress=False)
    choices = {"theta": np.zeros(size_of(table))}
    exact = dist.Normal(found.training[0].fit.params["net"].bias, 1.0).log_prob(0.0).sum()
    assert float(found.log_density(choices, {"x": np.zeros(2)})) == pytest.approx(
        float(exact), abs=1e-5
    )


def test_a_guide_with_noise_beside_its_draws_is_refused(table):
    """At one noise it would be trained and weighed, at others drawn."""

    def shaken(x):
        noise = jax.random.normal(ppl.rng_key("noise"), (size_of(table),))
        ppl.sample("theta", dist.Normal(ppl.param("a", 0.3) + noise, 1.0).to_event(1))

    def auxiliary(x):
        noise = ppl.sample("n", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        law = dist.Normal(ppl.param("a", 0.3) + noise, 1.0)
        ppl.sample("theta", law.expand([size_of(table)]).to_event(1))

    for guide in (shaken, auxiliary):
        with pytest.raises(ValueError, match="has noise beside its draws of \\['theta'\\]"):
            inference.amortise(table, guide=guide, progress=False)


@pytest.mark.slow(reason="two flows to compile")
def test_sites_follow_one_another_within_their_supports():
    """A scale and a place that depends on it: unbounded flows, bounded draws; a mean that is known."""

    def both(x):
        scale = ppl.sample("scale", dist.Uniform(0.5, 2.0))
        place = ppl.sample("place", dist.Normal(0.0, scale))
        ppl.sample("x", dist.Normal(place, 0.5).expand([3]).to_event(1), obs=x)

    table = reference_table(both, (np.zeros(3),), num_simulations=1_000, key=KEY)
    found = inference.amortise(table, num_steps=200, progress=False)
    draws = found.draws(KEY, {"x": np.array([3.0, 3.2, 2.8])}, 500)
    assert (draws["scale"] > 0.5).all() and (draws["scale"] < 2).all()
    assert abs(draws["place"].mean() - 2.85) < 0.4
    value = {"scale": jnp.asarray(1.0), "place": jnp.asarray(0.3)}
    assert np.isfinite(float(found.log_density(value, {"x": np.zeros(3)})))


@pytest.mark.slow(reason="a training of its own")
def test_a_posterior_is_right_where_simulations_fail():
    """Data are lost below zero. Given data that are there, nothing changes: N(x / 2, 1 / 2)."""
    simulate = lambda key, p: (lambda x: jnp.where(x < 0, jnp.nan, x))(
        p["m"] + jax.random.normal(key)
    )
    prior = lambda: ppl.sample("m", dist.Normal(0.0, 1.0))
    table = reference_table(prior, simulator=simulate, num_simulations=4_000, key=KEY)
    found = inference.amortise(table, num_steps=600, progress=False)
    draws = found.draws(KEY, {"x": 0.4}, 2_000)["m"]
    assert table.num_failed > 1_500
    assert draws.mean() == pytest.approx(0.2, abs=0.12) and draws.std() == pytest.approx(
        0.5**0.5, abs=0.08
    )
    with pytest.raises(ValueError, match="sites \\['x'\\].*are simulated, a point mass"):
        found.posterior(KEY, 0.4)


def test_what_cannot_be_learned_is_refused(table, found):
    def lacks(x):
        ppl.sample("other", dist.Normal(0.0, 1.0))

    def bounded(x):
        net = ppl.param("a", 0.0)
        ppl.sample("theta", dist.Uniform(-1.0, 1.0).expand([size_of(table)]).to_event(1))
        return net

    with pytest.raises(ValueError, match="draws \\['other'\\] besides"):
        inference.amortise(table, guide=lacks, progress=False)
    with pytest.raises(ValueError, match="guide must reach all that the model can be"):
        inference.amortise(table, guide=bounded, progress=False)

    def discrete(x):
        ppl.sample("x", dist.Normal(ppl.sample("k", dist.Poisson(3.0)), 1.0), obs=x)

    of_counts = reference_table(discrete, (0.0,), num_simulations=100)
    with pytest.raises(ValueError, match="latent sites \\['k'\\] are discrete"):
        inference.amortise(of_counts, progress=False)
    with pytest.raises(ValueError, match="data have the shapes"):
        found.draws(KEY, {"x": np.zeros(3)})
    with pytest.raises(ValueError, match="data of \\['x'\\] are not finite"):
        found.draws(KEY, {"x": np.array([np.nan, 0.0])})
    with pytest.raises(TypeError, match="Give each by name, {'x'"):
        found.draws(KEY, np.zeros(2))
    with pytest.raises(TypeError, match="no real number"):
        found.draws(KEY, {"x": ["0.5", "0.1"]})


def test_data_beyond_all_simulations_are_told(found):
    """Twice as far as the simulations reach; within their range nothing is."""
    with pytest.warns(UserWarning, match="site 'x' lie further beyond all 4000 simulations"):
        found.draws(KEY, {"x": np.array([0.0, 1e3])}, 10)
    found.draws(KEY, {"x": np.array([6.0, 0.0])}, 10)


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_given_rows_are_draws_of_the_prior(scale):
    """Of half as wide again what is learned would be another posterior, and nothing in the table's own checks sees it."""
    rng = np.random.default_rng(0)
    theta = scale * rng.normal(size=(1_000, 1))
    x = theta * DESIGN[:, 0] + SD * rng.normal(size=(1_000, 2))
    table = ReferenceTable(simulated(1), (np.zeros(2),), {"theta": theta}, {"x": x}, {})
    if scale == 1.0:
        return check_prior(table, KEY)
    with pytest.raises(ValueError, match="of site 'theta' are no draws of its prior"):
        inference.amortise(table, progress=False)
