"""The estimator of the how-to page is unbiased where rows meet, too; the page itself looks at one number."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from _pages import BLOCK, Page

from _stats import assert_unbiased
from lapilli import ppl

pytestmark = pytest.mark.docs


def test_the_strategy_of_the_page_is_unbiased(key):
    scope = {}
    exec(next(block["code"] for block in BLOCK.finditer(Page("howto/own_strategy").text)), scope)

    def cost(loc):
        with ppl.plate("rows", 2):
            z = ppl.sample("z", dist.Normal(loc, 0.8), strategy=scope["Mirrored"]())
        return (z * jnp.array([1.0, -2.0])).sum() + z[0] * z[1] * 3.0 + (z[0] > 0.5)

    loc = jnp.array([0.4, -0.7])
    jump = jnp.exp(dist.Normal(0.4, 0.8).log_prob(0.5))
    exact = jnp.array([1 + 3 * loc[1] + jump, -2 + 3 * loc[0]])
    grad = ppl.expectation(cost).grad
    keys = jax.random.split(key, 40_000)
    estimates = jax.vmap(lambda k: grad(loc, k))(keys)
    assert_unbiased(estimates, exact)  # finds a bias of 0.2 (7 standard errors)
    assert 7 * (estimates.std(0) / len(estimates) ** 0.5).max() < 0.2
