"""NUTS and particles on the same program: two-sample tests of posterior moments.

Independent chains on one side, independent runs on the other; a z score needs no correction for autocorrelation then. False
alarms: 6.8e-6 per coordinate (see _stats).
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS

from _stats import assert_same_mean
from lapilli import inference, ppl

COUNTS = np.array([0.0, 3.0, 1.0, 7.0, 2.0], np.float32)
Y = np.array([0.5, -1.0, 0.25, 2.0, 1.5], np.float32)


@ppl.model
def rates(counts):
    """Five rates under a common law: correlated, skewed, two of them on the positive axis."""
    mean = ppl.sample("mean", dist.Normal(0.5, 1.0))
    spread = ppl.sample("spread", dist.Gamma(3.0, 4.0))
    with ppl.plate("cells", 5):
        log_rate = ppl.sample("log_rate", dist.Normal(mean, spread))
        ppl.sample("count", dist.Poisson(jnp.exp(log_rate)), obs=counts)


@ppl.model
def walk(ys):
    """States and a coefficient of theirs."""
    a = ppl.sample("a", dist.Uniform(-1.0, 1.0))

    def step(x, y):
        x = ppl.sample("x", dist.Normal(a * x, 1.0))
        return x, ppl.sample("y", dist.Normal(x, 1.0), obs=y)

    ppl.scan(step, 0.0, ys)


def moments(draws):
    """First moments and squares of all coordinates."""
    flat = jnp.concatenate([x.reshape(len(x), -1) for _, x in sorted(draws.items())], 1)
    return jnp.concatenate([flat, flat**2], 1)


def of_chains(program, data, key, num_chains=100):
    chains = MCMC(
        NUTS(program), num_warmup=300, num_samples=300, num_chains=num_chains, chain_method="vectorized", progress_bar=False
    )  # fmt: skip
    chains.run(key, data)
    return np.asarray(jax.vmap(moments)(chains.get_samples(group_by_chain=True)).mean(1))


def of_runs(run, key, num_runs=100):
    def one(key):
        result = run(key)
        return jnp.exp(result.log_weights) @ moments(result.particles)

    return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(key, num_runs)))


# One standard error is a fortieth to a hundredth of a posterior standard deviation: a shift of a fifth of one is found.


@pytest.mark.slow  # NUTS compiles for long
def test_tempered_particles_agree_with_nuts(key):
    run = lambda key: inference.tempered_smc(
        rates, key, COUNTS, num_particles=1000, num_moves=5, kernel=inference.particles.moves.HMC(5)
    )
    assert_same_mean(of_chains(rates, COUNTS, key), of_runs(run, jax.random.fold_in(key, 1)))


@pytest.mark.slow  # NUTS compiles for long
def test_a_filter_agrees_with_nuts(key):
    run = lambda key: inference.smc(walk, key, Y, num_particles=20_000)
    assert_same_mean(of_chains(walk, Y, key), of_runs(run, jax.random.fold_in(key, 1)))
