"""A variational recurrent network whose recurrence hears x and z (Chung et al. 2015, arXiv:1506.02216), for lost_cells.py.

    p(z_t | h_{t-1}),   p(x_t | z_t, h_{t-1}),   q(z_t | x_t, h_{t-1}),   h_t = GRU(x_t, z_t, h_{t-1}).

Cells that are not seen are drawn from p(x_t | z_t, h_{t-1}), and then heard; the encoder reads zeros there, and the mask. Where
nothing of a step is seen, q is the prior.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax
from _predictors import (  # fmt: skip
    CHANNELS,
    Config,
    Fits,
    Predictor,
    ascend,
    side_by_side,
    unseen_ahead,
    with_drops,
)

from lapilli import inference, ppl

NUM_LATENTS, NUM_UNITS, NUM_HIDDEN = 5, 32, 32


class Parts(eqx.Module):
    """The networks: of the prior, of the posterior, of the output, and the recurrence."""

    prior: eqx.nn.Linear
    posterior: eqx.nn.MLP
    output: eqx.nn.MLP
    cell: eqx.nn.GRUCell

    def __init__(self, key: jax.Array) -> None:
        keys = jax.random.split(key, 4)
        mlp = lambda num_in, num_out, key: eqx.nn.MLP(
            num_in, num_out, NUM_HIDDEN, 1, activation=jnp.tanh, key=key
        )
        self.prior = eqx.nn.Linear(NUM_UNITS, 2 * NUM_LATENTS, key=keys[0])
        self.posterior = mlp(2 * CHANNELS + NUM_UNITS, 2 * NUM_LATENTS, keys[1])
        self.output = mlp(NUM_LATENTS + NUM_UNITS, CHANNELS, keys[2])
        self.cell = eqx.nn.GRUCell(CHANNELS + NUM_LATENTS, NUM_UNITS, key=keys[3])


def law(pre: jax.Array) -> dist.Distribution:
    """N(a, exp(b)^2) of the latents for (a, b)."""
    loc, log_scale = jnp.split(pre, 2, -1)
    return dist.Normal(loc, jnp.exp(log_scale)).to_event(1)


def vrnn_of(key: jax.Array) -> ppl.Program:
    """The program, with freshly initialised networks; returns the means of x_1 .. x_T, [steps, sequences, channels]."""
    parts_0 = Parts(key)

    @ppl.model
    def vrnn(x: jax.Array, seen: Any = None) -> jax.Array:
        parts = ppl.module("parts", parts_0)
        scale = jnp.exp(ppl.param("log_scale", jnp.zeros(CHANNELS)))
        shape = (*x.shape[:2], -1)
        cells = jnp.ones(x.shape, bool) if seen is None else jnp.reshape(seen, shape)
        cells = jnp.broadcast_to(cells, x.shape)
        joined = lambda *arrays: jnp.concatenate(arrays, -1)

        def step(h: jax.Array, inputs: Any) -> Any:
            x, cells, seen = inputs
            prior = jax.vmap(parts.prior)(h)
            read = joined(jnp.where(cells, x, 0), cells.astype(x.dtype), h)
            q = jnp.where(cells.any(-1, keepdims=True), jax.vmap(parts.posterior)(read), prior)
            z = ppl.sample("z", law(prior), proposal=law(q))
            mean = jax.vmap(parts.output)(joined(z, h))
            x = ppl.sample("x", dist.Normal(mean, scale).to_event(1), obs=x, obs_mask=seen)
            return jax.vmap(parts.cell)(joined(x, z), h), mean

        by_time = lambda a: None if a is None else jnp.swapaxes(a, 0, 1)
        with ppl.plate("sequences", len(x)):
            h = jnp.zeros((len(x), NUM_UNITS))
            inputs = (by_time(x), by_time(cells), None if seen is None else by_time(cells))
            return ppl.scan(step, h, inputs)[1]

    return vrnn


def learn_vrnn(config: Config, x: jax.Array, key: jax.Array, *, drops: bool = False) -> Fits:
    """A VRNN for each beta and seed, by the evidence bound; with `drops` of cells that are left (`_predictors.dropped`)."""
    model = vrnn_of(key)
    guide = ppl.guide_of(model)
    bound = inference.elbo(model, guide, kl="analytic").with_plate_sizes({"sequences": len(x)})
    params_0 = bound.init(key, x)
    bound.plan(params_0, x)  # every check, once

    def one(key: jax.Array, beta: jax.Array) -> Any:
        network_key, key = jax.random.split(key)
        params = bound.init(network_key, x)
        params["parts"] = eqx.filter(Parts(network_key), eqx.is_inexact_array)
        weighted = bound.with_site_weights({"x*": 1 / CHANNELS, "z": beta / CHANNELS})
        value_and_grad = lambda params, key, x, rows, *seen: weighted.value_and_grad(params, key, x, *seen)  # fmt: skip
        value_and_grad = with_drops(value_and_grad) if drops else value_and_grad
        return ascend(value_and_grad, params, optax.adam(3e-3), config, x, key)

    name = "VRNN, dropped cells" if drops else "VRNN"
    params, betas = side_by_side(name, one, config.betas, config, x, key)
    return Fits(params, betas, (model, guide), None)


def by_vrnn(config: Config, fits: Fits, params: Any, network: Any, beta: Any) -> Predictor:
    """Latents from q up to t, from the prior after it; what is not seen is drawn and heard. No weights."""
    guide = fits.programs[1].bind(params)

    def emitted(xs: jax.Array, seen: jax.Array, key: jax.Array) -> jax.Array:
        copies = lambda a: jnp.broadcast_to(a, (config.num_particles, *a.shape))
        return guide.simulate(key, copies(xs), copies(seen)).retval

    return unseen_ahead(config, emitted)
