"""Fit: draws from the guide, their weights, predictions in parts."""

import jax
import numpy as np
import optax
import pytest
from _fit_fakes import Objective

from lapilli.inference.fitting._fit import fit

X = np.linspace(0.5, 3.0, 12, dtype=np.float32)
EXACT = {"loc": np.float32(X.sum() / 13), "log_scale": np.float32(-0.5 * np.log(13))}
# log of the integral of N(mu; 0, 1) prod N(x_i; mu, 1) over mu
LOG_EVIDENCE = -6 * np.log(2 * np.pi) - 0.5 * np.log(13) - 0.5 * (X @ X - X.sum() ** 2 / 13)


def run(objective=None, args=(X,), **options):
    options = {
        "num_steps": 0,
        "key": jax.random.key(0),
        "progress": False,
        "params": EXACT,
    } | options
    return fit(objective or Objective(), optax.sgd(1e-3), args, **options)


def test_weights_at_the_exact_posterior_are_the_evidence():
    draws = run().posterior(jax.random.key(1), 50)
    assert draws.choices["mu"].shape == (50,) and isinstance(draws.log_weights, np.ndarray)
    np.testing.assert_allclose(draws.log_weights, LOG_EVIDENCE, rtol=1e-5)


def test_parts_do_not_change_the_draws():
    result = run()
    whole = result.posterior(jax.random.key(1), 25, batch_size=25)
    parts = result.posterior(jax.random.key(1), 25, batch_size=10)
    np.testing.assert_allclose(whole.choices["mu"], parts.choices["mu"], rtol=1e-6)
    assert len(set(whole.choices["mu"].tolist())) == 25


@pytest.mark.slow
def test_predictions_have_a_sample_axis():
    draws = run().predict(jax.random.key(1), num_samples=7, batch_size=3)
    assert {name: array.shape for name, array in draws.items()} == {"x": (7, 12), "double": (7,)}


def test_predictive_mean_and_variance_are_exact():
    # x_new ~ N(loc, 1 + 1/13). z tests, 24 comparisons, false alarm 1.6e-4; a bias of 0.075 would be 7 standard errors.
    draws = run().predict(jax.random.key(1), num_samples=10_000, batch_size=1000)["x"]
    z = (draws.mean(0) - EXACT["loc"]) / np.sqrt(14 / 13 / 10_000)
    z_var = (draws.var(0) / (14 / 13) - 1) / np.sqrt(2 / 10_000)
    assert np.abs(np.r_[z, z_var]).max() < 4.5


def test_predict_traces_the_model_once_for_all_parts():
    objective, num_calls = Objective(), [0]
    result = run(objective)
    predict = type(objective.model).predict

    class Counting(type(objective.model)):
        def predict(self, *args):
            num_calls[0] += 1
            return predict(self, *args)

    objective.model = Counting()
    result.predict(jax.random.key(1), num_samples=50, batch_size=7)
    assert num_calls == [1]


def test_bound_programs_have_the_fitted_parameters():
    result = run(num_steps=2)
    assert result.guide.params is result.params and result.model.params is result.params


def test_missing_parts_are_named():
    objective = Objective()
    objective.guide = None
    with pytest.raises(ValueError, match="posterior needs a guide, but the objective has none"):
        run(objective).posterior(jax.random.key(0), 3)
    batches = run(args=[(X[:4],)], plate_sizes={"rows": 12})
    with pytest.raises(ValueError, match="predict has no arguments.*iterable"):
        batches.predict(jax.random.key(0), num_samples=3)
    assert batches.posterior(jax.random.key(0), 3, args=(X,)).log_weights.shape == (3,)
    with pytest.raises(ValueError, match="num_samples must be an integer >= 1"):
        run().posterior(jax.random.key(0), 0)


def test_a_fit_is_frozen():
    with pytest.raises(AttributeError):
        run().steps = 3


def test_a_fit_at_other_parameters():
    result = run()
    other = result.with_params({"loc": 3})
    assert other.params["loc"] == 3.0 and other.params["loc"].dtype == result.params["loc"].dtype
    assert other.params["log_scale"] == result.params["log_scale"]
    assert other.last_params is other.params and type(other.params) is type(result.params)
    with pytest.raises(ValueError, match=r"\['lok'\] are no parameters.*\['loc', 'log_scale'\]"):
        result.with_params({"lok": 3.0})
    with pytest.raises(ValueError, match=r"'loc' has shapes \(2,\), in the fit \(\)"):
        result.with_params({"loc": np.zeros(2)})
