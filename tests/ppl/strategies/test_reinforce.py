"""Scores with baselines: the mean of many estimates against the derivative of a sum over two values."""

import jax
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import ppl


@pytest.mark.parametrize("samples", [2, 3])
def test_a_baseline_of_the_other_samples_leaves_the_mean(samples):
    """E[f(k)] = (1 - p) f(0) + p f(1); a baseline that saw its own cost would give (n - 1) / n of the slope."""

    def cost(p):
        k = ppl.sample("k", dist.Bernoulli(p))
        return 5.0 + 3.0 * k + p * k

    strategy = ppl.Reinforce(ppl.strategies.LeaveOneOut(samples))
    estimator = ppl.expectation(cost, strategies={"k": strategy})
    grad = jax.jit(jax.vmap(lambda key: estimator.grad(0.3, key)))
    found = np.asarray(grad(jax.random.split(jax.random.key(0), 20_000)))
    exact = 3.0 + 2 * 0.3
    assert abs(found.mean() - exact) < 4.5 * found.std() / np.sqrt(len(found))
    assert found.std() / np.sqrt(len(found)) < 0.05 * exact  # half of the slope would be seen
