"""Loops of a proposal that are not one for one those of the model: weights are p / q of whatever it draws."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl
from lapilli.inference.particles.resampling import never

YS = jnp.array([0.5, -0.25])
PRIOR, DRAWN = dist.Normal(0.0, 1.0), dist.Normal(0.5, 1.5)


def model(ys):
    """Two loops, each with a site and a factor of its own."""

    def of(name):
        def step(c, y):
            ppl.factor(f"factor {name}", ppl.sample(name, PRIOR) * y)
            return c, None

        ppl.scan(step, 0.0, ys)

    of("x")
    of("z")


def loops(*steps):
    """A proposal with a loop for each of some sites, or some of them together."""

    def proposal(ys):
        for names in steps:
            ppl.scan(lambda c, y, names=names: (c, [ppl.sample(n, DRAWN) for n in names]), 0.0, ys)

    return proposal


CASES = {
    "in order": loops("x", "z"),
    "in another order": loops("z", "x"),
    "one for both": loops("xz"),
    "the second alone": loops("z"),
}


@pytest.mark.slow_for("in order", "one for both")  # a compilation each
@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_of_the_draws(name, key):
    result = inference.smc(model, key, YS, num_particles=20, proposal=CASES[name], policy=never())
    x, z = result.particles["x"], result.particles["z"]
    ratio = lambda v: (PRIOR.log_prob(v) - DRAWN.log_prob(v)).sum(1)
    log_weights = (x + z) @ YS + ratio(z)
    if name != "the second alone":
        log_weights += ratio(x)
    np.testing.assert_allclose(result.log_weights, jax.nn.log_softmax(log_weights), rtol=1e-4)
    want = jax.nn.logsumexp(log_weights) - np.log(20)
    np.testing.assert_allclose(result.log_evidence, want, rtol=1e-4)


@pytest.mark.parametrize("history", ["none", "ancestors"])
def test_paths_that_were_not_kept_are_missed_by_name(history, key):
    with pytest.raises(ValueError, match="needs site 'z', which .* not kept. Use history='full'"):
        inference.smc(
            model, key, YS, num_particles=4, proposal=CASES["one for both"], history=history
        )
