"""Peers without latent sites: MAML, Reptile, prototypical networks, conditional neural processes.

All are trained by `likelihood(program)`; what predicts has the site "query" and the deterministic site "query_scores" of
`niw_meta.programs`, and goes to `niw_meta.predict`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from lapilli import inference, ppl
from lapilli.models.niw_meta import Episodes, Head, Points, Weights, observe

Array = jax.Array


def maml(
    network: Any, head: Head, *, optimizer: Any, num_steps: int, order: Literal[1, 2] = 2
) -> ppl.Program:
    """Model-agnostic meta-learning: theta_i is "loc" after `num_steps` steps on the mean loss of the support.

    Args:
        network: an equinox module that maps one input to a vector of outputs; its weights are the start of the parameter "loc".
        head: likelihood; what it learns counts at the queries, and keeps its start in the inner steps.
        optimizer: inner optimiser, an optax transformation such as `optax.sgd(1e-2)`.
        num_steps: inner steps.
        order: 2, the gradient through all inner steps, which are kept in memory; 1, the gradient at theta_i in place of that at
            "loc", biased for the gradient of the value.

    Reference: Finn et al. 2017, arXiv:1703.03400.
    """
    weights = Weights(network)
    adapt = _descent(weights, head, optimizer, num_steps, is_frozen=order == 1)

    @ppl.model
    def model(episodes: Episodes) -> None:
        support, query = jax.tree.map(jnp.asarray, episodes)
        theta = jax.vmap(adapt, (None, 0))(ppl.param("loc", weights.start), support)
        _predict(
            head, jax.vmap(weights)(theta, support.x), jax.vmap(weights)(theta, query.x), episodes
        )

    return model


class Reptile(NamedTuple):
    """Two programs with one parameter "loc", of Reptile.

    Attributes:
        update: what is trained by `likelihood`; its value is -1/2 |theta_i - loc|^2 and no likelihood.
        model: what predicts: loc adapted to the support, as in `maml`.
    """

    update: ppl.Program
    model: ppl.Program


def reptile(network: Any, head: Head, *, optimizer: Any, num_steps: int) -> Reptile:
    """Reptile: the start moves toward the weights that an episode was trained to, loc += rate (theta_i - loc).

    theta_i is "loc" after `num_steps` steps on the mean loss of support and query. No gradient of anything: the move is
    that of the value -1/2 |theta_i - loc|^2 with theta_i held fixed.

    Args:
        network: as for `maml`.
        head: likelihood.
        optimizer: inner optimiser.
        num_steps: inner steps.

    Reference: Nichol, Achiam and Schulman 2018, arXiv:1803.02999.
    """
    weights = Weights(network)
    adapt = _descent(weights, head, optimizer, num_steps, is_frozen=True)

    @ppl.model
    def update(episodes: Episodes) -> None:
        support, query = jax.tree.map(jnp.asarray, episodes)
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), support, query)
        loc = ppl.param("loc", weights.start)
        theta = jax.lax.stop_gradient(jax.vmap(adapt, (None, 0))(loc, both))
        with ppl.plate("episodes", len(theta), dim=-1):
            ppl.factor("move", -0.5 * ((theta - loc) ** 2).sum(-1))

    model = maml(network, head, optimizer=optimizer, num_steps=num_steps, order=1)
    return Reptile(update, model)


def _descent(
    weights: Weights, head: Head, optimizer: Any, num_steps: int, *, is_frozen: bool
) -> Callable[[Array, Points], Array]:
    """`(start, points) -> weights` after `num_steps` steps on the mean loss of one episode's points.

    `is_frozen`: slopes are constants for derivatives.
    """
    import optax  # on use: a tenth of a second

    def loss(theta: Array, points: Points) -> Array:
        one = jax.tree.map(lambda leaf: leaf[None], points)
        out = weights(theta, points.x)[None]
        log_probs = head.law(head.scores(out, out, one)).log_prob(one.y)
        return -jnp.where(one.mask, log_probs, 0.0).sum() / jnp.maximum(one.mask.sum(), 1)

    def adapt(loc: Array, points: Points) -> Array:
        def step(carry: Any, _: Any) -> tuple[Any, None]:
            theta, state = carry
            slope = jax.grad(loss)(jax.lax.stop_gradient(theta) if is_frozen else theta, points)
            update, state = optimizer.update(slope, state, theta)
            return (optax.apply_updates(theta, update), state), None

        return jax.lax.scan(step, (loc, optimizer.init(loc)), None, num_steps)[0][0]

    return adapt


def cnp(encoder: Any, decoder: Any, head: Head, *, num_classes: int | None = None) -> ppl.Program:
    """Conditional neural process: the support becomes one vector, the mean of `encoder` over its points; nothing is adapted.

        r_i = mean_n encoder([x_in, y_in]),   y ~ head(decoder([x, r_i])).

    Args:
        encoder: an equinox module that maps one point, input and label one after the other, to r (parameter "encoder").
        decoder: one that maps input and r, one after the other, to the head's scores (parameter "decoder").
        head: likelihood, e.g. `GaussianWithScale`.
        num_classes: of labels that are classes, which are encoded by one number each.

    Reference: Garnelo et al. 2018, arXiv:1807.01613.
    """

    @ppl.model
    def model(episodes: Episodes) -> None:
        support, query = jax.tree.map(jnp.asarray, episodes)
        encode, decode = ppl.module("encoder", encoder), ppl.module("decoder", decoder)
        flat = lambda x: x.reshape(*x.shape[:2], -1)
        labels = flat(support.y if num_classes is None else jax.nn.one_hot(support.y, num_classes))
        rows = jax.vmap(jax.vmap(encode))(jnp.concatenate([flat(support.x), labels], -1))
        count = jnp.maximum(support.mask.sum(1), 1)[:, None]
        r = jnp.where(support.mask[..., None], rows, 0.0).sum(1) / count

        def scores(x: Array) -> Array:
            own = jnp.broadcast_to(r[:, None], (*x.shape[:2], r.shape[-1]))
            return jax.vmap(jax.vmap(decode))(jnp.concatenate([flat(x), own], -1))

        _predict(head, scores(support.x), scores(query.x), episodes)

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
    head = head.declared()
    with ppl.plate("episodes", query.shape[0], dim=-2):
        observe("query", head, query, support, episodes)
