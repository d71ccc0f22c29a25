"""Summed states of counts, in densities with gamma functions of them: the compiler folds what it takes for constants wrongly."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.scipy.special import gammainc, gammaln
from scipy import stats

from lapilli import ppl

KEY = jax.random.key(0)
NUM = 5
STATES = np.arange(NUM)


def pair(k):
    """Two numbers, which are chosen."""
    both = jnp.stack([k + 1.0, 5.5 - k])
    return jnp.where(both > 9, 1.0, both)


LAWS = {
    "binomial": (lambda p: dist.BinomialProbs(p, NUM - 1), lambda p: stats.binom(NUM - 1, p)),
    "binomial logits": (
        lambda p: dist.BinomialLogits(jnp.log(p) - jnp.log1p(-p), NUM - 1),
        lambda p: stats.binom(NUM - 1, p),
    ),
    "beta-binomial": (
        lambda p: dist.BetaBinomial(1 + p, 2.0, NUM - 1),
        lambda p: stats.betabinom(NUM - 1, 1 + p, 2),
    ),
}
COSTS = {
    "binomial": lambda k: dist.BinomialProbs(0.3, 6).log_prob(k),
    "number of trials": lambda k: dist.Binomial(k + 2, 0.4).log_prob(jnp.asarray(1)),
    "beta-binomial": lambda k: dist.BetaBinomial(1.5, 2.0, 6).log_prob(k),
    "Poisson": lambda k: dist.Poisson(1.0 + k).log_prob(jnp.asarray(2)),
    "negative binomial": lambda k: dist.NegativeBinomial2(1.5, 2.0).log_prob(k),
    "multinomial": lambda k: dist.DirichletMultinomial(jnp.array([1.5, 2.0]), 6).log_prob(
        jnp.stack([k, 6 - k])
    ),
    "Gamma": lambda k: dist.Gamma(1.0 + k, 2.0).log_prob(1.5),
    "Beta": lambda k: dist.Beta(1.0 + k, 6.0 - k).log_prob(0.3),
    "two log-gammas": lambda k: gammaln(pair(k))[1],
    "two incomplete gammas": lambda k: gammainc(pair(k), pair(k))[0],
}


@pytest.mark.parametrize("name", LAWS)
def test_probabilities_of_summed_counts_are_those_of_their_law(name):
    """The derivatives of sum_k p_k w_k in the weights w are the probabilities."""
    law, exact = LAWS[name]

    def weight(w):
        return w[ppl.sample("k", law(0.35))]

    found = ppl.expectation(weight, strategies="enum").grad(jnp.zeros(NUM), KEY)
    np.testing.assert_allclose(found, exact(0.35).pmf(STATES), rtol=1e-5)


def test_costs_of_summed_counts_are_those_of_each_state():
    """The derivatives in the weights of costs are their means, each cost evaluated by itself here."""
    probs = jnp.array([0.1, 0.3, 0.2, 0.15, 0.25])

    def weighted(w):
        k = ppl.sample("k", dist.Categorical(probs))
        return jnp.stack([cost(k) for cost in COSTS.values()]) @ w

    found = ppl.expectation(weighted, strategies="enum").grad(jnp.zeros(len(COSTS)), KEY)
    for name, got in zip(COSTS, found, strict=True):
        want = sum(p * COSTS[name](jnp.asarray(k)) for p, k in zip(probs, STATES, strict=True))
        np.testing.assert_allclose(got, want, rtol=2e-5, err_msg=name)
