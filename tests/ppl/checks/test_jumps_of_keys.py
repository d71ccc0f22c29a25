"""Noise of ppl.rng_key: parameters may move and scale it, not threshold it."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import ppl

random = jax.random
key_of = lambda: ppl.rng_key("noise")


def in_a_scan(p):
    step = lambda c, _: (c + jnp.where(random.uniform(key_of()) < p, 1.0, 0.0), None)
    return ppl.scan(step, 0.0, None, length=3)[0]


def in_lanes(p):
    lane = lambda: jnp.where(random.uniform(key_of()) < p, 1.0, 0.0)
    return ppl.particles(3)(lane)().sum()


def above_a_site(p):
    mean = random.bernoulli(key_of(), p) * 1.0
    return ppl.sample("z", dist.Normal(mean, 1.0)) ** 2


def below_a_score_site(p):
    b = ppl.sample("b", dist.Bernoulli(p), strategy="reinforce")
    return b + random.bernoulli(key_of(), p) * 1.0


JUMPING = {
    "bernoulli": lambda p: random.bernoulli(key_of(), p) * 2.0,
    "categorical": lambda p: random.categorical(key_of(), p * jnp.arange(3.0)) * 1.0,
    "poisson": lambda p: random.poisson(key_of(), jnp.exp(p)) * 1.0,
    "rounded": lambda p: jnp.round(random.normal(key_of()) * p),
    "branch": lambda p: ppl.cond(random.uniform(key_of()) < p, lambda: 1.0, lambda: p),
    "scan": in_a_scan,
    "particles": in_lanes,
    "above a site": above_a_site,
    "below a score site": below_a_score_site,
}


@pytest.mark.fast("rounded")
@pytest.mark.parametrize("name", JUMPING)
def test_noise_that_parameters_threshold_is_refused(name):
    with pytest.raises(ValueError, match=r"ppl.rng_key\('noise'\).*jumps by.*make the draw a site"):
        ppl.expectation(JUMPING[name]).plan(0.3)


def test_it_is_refused_also_where_it_vanishes_at_the_initial_parameters():
    def cost(p):
        gate = random.normal(key_of()) * p["v"] > jnp.tanh(p["w"])
        return jnp.where(gate, 1.0, 0.0)

    with pytest.raises(ValueError, match=r"ppl.rng_key\('noise'\)"):
        ppl.expectation(cost).plan({"v": 0.0, "w": 0.0})


def chosen_by_a_score_site(p):
    b = ppl.sample("b", dist.Bernoulli(p), strategy="reinforce")
    return jnp.where(random.uniform(key_of()) < 0.5 * b, p, 1.0)


CONTINUOUS = {
    "dropout": lambda p: jnp.where(random.bernoulli(key_of(), 0.5, (8,)), 2 * p, 0.0) @ jnp.arange(8.0),
    "moved and scaled": lambda p: (p + jnp.exp(p) * random.normal(key_of())) ** 2,
    "relu": lambda p: jax.nn.relu(random.normal(key_of(), (8,)) + p).sum(),
    "sorted": lambda p: jnp.sort(random.normal(key_of(), (4,)) * p) @ jnp.arange(4.0),
    "a jump at a fixed parameter": lambda p: jnp.where(p > 0, p, -1.0) + random.normal(key_of()),
    "a branch on a parameter": lambda p: ppl.cond(p > 0, lambda: p, lambda: -p) * random.normal(key_of()),
    "chosen by a score site": chosen_by_a_score_site,
}  # fmt: skip


@pytest.mark.parametrize("name", CONTINUOUS)
def test_no_false_alarm(name):
    ppl.expectation(CONTINUOUS[name]).plan(0.3)


@pytest.mark.fast("straight")
@pytest.mark.parametrize("region", ["straight", "scan", "particles"])
def test_noise_of_a_key_is_differentiated_through(region, key):
    """d/dp of sum of (p + e_i)^2 at the noise of this run, by hand."""
    square = lambda p: (p + random.normal(key_of())) ** 2

    def cost(p):
        if region == "scan":
            return ppl.scan(lambda c, _: (c + square(p), None), 0.0, None, length=3)[0]
        return square(p) if region == "straight" else ppl.particles(3)(lambda: square(p))().sum()

    value, grad = ppl.expectation(cost).value_and_grad(0.3, key)
    shifted = ppl.expectation(lambda p: cost(p)).value(0.3 + 1e-2, key)
    count = 1 if region == "straight" else 3
    np.testing.assert_allclose(shifted, value + 1e-2 * grad + count * 1e-4, rtol=1e-5)
