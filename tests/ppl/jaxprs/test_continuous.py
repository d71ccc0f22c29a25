"""Functions of JAX that need no search for jumps: they are known by where JAX defines them, and are continuous."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.scipy import special

from lapilli import ppl
from lapilli.ppl.checks import _jumps
from lapilli.ppl.jaxprs._continuous import CONTINUOUS, is_continuous_call

WHOLE = (-40.0, 40.0)
# Argument -> value, and the interval of arguments.
FUNCTIONS = {
    **{n: (getattr(jax.nn, n), WHOLE) for n in (
        "celu elu hard_sigmoid hard_silu hard_tanh leaky_relu log_sigmoid relu relu6 selu silu softplus sparse_plus "
        "squareplus".split()
    )},
    "logaddexp": (lambda x: jnp.logaddexp(x, 0.3), WHOLE),
    "logaddexp2": (lambda x: jnp.logaddexp2(x, 0.3), WHOLE),
    "log_ndtr": (special.log_ndtr, WHOLE),
    "_ndtri": (special.ndtri, (1e-3, 1 - 1e-3)),
    "xlog1py": (lambda x: special.xlog1py(x, x**2), WHOLE),
    "xlogy": (lambda x: special.xlogy(x, x**2), WHOLE),
    "_erfcx": (special.erfcx, (-5.0, 40.0)),
    "_xlogx": (special.entr, (0.0, 5.0)),
}  # fmt: skip


def test_every_name_is_tried():
    assert FUNCTIONS.keys() == CONTINUOUS


@pytest.mark.fast("hard_silu", "hard_tanh", "leaky_relu", "relu", "relu6", "xlogy")
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_the_function_is_known_and_continuous(name):
    fn, (low, high) = FUNCTIONS[name]
    jaxpr = jax.make_jaxpr(fn)(0.5)
    assert any(is_continuous_call(eqn) for eqn in jaxpr.eqns)
    with jax.enable_x64(True):
        steps = []
        for num_points in (40_001, 400_001):
            y = np.asarray(fn(jnp.linspace(low, high, num_points)))
            steps.append((np.abs(np.diff(y)) / (1 + np.abs(y[1:]))).max())
    assert steps[1] < 0.2 * steps[0]  # a jump would stay; x log x has an infinite slope at 0


@pytest.mark.slow
def test_a_function_of_the_user_with_such_a_name_is_searched():
    @jax.jit
    def relu(x):
        return jnp.where(x > 0, 1.0, 0.0)

    def cost(m):
        return relu(ppl.sample("z", dist.Normal(m, 1.0), infer={"strategy": "reparam"}))

    assert not any(is_continuous_call(eqn) for eqn in jax.make_jaxpr(relu)(0.5).eqns)
    with pytest.raises(ValueError, match="Site 'z': the result jumps by 1"):
        ppl.expectation(cost).plan(0.3)


def test_a_jump_before_such_a_function_is_searched():
    def cost(m):
        z = ppl.sample("z", dist.Normal(m, 1.0), infer={"strategy": "reparam"})
        return jax.nn.softplus(jnp.where(z > 0, 1.0, 0.0))

    with pytest.raises(ValueError, match="Site 'z': the result jumps by"):
        ppl.expectation(cost).plan(0.3)


def test_nothing_is_searched_where_only_such_functions_branch(monkeypatch):
    def search(*_, **__):
        raise AssertionError("searched")

    monkeypatch.setattr(_jumps, "Probe", search)

    def cost(m):
        z = ppl.sample("z", dist.Normal(m, 1.0).expand([3]).to_event(1))
        return (special.log_ndtr(z) + jax.nn.elu(z) + jax.nn.leaky_relu(z)).sum()

    ppl.expectation(cost).plan(0.3)
