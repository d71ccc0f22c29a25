"""One model, three guides: particle filters and bounds beside the exact evidence of a network with one unit.

With one unit and one latent the state is one number, and the exact filter is an integral over a grid: z_t is Gaussian given
h_{t-1} and h_t is linear in z_t.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _slow import some_slow
from scipy.stats import norm

from _stats import assert_unbiased
from lapilli import inference
from lapilli.models import pv_rnn
from lapilli.models.pv_rnn import Gaussian, Network

T, SCALE = 4, 0.4
XS = jnp.array([0.5, -0.3, 0.8, 0.1])[None, :, None]


def one_unit():
    network = Network([(1, 1, 2.0)], Gaussian(1, SCALE), key=jax.random.key(2))
    one = lambda x: jnp.array([[x]])
    w = network.weights[0]
    new = (one(0.8), one(1.5), one(1.2).repeat(2, 1).at[0, 1].set(-0.5), jnp.array([0.1, -0.3]))
    weights = eqx.tree_at(lambda w: (w.recurrent, w.from_latent, w.prior, w.prior_bias), w, new)
    return eqx.tree_at(lambda n: (n.weights, n.readout), network, ((weights,), one(1.3)))


def exact_log_evidence(network):
    """Sum over a grid of 2,001 states, float64."""
    w = network.weights[0]
    number = lambda a: float(np.ravel(a)[0])
    grid = np.linspace(-6, 6, 2001)
    width = grid[1] - grid[0]
    density, total = None, 0.0
    for t in range(T):
        before = np.zeros(1) if t == 0 else grid
        mean_z, scale_z = np.zeros(1), np.ones(1)
        if t > 0:
            d = np.tanh(before)
            mean_z = np.tanh(d * float(w.prior[0, 0]) + float(w.prior_bias[0]))
            scale_z = np.exp(d * float(w.prior[0, 1]) + float(w.prior_bias[1]))
        drive = np.tanh(before) * number(w.recurrent) + number(w.bias)
        mean = 0.5 * before + 0.5 * (drive + number(w.from_latent) * mean_z)
        scale = 0.5 * abs(number(w.from_latent)) * scale_z
        moves = norm.pdf(grid[:, None], mean, scale)
        ahead = moves[:, 0] if t == 0 else moves @ density * width
        emitted = np.tanh(grid) * number(network.readout) + number(network.readout_bias)
        joint = ahead * norm.pdf(float(XS[0, t, 0]), emitted, SCALE)
        evidence = joint.sum() * width
        total += np.log(evidence)
        density = joint / evidence
    return total


@pytest.fixture(scope="module")
def exact():
    network = one_unit()
    return network, exact_log_evidence(network)


@pytest.mark.parametrize("guide", some_slow(["prior", "encoder"], "encoder"))
def test_particle_filters_estimate_the_evidence(guide, exact, key):
    """Mean of Z over 4,000 runs of 50 particles is exact: z < 4.5; a bias of 5% is at least 7 standard errors."""
    network, log_evidence = exact
    model, own = pv_rnn.programs(
        network, guide=guide, num_steps=T, num_hidden=4, key=jax.random.key(0)
    )
    run = lambda k: (
        inference.smc(
            model, k, XS, jnp.arange(1), num_particles=50, history="none", proposal=own
        ).log_evidence
    )
    logs = jax.jit(jax.vmap(run))(jax.random.split(key, 4000))
    ratios = np.exp(np.asarray(logs, float) - log_evidence)
    assert ratios.std() / np.sqrt(ratios.size) < 0.05 / 7
    assert_unbiased(ratios, 1.0)


@pytest.mark.slow  # four bounds are compiled
def test_bounds_of_the_guides_lie_below_and_rise_with_particles(exact, key):
    """Adaptive and amortised bounds, K = 1 and K = 50: ordered as theory has it, by more than their error."""
    network, log_evidence = exact
    for guide in ("adaptive", "encoder"):
        programs = pv_rnn.programs(
            network, guide=guide, num_sequences=1, num_steps=T, num_hidden=4, key=jax.random.key(0)
        )
        means, errors = [], []
        for k in (1, 50):
            bound = inference.iwelbo(*programs, num_particles=k, check_jumps=False)
            params = bound.init(key, XS, jnp.arange(1))
            run = jax.jit(
                jax.vmap(lambda key, b=bound, p=params: b.value(p, key, XS, jnp.arange(1)))
            )
            values = np.asarray(run(jax.random.split(key, 4000)), float)
            means.append(values.mean())
            errors.append(values.std() / np.sqrt(values.size))
        assert means[0] + 4.5 * errors[0] < means[1] - 4.5 * errors[1]
        assert means[1] < log_evidence + 4.5 * errors[1]
