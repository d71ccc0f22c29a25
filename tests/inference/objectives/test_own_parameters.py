"""Parameters that an objective's own function declares are its parameters: they have a gradient, and a fit moves them."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax
import pytest

from lapilli import inference, ppl

KEY = jax.random.key(0)


def nothing():
    ppl.sample("z", dist.Normal(0.0, 1.0))


def of_function(model, guide):
    return -((ppl.param("m", 0.0) - 2.0) ** 2)


def of_program_inside(model, guide):
    inner = ppl.model(lambda: ppl.param("m", 0.0))
    return -((inner() - 2.0) ** 2)


def of_guide(model, guide):
    return -((guide() - 2.0) ** 2)


WAYS = {"function": of_function, "a program inside": of_program_inside, "guide": of_guide}


@pytest.mark.parametrize("way", WAYS)
def test_they_have_a_gradient_and_are_fitted(way):
    made = inference.objective(WAYS[way])(nothing, lambda: ppl.param("m", 0.0))
    params = made.init(KEY)
    value, grads = made.value_and_grad({"m": jnp.asarray(1.0)}, KEY)
    assert float(value) == -1.0 and float(grads["m"]) == 2.0
    assert list(params) == ["m"]
    fit = inference.fit(
        made, optax.sgd(0.25), (), num_steps=20, key=KEY, progress=False, k_hat="skip"
    )
    assert abs(fit.params["m"] - 2.0) < 1e-3


def test_what_is_bound_before_stays():
    """A reference with parameters of the same name keeps its own."""
    reference = ppl.model(lambda: ppl.param("m", 0.0)).bind({"m": jnp.asarray(5.0)})

    def apart(model, guide):
        return -((guide() - reference()) ** 2)

    made = inference.objective(apart)(nothing, lambda: ppl.param("m", 0.0))
    value, grads = made.value_and_grad({"m": jnp.asarray(1.0)}, KEY)
    assert float(value) == -16.0 and float(grads["m"]) == 8.0
