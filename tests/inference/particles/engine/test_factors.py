"""A factor counts once, whatever its value is: that of another factor, a carry of a scan, a site that the proposal draws."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl
from lapilli.inference.particles.resampling import never

YS = jnp.array([0.5, -1.0, 0.25])


def point():
    return ppl.sample("z", dist.Normal(0.0, 1.0))


def running(z):
    """The sum of squares as the carry of a scan of JAX's."""
    return jax.lax.scan(lambda c, y: (c - (y - z) ** 2, None), 0.0, YS)[0]


def twice():
    x = -(point() ** 2)
    ppl.factor("a", x)
    ppl.factor("b", x)


def twice_by_step():
    x = jax.lax.scan(lambda c, y: (c, c * y), point(), YS)[1]
    ppl.factor("a", x)
    ppl.factor("b", x)


def carried():
    ppl.factor("a", running(point()))


def both():
    total = running(point())
    ppl.factor("a", total)
    ppl.factor("b", total)


def itself():
    ppl.factor("a", point())


# A program with such a factor, its log-weight as a function of z, and whether a proposal draws z.
CASES = {
    "a value that another factor has": (twice, lambda z: -2 * z**2, False),
    "so by step": (twice_by_step, lambda z: 2 * z * YS.sum(), False),
    "a carry": (carried, lambda z: -((YS - z) ** 2).sum(), False),
    "a carry, twice": (both, lambda z: -2 * ((YS - z) ** 2).sum(), False),
    "a site": (itself, lambda z: z, False),
    "a proposed site": (itself, lambda z: z, True),
}


def assert_weights(result, log_weights):
    """Those of a run that never resampled, and the evidence that is their mean."""
    np.testing.assert_allclose(result.log_weights, jax.nn.log_softmax(log_weights), rtol=1e-4)
    want = jax.nn.logsumexp(log_weights) - np.log(len(log_weights))
    np.testing.assert_allclose(result.log_evidence, want, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_factors_count_once_each(name, key):
    program, log_weight, is_proposed = CASES[name]
    narrow, wide = dist.Normal(0.0, 1.0), dist.Normal(0.0, 2.0)
    proposal = (lambda: ppl.sample("z", wide)) if is_proposed else None
    result = inference.smc(program, key, num_particles=30, proposal=proposal, policy=never())
    z = result.particles["z"]
    ratio = narrow.log_prob(z) - wide.log_prob(z) if is_proposed else 0.0
    assert_weights(result, jax.vmap(log_weight)(z) + ratio)


@pytest.mark.slow  # a scan compiles
def test_the_carry_of_a_scan_with_sites_counts(key):
    """Half of each step's square in a factor of the step, and half in the sum that is a factor after the scan."""

    def program():
        def step(c, y):
            square = 0.5 * (ppl.sample("z", dist.Normal(0.0, 1.0)) - y) ** 2
            ppl.factor("half", -square)
            return c - square, None

        total, _ = ppl.scan(step, 0.0, YS)
        ppl.factor("rest", total)

    result = inference.smc(program, key, num_particles=20, policy=never())
    assert_weights(result, -((result.particles["z"] - YS) ** 2).sum(1))
