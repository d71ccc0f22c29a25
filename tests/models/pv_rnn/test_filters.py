"""One model, three guides: particle filters and bounds beside the exact evidence of a network with one unit.

With one unit and one latent the state is one number, and the exact filter is an integral over a grid: z_t is Gaussian given
h_{t-1} and h_t is linear in z_t.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
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


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["prior", "encoder"])
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


def linear(scale=1e-3):
    """A network whose latents are so small that it is linear: z = h P + scale * noise, x = h C + noise, up to scale^2."""
    keys = iter(jax.random.split(jax.random.key(5), 5))
    network = Network([(2, 2, 2.0)], Gaussian(1, SCALE), first_prior="learned", key=next(keys))
    normal = lambda *shape: 0.8 * jax.random.normal(next(keys), shape)
    prior = jnp.concatenate([normal(2, 2), jnp.zeros((2, 2))], -1)
    bias = jnp.array([0.0, 0.0, np.log(scale), np.log(scale)])
    where = lambda w: (w.recurrent, w.from_latent, w.prior, w.prior_bias)
    weights = eqx.tree_at(where, network.weights[0], (normal(2, 2), normal(2, 2), prior, bias))
    where = lambda n: (n.weights, n.readout)
    return eqx.tree_at(where, network, ((weights,), jnp.array([[1.0], [-0.7]]) / scale)), scale


def kalman(network, scale, seen):
    """Log evidence of the steps that are seen, and mean and variance of x at every step given them (nats, float64)."""
    w = network.weights[0]
    recurrent, latent, prior = (np.asarray(a, float) for a in (w.recurrent, w.from_latent, w.prior))
    move = 0.5 * np.eye(2) + 0.5 * (recurrent + prior[:, :2] @ latent)  # h_t = h_{t-1} @ move + ...
    noise = (0.5 * scale) ** 2 * latent.T @ latent
    readout = np.asarray(network.readout, float)[:, 0]
    mean, cov, total, moments = np.zeros(2), np.zeros((2, 2)), 0.0, []
    for t in range(T):
        mean, cov = mean @ move, move.T @ cov @ move + noise
        loc, var = mean @ readout, readout @ cov @ readout + SCALE**2
        moments.append((loc, var))
        if seen[t]:
            x = float(XS[0, t, 0])
            total += norm.logpdf(x, loc, np.sqrt(var))
            gain = cov @ readout / var
            mean, cov = mean + gain * (x - loc), cov - np.outer(gain, readout @ cov)
    return total, np.array(moments)


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["prior", "encoder"])
def test_filters_of_a_linear_network_are_kalmans_and_forecast_unseen_steps(guide, key):
    """Two steps seen and two not: evidence, mean and variance of the forecasts, over 1,000 runs of 100 particles.

    The last steps hold NaN, which nobody may read.
    """
    network, scale = linear()
    seen = jnp.arange(T) < 2
    log_evidence, moments = kalman(network, scale, seen)
    xs = jnp.where(seen[:, None], XS, jnp.nan)
    model, own = pv_rnn.programs(
        network, guide=guide, num_steps=T, num_hidden=4, key=jax.random.key(0)
    )
    if guide == "encoder":  # a proposal in the latents' range
        params = model.init(key, xs, jnp.arange(1), seen[None])
        last = lambda e: (e.mlp.layers[-1].weight, e.mlp.layers[-1].bias)
        own_law = jnp.array([1e-3, -1e-3, *2 * [np.log(1.2 * scale)]])
        params["encoder"] = eqx.tree_at(last, params["encoder"], replace_fn=jnp.zeros_like)
        params["encoder"] = eqx.tree_at(lambda e: last(e)[1], params["encoder"], own_law)
        model, own = model.bind(params), own.bind(params)

    def run(key):
        result = inference.smc(
            model, key, xs, jnp.arange(1), seen[None], num_particles=100, proposal=own
        )
        drawn = result.particles["x_unobserved"][:, :, 0, 0]
        ratio = jnp.exp(result.log_evidence - log_evidence)
        w = jnp.exp(result.log_weights)[:, None]
        return ratio, ratio * (w * drawn).sum(0), ratio * (w * drawn**2).sum(0)

    ratios, first, second = jax.jit(jax.vmap(run))(jax.random.split(key, 1000))
    assert_unbiased(np.asarray(ratios, float), 1.0)
    loc, var = moments.T
    for t in (2, 3):
        assert_unbiased(np.asarray(first[:, t], float), loc[t])
        assert_unbiased(np.asarray(second[:, t], float), loc[t] ** 2 + var[t])
