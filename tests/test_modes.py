"""JAX's modes of debugging: what works without them works with them, and gives the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _mixed_calls import SERIES, X, Y, arrays, calls

from lapilli import inference, ppl

MODES = {
    "rank_promotion": lambda: jax.numpy_rank_promotion("raise"),
    "debug_nans": lambda: jax.debug_nans(True),
}
ROWS = np.stack([X, X**2, np.ones_like(X)], 1)


@ppl.model
def plane(x, y=None):
    slopes = ppl.sample("slopes", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    scale = ppl.sample("scale", dist.LogNormal(-1.0, 0.5))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(x @ slopes, scale), obs=y)


@ppl.model
def hidden(y):
    def step(k, y):
        k = ppl.sample("k", dist.Categorical(jnp.array([[0.9, 0.1], [0.2, 0.8]])[k]))
        ppl.sample("y", dist.Normal(jnp.array([-1.0, 1.0])[k], 1.0), obs=y)
        return k, None

    ppl.scan(step, 0, y)


def more_calls():
    key, kinds = jax.random.key, ppl.eliminate(hidden, "k")
    fit = lambda i: inference.fit(
        plane, args=(ROWS, Y), num_steps=5, key=key(i), progress=False, k_hat="skip"
    )
    return {
        "fit, all by itself": lambda i: fit(i).params,
        "smc, with a tail": lambda i: (
            inference.smc(plane, key(i), ROWS, Y + 1.0, num_particles=32).log_weights
        ),
        "tempered_smc": lambda i: (
            inference.tempered_smc(plane, key(i), ROWS, Y, num_particles=16).log_evidence
        ),
        "eliminate, a chain": lambda i: (
            kinds.posterior(key(i), {}, SERIES),
            kinds.mode({}, SERIES)[0],
        ),
    }


@pytest.mark.slow  # all is compiled anew in each mode
@pytest.mark.parametrize("mode", MODES)
def test_all_kinds_of_calls_run_and_give_the_same(mode):
    plain = calls() | more_calls()
    expected = {name: arrays(call(1)) for name, call in plain.items()}
    with MODES[mode]():
        for name, call in (calls() | more_calls()).items():
            found = arrays(call(1))
            for ours, theirs in zip(found, expected[name], strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=name)
