"""Programs whose tilts are known: twelve bits, and a Normal under a quadratic reward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from lapilli import ppl

KEY = jax.random.key(0)
LENGTH = 12
# All strings, and the reward of each.
STRINGS = (np.arange(2**LENGTH)[:, None] >> np.arange(LENGTH)) & 1
REWARDS = (STRINGS[:, 1:] * STRINGS[:, :-1]).sum(1)
# A standard Normal tilted by a x - c x^2 / 2 is Normal(MEAN, VARIANCE).
A, C = 1.2, 0.7
MEAN, VARIANCE = A / (1 + C), 1 / (1 + C)


@ppl.model
def bits():
    """Twelve fair bits, one after the other."""

    def step(before, _):
        x = ppl.sample("x", dist.Bernoulli(0.5))
        return x, x

    return ppl.scan(step, 0, None, LENGTH)[1]


def pairs(x):
    """The number of neighbours that are both 1."""
    return (x[1:] * x[:-1]).sum()


@functools.cache
def chain_of_tilt(temperature=1.0):
    """The tilt by `pairs` as a Markov chain: log Z, and the logits of a 1 [step, bit before]; by backward sums."""
    links = np.array([[1.0, 1.0], [1.0, np.exp(1 / temperature)]])
    ahead, logits = np.ones(2), []
    for _ in range(LENGTH):
        weights = links * ahead / 2  # [before, now]
        logits.append(np.log(weights[:, 1]) - np.log(weights[:, 0]))
        ahead = weights.sum(1)
    return float(np.log(ahead[0])), np.array(logits[::-1])


@ppl.model
def policy():
    """A Markov chain of bits, of any logits, [step, bit before]."""
    table = ppl.param("logits", jnp.zeros((LENGTH, 2)))

    def step(before, row):
        x = ppl.sample("x", dist.Bernoulli(logits=row[before]))
        return x, x

    return ppl.scan(step, 0, table)[1]


def quadratic(x):
    """A reward."""
    return A * x - C * x**2 / 2


@ppl.model
def normal():
    return ppl.sample("x", dist.Normal(0.0, 1.0))


@ppl.model
def two_steps(rho=0.6):
    """A start, and an end of variance 1 that has correlation rho with it."""
    x = ppl.sample("start", dist.Normal(0.0, 1.0))
    return ppl.sample("end", dist.Normal(rho * x, (1 - rho**2) ** 0.5))
