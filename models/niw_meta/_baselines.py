"""MAML and prototypical networks: programs without latent sites, whose log-density of the queries is maximised.

Both are trained by `likelihood(program)`, and have the site "query" and the deterministic site "query_scores" of `programs`.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from ... import inference, ppl
from ._episodes import Episodes, Points
from ._heads import Head
from ._programs import observe
from ._weights import Weights

Array = jax.Array


def maml(
    network: Any, head: Head, *, optimizer: Any, num_steps: int, order: Literal[1, 2] = 2
) -> ppl.Program:
    """Model-agnostic meta-learning: theta_i is "loc" after `num_steps` steps on the mean loss of the support.

    Args:
        network: an equinox module that maps one input to a vector of outputs; its weights are the start of the parameter "loc".
        head: likelihood.
        optimizer: inner optimiser, an optax transformation such as `optax.sgd(1e-2)`.
        num_steps: inner steps.
        order: 2, the gradient through all inner steps, which are kept in memory; 1, the gradient at theta_i in place of that at
            "loc", biased for the gradient of the value.

    Reference: Finn et al. 2017, arXiv:1703.03400.
    """
    weights = Weights(network)

    def loss(theta: Array, support: Points) -> Array:
        one = jax.tree.map(lambda leaf: leaf[None], support)
        out = weights(theta, support.x)[None]
        log_probs = head.law(head.scores(out, out, one)).log_prob(one.y)
        return -jnp.where(one.mask, log_probs, 0.0).sum() / jnp.maximum(one.mask.sum(), 1)

    def adapt(loc: Array, support: Points) -> Array:
        def step(carry: Any, _: Any) -> tuple[Any, None]:
            theta, state = carry
            slope = jax.grad(loss)(theta if order == 2 else jax.lax.stop_gradient(theta), support)
            update, state = optimizer.update(slope, state, theta)
            return (optax.apply_updates(theta, update), state), None

        return jax.lax.scan(step, (loc, optimizer.init(loc)), None, num_steps)[0][0]

    @ppl.model
    def model(episodes: Episodes) -> None:
        support, query = jax.tree.map(jnp.asarray, episodes)
        theta = jax.vmap(adapt, (None, 0))(ppl.param("loc", weights.start), support)
        _predict(
            head, jax.vmap(weights)(theta, support.x), jax.vmap(weights)(theta, query.x), episodes
        )

    return model


def protonet(network: Any, head: Head) -> ppl.Program:
    """Prototypical network: one network for all episodes, parameter "network"; the head (`NearestCentroid`) sees the support.

    Reference: Snell et al. 2017, arXiv:1703.05175.
    """

    @ppl.model
    def model(episodes: Episodes) -> None:
        run = jax.vmap(jax.vmap(ppl.module("network", network)))
        _predict(head, run(episodes.support.x), run(episodes.query.x), episodes)

    return model


def likelihood(program: ppl.Program) -> inference.Objective:
    """The mean log-probability of an episode's queries, nats per episode, to be maximised."""
    nothing = ppl.model(lambda episodes: None)
    return inference.elbo(program, nothing).with_plate_sizes({"episodes": math.inf})


def _predict(head: Head, support: Array, query: Array, episodes: Episodes) -> None:
    with ppl.plate("episodes", query.shape[0], dim=-2):
        observe("query", head, query, support, episodes)
