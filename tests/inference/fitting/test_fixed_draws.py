"""Fixed draws and L-BFGS: exact optima, standard errors by repetition, linear response by conjugacy."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.infer.autoguide import AutoMultivariateNormal

from lapilli import inference, ppl
from lapilli.inference.fitting import fit_fixed_draws

KEY = jax.random.key(0)
RNG = np.random.default_rng(1)
X = RNG.normal(size=(60, 3)) @ np.array([[1.0, 0.9, 0.0], [0.0, 0.5, 0.0], [0.0, 0.3, 1.0]])
X = X.astype(np.float32)
Y = (X @ [1.0, -1.0, 0.5] + 0.5 * RNG.normal(size=60)).astype(np.float32)
PRECISION = np.eye(3) + X.T @ X / 0.25
MEAN, COV = np.linalg.solve(PRECISION, X.T @ Y / 0.25), np.linalg.inv(PRECISION)
SD = np.sqrt(np.diag(COV))


def regression(x, y=None):
    beta = ppl.sample("beta", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(x @ beta, 0.5), obs=y)


def mean_field(x, y=None):
    scale = ppl.param("scale", 0.1 * jnp.ones(3), constraint=dist.constraints.positive)
    ppl.sample("beta", dist.Normal(ppl.param("loc", jnp.zeros(3)), scale).to_event(1))


BOUND = inference.elbo(regression, mean_field)


@pytest.fixture(scope="module")
def fitted():
    return fit_fixed_draws(BOUND, {"x": X, "y": Y}, key=KEY, num_draws=200)


@pytest.mark.slow
def test_the_end_is_an_optimum_near_that_of_the_bound(fitted):
    assert fitted.stop_reason == "settled" and fitted.gradient_norm <= 1e-3
    assert fitted.steps == len(fitted.history["value"]) < 200
    errors = fitted.standard_errors()
    # Mean field: the mean is exact, the scale that of the conditional law.
    scale = np.log(1 / np.sqrt(np.diag(PRECISION)))
    assert (np.abs((fitted.params["loc"] - MEAN) / errors["loc"]) < 4).all()
    assert (np.abs((fitted.params["scale"] - scale) / errors["scale"]) < 4).all()
    assert fitted.posterior(KEY, 4).choices["beta"].shape == (4, 3)


@pytest.mark.slow
def test_standard_errors_are_those_over_other_draws(fitted):
    others = [
        fit_fixed_draws(BOUND, (X, Y), key=jax.random.key(k), num_draws=200).params["loc"]
        for k in range(1, 25)
    ]
    spread = np.std(others, axis=0, ddof=1)
    np.testing.assert_allclose(fitted.standard_errors()["loc"], spread, rtol=4 / np.sqrt(2 * 23))


@pytest.mark.slow(reason="second derivatives to compile")
def test_linear_response_mends_the_variances_of_a_mean_field(fitted):
    found = fitted.linear_response(lambda z: z["beta"], KEY)
    own = np.exp(2 * np.asarray(fitted.params["scale"]))
    assert own[1] < 0.7 * COV[1, 1]  # the mean field's own
    np.testing.assert_allclose(np.sqrt(np.diag(found)), SD, rtol=0.1)
    correlation = lambda c: c[0, 1] / np.sqrt(c[0, 0] * c[1, 1])
    np.testing.assert_allclose(correlation(np.asarray(found)), correlation(COV), atol=0.05)
    one = fitted.linear_response(lambda z: z["beta"][0] - z["beta"][1], KEY)
    exact = COV[0, 0] + COV[1, 1] - 2 * COV[0, 1]
    np.testing.assert_allclose(one, exact, rtol=0.2)


@pytest.mark.slow
def test_a_full_rank_guide_needs_no_response():
    objective = inference.elbo(regression, AutoMultivariateNormal(regression))
    fit = fit_fixed_draws(objective, (X, Y), key=KEY, num_draws=300)
    draws = fit.posterior(KEY, 4000).choices["beta"]
    np.testing.assert_allclose((draws.mean(0) - MEAN) / SD, 0.0, atol=0.3)
    np.testing.assert_allclose(draws.std(0) / SD, 1.0, atol=0.15)


@pytest.mark.slow
def test_the_best_of_several_starts_is_kept():
    def two(y):
        z = ppl.sample("z", dist.Normal(0.0, 3.0))
        ppl.sample("y", dist.MixtureSameFamily(
            dist.Categorical(jnp.array([0.9, 0.1])), dist.Normal(jnp.array([1.0, -1.0]) * z, 0.3)
        ), obs=y)  # fmt: skip

    def guide(y):
        start = ppl.param("loc", dist.Normal(0.0, 4.0))
        ppl.sample("z", dist.Normal(start, 0.1))

    fit = fit_fixed_draws(inference.elbo(two, guide), (3.0,), key=KEY, num_starts=6)
    assert len(fit.values) == 6 and np.ptp(fit.values) > 1.0
    assert fit.history["value"][-1] == fit.values.max()
    assert abs(fit.params["loc"] - 3.0) < 0.2


@pytest.mark.slow
def test_minimised_objectives_and_summed_sites():
    def model(y):
        k = ppl.sample("k", dist.Bernoulli(0.3))
        z = ppl.sample("z", dist.Normal(2.0 * k, 1.0))
        ppl.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y):
        ppl.sample("k", dist.Bernoulli(logits=ppl.param("logit", 0.0)))
        scale = ppl.param("scale", 1.0, constraint=dist.constraints.positive)
        ppl.sample("z", dist.Normal(ppl.param("loc", 0.0), scale))

    bound = inference.elbo(model, guide, strategies={"k": "enum"})
    assert fit_fixed_draws(bound, (1.0,), key=KEY).stop_reason == "settled"

    @inference.objective(direction="min")
    def loss(model, guide, *args):
        q = ppl.draw(guide, *args)
        return q.log_density - ppl.score(model, q, *args).log_density

    lowest = fit_fixed_draws(loss(regression, mean_field), (X, Y), key=KEY)
    highest = fit_fixed_draws(BOUND, (X, Y), key=KEY)
    np.testing.assert_allclose(lowest.params["loc"], highest.params["loc"], atol=1e-3)
    np.testing.assert_allclose(
        lowest.history["value"][-1], -highest.history["value"][-1], rtol=1e-4
    )


def test_other_strategies_are_refused():
    def model(y):
        ppl.sample("y", dist.Normal(1.0 * ppl.sample("k", dist.Bernoulli(0.3)), 1.0), obs=y)

    guide = lambda y: ppl.sample("k", dist.Bernoulli(logits=ppl.param("logit", 0.0)))
    bound = inference.elbo(model, guide, strategies={"k": "reinforce"})
    with pytest.raises(ValueError, match="site 'k' has the strategy 'reinforce'.*inference.fit"):
        fit_fixed_draws(bound, (1.0,), key=KEY)


@pytest.mark.slow
def test_a_value_that_its_gradient_does_not_lead_is_refused():
    """A score term is missing from the derivative of this value."""

    @inference.objective
    def detached(model, guide, *args):
        q = ppl.draw(guide, *args)
        fixed = jax.lax.stop_gradient(q.choices["beta"])
        return ppl.score(model, q, *args).log_density - q.log_density - 1e3 * fixed.sum()

    with pytest.raises(ValueError, match="detached or jumps"):
        fit_fixed_draws(detached(regression, mean_field), (X, Y), key=KEY, max_steps=50)


def test_a_gradient_that_leaves_a_score_out_is_refused():
    bound = inference.elbo(regression, mean_field, gradient="stl")
    with pytest.raises(ValueError, match="gradient='stl' is not the derivative"):
        fit_fixed_draws(bound, (X, Y), key=KEY)
    bound = inference.iwelbo(regression, mean_field, num_particles=2, gradient="dreg")
    with pytest.raises(ValueError, match="gradient='dreg' is not the derivative"):
        fit_fixed_draws(bound, (X, Y), key=KEY)


@pytest.mark.slow
def test_an_end_that_is_no_optimum_has_no_errors():
    def superfluous(x, y=None):
        a, b = ppl.param("a", jnp.zeros(3)), ppl.param("b", jnp.zeros(3))
        ppl.sample("beta", dist.Normal(a + b, 0.1).to_event(1))

    fit = fit_fixed_draws(inference.elbo(regression, superfluous), (X, Y), key=KEY)
    with pytest.raises(ValueError, match="no strict optimum.*superfluous parameters"):
        fit.standard_errors()


@pytest.mark.slow
def test_linear_response_is_of_the_evidence_lower_bound(fitted):
    bound = inference.iwelbo(regression, mean_field, num_particles=3)
    fit = fit_fixed_draws(bound, (X, Y), key=KEY, num_draws=50, max_steps=3)
    with pytest.raises(ValueError, match="linear response is of the evidence lower bound"):
        fit.linear_response(lambda z: z["beta"], KEY)

    def mixed(y):
        z = ppl.sample("z", dist.Bernoulli(0.5))
        ppl.sample("y", dist.Normal(ppl.sample("a", dist.Normal(1.0 * z, 1.0)), 1.0), obs=y)

    def guide(y):
        ppl.sample("z", dist.Bernoulli(logits=ppl.param("logit", 0.0)))
        ppl.sample("a", dist.Normal(ppl.param("mean", 0.0), 1.0))

    bound = inference.elbo(mixed, guide, strategies={"z": "enum"})
    fit = fit_fixed_draws(bound, (1.0,), key=KEY, num_draws=50)
    with pytest.raises(ValueError, match=r"\['z'\] are summed out"):
        fit.linear_response(lambda z: z["a"], KEY)


def test_a_loaded_fit_says_that_its_draws_are_gone(fitted, tmp_path):
    fitted.save(tmp_path / "fit.npz")
    loaded = type(fitted).load(tmp_path / "fit.npz", BOUND)
    with pytest.raises(ValueError, match="a file holds no draws"):
        loaded.standard_errors()


@pytest.mark.slow
def test_a_value_that_is_nan_is_named():
    with pytest.raises(ValueError, match="NaN at the end of every start"):
        fit_fixed_draws(BOUND, (X, np.nan * Y), key=KEY, max_steps=3)
