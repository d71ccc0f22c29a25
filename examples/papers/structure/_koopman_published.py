"""The published objective of Koopman autoencoders, a baseline for koopman.py.

Its prior is recurrent, h_t = GRU(z_{t-1}, h_{t-1}), p(z_t | z_<t) = N(m(h_t), s(h_t)^2), its guide q(z | x) = prod_t q(z_t | x).
With z from the guide, and u an independent draw of the prior, it minimises

    |x - decoder(z)|^2 + w_KL sum_t KL[ q(z_t | x) | p(z_t | u_<t) ] + w_A mean_t |u_{t+1} - A u_t|^2 / |A u|,   A least squares.

An evidence bound has KL[ q(z_t | x) | p(z_t | z_<t) ] instead, along the guide's own draw. On average over u the published sum is

    sum_t KL[ q(z_t | x) | p(z_t) ] + sum_t E_u[ log p(z_t) - log p(z_t | u_<t) ] >= sum_t KL[ q(z_t | x) | p(z_t) ]

(the divergence is convex in its second argument), whatever the steps have to do with each other under the prior: log-likelihood
less this sum may lie above the evidence.

Source: Naiman et al. 2024, and its released code, whose weights for sines stand here.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions.kl import kl_divergence

from lapilli import inference, ppl

KL_WEIGHT, PENALTY_WEIGHT = 0.007, 0.005


class RecurrentPrior(eqx.Module):
    """p(z_t | z_<t) by a GRU: (z_{t-1}, h_{t-1}) -> h_t, mean, scale."""

    cell: eqx.nn.GRUCell
    last: eqx.nn.Linear

    def __init__(self, num_states: int, num_hidden: int, *, key: jax.Array) -> None:
        cell_key, last_key = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(num_states, num_hidden, key=cell_key)
        self.last = eqx.nn.Linear(num_hidden, 2 * num_states, key=last_key)

    def __call__(self, z: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        h = jax.vmap(self.cell)(z, h)
        mean, log_scale = jnp.split(jax.vmap(self.last)(h), 2, -1)
        return h, mean, jnp.exp(log_scale)


class Published(inference.AbstractObjective):
    """The objective of the module's text, per series, of programs with modules "prior", "decoder" and "encoder".

    Args:
        model: the generative program.
        guide: the other one.
        nets: the three modules.
        num_hidden: size of the prior's h.
    """

    name, direction = "published objective", "min"

    def __init__(
        self, model: ppl.Program, guide: ppl.Program, nets: dict[str, Any], num_hidden: int
    ) -> None:
        self.model, self.guide, self.num_hidden = model, guide, num_hidden
        self.static = {n: eqx.partition(net, eqx.is_inexact_array)[1] for n, net in nets.items()}

    def init(self, key: Any, *args: Any) -> ppl.Params:
        return inference.elbo(self.model, self.guide).init(key, *args)

    def step(self, params: Any, state: Any, key: Any, *args: Any) -> tuple[jax.Array, Any, Any]:
        return *jax.value_and_grad(self.loss)(params, key, *args), state

    def plate_sizes(self, *args: Any) -> dict[str, int]:
        return {"series": len(args[0])}

    def with_plate_sizes(self, sizes: Any) -> "Published":
        return self  # a mean over series has no scale

    def loss(self, params: Any, key: Any, x: Any, seen: Any) -> jax.Array:
        nets = {n: eqx.combine(params[n], static) for n, static in self.static.items()}
        guide_key, prior_key = jax.random.split(key)
        mean, scale = nets["encoder"](x, seen)
        z = mean + scale * jax.random.normal(guide_key, mean.shape)
        error = jnp.where(seen, x - nets["decoder"](z), 0.0) ** 2
        kl, drawn = paired(
            nets["prior"], mean, scale, jnp.zeros((len(x), self.num_hidden)), prior_key
        )
        return (error.sum() + KL_WEIGHT * kl.sum()) / len(x) + PENALTY_WEIGHT * penalty(drawn)


def paired(
    prior: Any, mean: jax.Array, scale: jax.Array, h: Any, key: Any
) -> tuple[jax.Array, jax.Array]:
    """KL[ q(z_t) | p(z_t | u_<t) ] along a draw u of the prior, and u.

    Args:
        prior: (z_{t-1}, h_{t-1}) -> h_t, mean, scale; z_0 = 0.
        mean: of q, [series, steps, states].
        scale: of q.
        h: h_0.
        key: of the draw.

    Returns:
        Divergences [series, steps], draw [series, steps, states].
    """

    def step(carry: Any, inputs: Any) -> Any:
        u, h = carry
        at, width, key = inputs
        h, prior_mean, prior_scale = prior(u, h)
        kl = kl_divergence(dist.Normal(at, width), dist.Normal(prior_mean, prior_scale)).sum(-1)
        u = prior_mean + prior_scale * jax.random.normal(key, at.shape)
        return (u, h), (kl, u)

    by_step = lambda a: jnp.swapaxes(a, 0, 1)
    inputs = by_step(mean), by_step(scale), jax.random.split(key, mean.shape[1])
    kl, drawn = jax.lax.scan(step, (jnp.zeros_like(mean[:, 0]), h), inputs)[1]
    return by_step(kl), by_step(drawn)


def penalty(u: jax.Array) -> jax.Array:
    """Mean squared error of the least-squares operator from a step to the next, u [series, steps, states].

    It is divided by the Frobenius norm of what the operator predicts, as released.
    """
    size = u.shape[2]
    past, future = u[:, :-1].reshape(-1, size), u[:, 1:].reshape(-1, size)
    q, r = jnp.linalg.qr(past)
    ahead = past @ jax.scipy.linalg.solve_triangular(r, q.T @ future)
    return ((ahead - future) ** 2).mean() / jnp.linalg.norm(ahead)
