"""Fits and objectives in pickles: made anew by the call that made them, of programs that stand in a module."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl

cloudpickle = pytest.importorskip("cloudpickle")
KEY = jax.random.key(0)
X = jnp.array([0.5, -0.2, 1.3])


def model(x):
    z = ppl.sample("z", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("x", dist.Normal(z, 1.0), obs=x)


@ppl.model
def decorated(x):
    model(x)


def guide(x):
    ppl.sample("z", dist.Normal(ppl.param("m", 0.0), 1.0))


def walk(x):
    def step(z, x):
        z = ppl.sample("z", dist.Normal(z, 1.0))
        ppl.sample("x", dist.Normal(z, 1.0), obs=x)
        return z, None

    ppl.scan(step, 0.0, x)


@inference.objective(direction="min")
def of_ones_own(model, guide, x):
    q = ppl.draw(guide, x)
    return q.log_density - ppl.score(model, q, x).log_density


OBJECTIVES = {
    "elbo": inference.elbo(model, guide, num_replicates=3),
    "decorated": inference.elbo(decorated, guide),
    "analytic": inference.elbo(model, guide, kl="analytic"),
    "minibatches": inference.elbo(model, guide).with_plate_sizes({"rows": 30}),
    "weights": inference.elbo(model, guide).with_site_weights({"z": 0.5}),
    "iwelbo": inference.iwelbo(model, guide, num_particles=4, gradient="dreg"),
    "renyi": inference.renyi(model, guide, alpha=0.5, num_particles=4),
    "rws": inference.rws(model, guide, num_particles=4),
    "fivo": inference.fivo(walk, num_particles=4),
    "of one's own": of_ones_own(model, guide),
}


@pytest.mark.slow_for("analytic", "minibatches", "iwelbo", "renyi", "rws", "of one's own")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_from_a_pickle_has_the_same_values(name):
    objective = OBJECTIVES[name]
    back = pickle.loads(pickle.dumps(objective))
    params = objective.init(KEY, X)
    np.testing.assert_array_equal(objective.value(params, KEY, X), back.value(params, KEY, X))
    assert repr(back) == repr(objective)


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps], ids=["pickle", "cloudpickle"])
def test_a_fit_from_a_pickle_draws_the_same(dumps):
    fit = inference.fit(OBJECTIVES["elbo"], args=(X,), num_steps=3, progress=False)
    back = pickle.loads(dumps(fit))
    draws = [f.posterior(KEY, 5).choices["z"] for f in (fit, back)]
    np.testing.assert_array_equal(*draws)
    assert back.steps == 3 and repr(back) == repr(fit)


def test_programs_inside_of_functions_are_left_to_cloudpickle():
    scale = 2.0
    local = lambda x: ppl.sample("z", dist.Normal(0.0, scale))
    objective = inference.elbo(model, local)
    with pytest.raises((AttributeError, pickle.PicklingError), match="local"):
        pickle.dumps(objective)
    back = pickle.loads(cloudpickle.dumps(objective))
    np.testing.assert_array_equal(back.value({}, KEY, X), objective.value({}, KEY, X))


def test_copies_are_independent():
    objective = OBJECTIVES["elbo"]
    one = copy.copy(objective)
    assert one.model is objective.model and one.checks is not objective.checks
