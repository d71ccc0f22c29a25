"""Objectives written as classes of one's own."""

import jax
import numpy as np
import optax
import pytest

from lapilli import inference, ppl


class Bowl(inference.AbstractObjective):
    """(x - number of steps so far)^2."""

    name, direction, model, guide = "bowl", "min", None, None

    def init(self, key, *args):
        return ppl.Params({"x": 0.5})

    def init_state(self, params, key, *args):
        return 0.0

    def step(self, params, state, key, *args):
        value, grads = jax.value_and_grad(lambda p: (p["x"] - state) ** 2)(params)
        return value, grads, state + 1


def test_two_methods_make_an_objective():
    bowl, key = Bowl(), jax.random.key(0)
    params = bowl.init(key)
    assert bowl.value(params, key) == 0.25 and bowl.grad(params, key)["x"] == 1.0
    assert bowl.label() == "bowl" and bowl.plate_sizes() == {} == bowl.site_report(params, key)


class Pair(Bowl):
    """The product of the state's noise and the step's, of mean 0."""

    def init_state(self, params, key, *args):
        return jax.random.normal(key)

    def step(self, params, state, key, *args):
        return state * jax.random.normal(key), params, state


def test_noise_of_a_fresh_state_is_not_that_of_the_step():
    """40,000 products, one standard error .005; of one key for both the mean was 1."""
    pair, keys = Pair(), jax.random.split(jax.random.key(0), 40_000)
    both = inference.game({"a": pair, "b": pair}, params={"a": "x", "b": "y"}, order="simultaneous")
    for objective in (pair, 1.0 * pair, both):
        values = jax.vmap(lambda k, o=objective: o.value_and_grad({"x": 0.0, "y": 0.0}, k)[0])(keys)
        assert abs(values.mean()) < 4.5 / 200


def test_fit_trains_it_with_its_state():
    fit = inference.fit(
        Bowl(), optax.sgd(0.5), (), num_steps=3, key=jax.random.key(0), progress=False
    )
    np.testing.assert_allclose(fit.history["value"], [0.25, 1.0, 1.0])  # at 0.5, 0, 1
    assert fit.params["x"] == 2.0 and fit.state == 3.0 and fit.model is None


def test_what_it_does_not_define_is_refused():
    with pytest.raises(TypeError, match="abstract method"):
        inference.AbstractObjective()  # type: ignore[abstract]
    with pytest.raises(TypeError, match="bowl: plate sizes {'rows': 8} .* Bowl has no plates"):
        Bowl().with_plate_sizes({"rows": 8})
