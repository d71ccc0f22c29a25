"""Networks in bfloat16: weights, log-densities, gradients and losses stay in float32, or it is said that they do not."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

from lapilli import inference, ppl

X = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]
Y = (X[:, 0] > 0).astype(int)


def classes(x, y, out):
    weights = ppl.param("weights", jnp.zeros((1, 2)))
    logits = (x.astype(jnp.bfloat16) @ weights.astype(jnp.bfloat16)).astype(out)
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Categorical(logits=logits), obs=y)


def test_log_weights_whose_digits_are_lost_say_nothing_of_the_draws():
    log_weights = jnp.asarray(np.random.default_rng(0).normal(-1000.0, 3.0, 100))
    for kind in (jnp.float32, jnp.bfloat16):  # which knows -1000 to four nats
        found = inference.diagnostics.importance_diagnostics(log_weights.astype(kind))
        assert np.isnan(found.ess) == np.isnan(found.k_hat) == (kind is jnp.bfloat16)


def test_a_log_density_in_half_precision_is_refused():
    program = ppl.as_program(lambda x, y: classes(x, y, jnp.bfloat16))
    with pytest.raises(
        TypeError, match=r"Site 'y': its log-density is computed in bfloat16.*cast what"
    ):
        program.bind({"weights": jnp.zeros((1, 2))}).simulate(jax.random.key(0), X, Y)


def test_a_network_in_half_precision_keeps_the_rest():
    bound = inference.elbo(lambda x, y: classes(x, y, jnp.float32), lambda x, y: None)
    params = bound.init(jax.random.key(0), X, Y)
    value, grads = bound.value_and_grad(params, jax.random.key(0), X, Y)
    fitted = inference.fit(bound, optax.adam(0.1), (X, Y), num_steps=2, progress=False)
    for x in jax.tree.leaves((params, value, grads, fitted.params)):
        assert x.dtype == jnp.float32
    assert fitted.history["value"].dtype == np.float32


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_a_factor_in_half_precision_is_refused(dtype):
    def program():
        ppl.factor("weight", jnp.ones(3, dtype).sum())

    with pytest.raises(TypeError, match=r"Site 'weight': its log-density is computed in"):
        ppl.as_program(program).simulate(jax.random.key(0))
