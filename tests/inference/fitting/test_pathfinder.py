"""Starts from Pathfinder: a conjugate regression whose posterior is Normal, guides of three kinds, two modes."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal

from lapilli import inference, ppl
from lapilli.inference.fitting import pathfinder

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3)).astype(np.float32)
X[:, 1] += X[:, 0]  # correlated
Y = (X @ [2.0, -1.0, 0.5] + RNG.normal(size=40)).astype(np.float32)
COV = np.linalg.inv(np.eye(3) + X.T @ X)
MEAN = COV @ X.T @ Y


def model(x, y):
    beta = ppl.sample("beta", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with ppl.plate("rows", 40):
        ppl.sample("y", dist.Normal(x @ beta, 1.0), obs=y)


def by_hand(x, y):
    tril = ppl.param("tril", jnp.eye(3), constraint=dist.constraints.lower_cholesky)
    loc = ppl.param("loc", jnp.zeros(3))
    ppl.sample("beta", dist.MultivariateNormal(loc, scale_tril=tril))


GUIDES = {"by hand": by_hand, "multivariate": AutoMultivariateNormal(model)}


@pytest.mark.slow_for("multivariate", "by hand")
@pytest.mark.parametrize("name", list(GUIDES))
def test_a_full_guide_starts_at_a_normal_posterior(name):
    objective = inference.elbo(model, GUIDES[name])
    params = pathfinder(objective, (X, Y), key=KEY)
    loc, tril = ("auto_loc", "auto_scale_tril") if name == "multivariate" else ("loc", "tril")
    found = ppl.constrain(params)
    sd = np.sqrt(np.diag(COV))
    # 500 draws: means to 0.045 sd, widths to 3 %; L-BFGS's Hessian of a quadratic in three coordinates is nearly exact.
    assert np.abs((found[loc] - MEAN) / sd).max() < 0.25
    widths = np.sqrt(np.diag(found[tril] @ found[tril].T))
    assert np.abs(widths / sd - 1).max() < 0.25


def test_mean_field_takes_means_and_widths():
    objective = inference.elbo(model, AutoNormal(model))
    found = ppl.constrain(pathfinder(objective, {"x": X, "y": Y}, key=KEY))
    np.testing.assert_allclose(found["beta_auto_loc"], MEAN, atol=0.25 * np.sqrt(COV.max()))
    np.testing.assert_allclose(found["beta_auto_scale"], np.sqrt(np.diag(COV)), rtol=0.25)


@pytest.mark.slow
def test_fits_go_on_from_there():
    objective = inference.elbo(model, by_hand)
    params = pathfinder(objective, (X, Y), key=KEY)
    climbed = inference.fitting.fit_fixed_draws(objective, (X, Y), key=KEY, params=params)
    own = inference.fitting.fit_fixed_draws(objective, (X, Y), key=KEY)
    np.testing.assert_allclose(climbed.params["loc"], own.params["loc"], atol=1e-2)
    assert climbed.steps < own.steps


@pytest.mark.slow
def test_of_several_starts_the_best_mode_is_taken():
    def modes():
        z = ppl.sample("z", dist.Normal(0.0, 5.0))
        heavy = dist.Normal(4.0, 0.5).log_prob(z) + jnp.log(0.9)
        light = dist.Normal(-4.0, 0.5).log_prob(z) + jnp.log(0.1)
        ppl.factor("modes", jnp.logaddexp(heavy, light))

    def guide():
        scale = ppl.param("scale", 1.0, constraint=dist.constraints.positive)
        ppl.sample("z", dist.Normal(ppl.param("loc", 0.0), scale))

    objective = inference.elbo(modes, guide)
    params = pathfinder(objective, (), key=KEY, num_starts=8)
    assert abs(float(params["loc"]) - 4.0) < 0.5


@pytest.mark.slow  # compiles a guide for each
def test_what_has_no_path_is_refused(monkeypatch):
    def discrete(x, y):
        ppl.sample("k", dist.Bernoulli(0.5))
        ppl.sample("z", dist.Normal(0.0, 1.0))

    def guide(x, y):
        ppl.sample("k", dist.Bernoulli(0.5))
        ppl.sample("z", dist.Normal(ppl.param("loc", 0.0), 1.0))

    objective = inference.elbo(discrete, guide, strategies={"k": "enum"})
    with pytest.raises(ValueError, match=r"sites \['k'\] are discrete.*ppl.eliminate"):
        pathfinder(objective, (X, Y), key=KEY)
    flow = inference.elbo(model, AutoIAFNormal(model, num_flows=1, hidden_dims=[4]))
    with pytest.raises(ValueError, match="some are not the model's sites"):
        pathfinder(flow, (X, Y), key=KEY)

    def broken():
        ppl.factor("nan", jnp.nan * ppl.sample("z", dist.Normal(0.0, 1.0)))

    lost = inference.elbo(broken, lambda: ppl.sample("z", dist.Normal(ppl.param("m", 0.0), 1.0)))
    with pytest.raises(ValueError, match="none of 4 starts has a Normal with a finite bound"):
        pathfinder(lost, (), key=KEY)
    monkeypatch.setitem(sys.modules, "blackjax.vi", None)
    with pytest.raises(ImportError, match=r"pip install 'lapilli\[mcmc\]'"):
        pathfinder(lost, (), key=KEY)
