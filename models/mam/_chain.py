"""Generating and scoring one row along an order, variable by variable, with the conditional network; and rows at once.

Input: tokens of what is observed already, an order (or the end of one). A variable that is observed when its turn comes keeps its
value and costs nothing: this is how evidence is clamped.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .networks import Networks

# Tokens after a step along an order, [variables], and the log-probability of the value chosen, 0 for evidence (nats).
Step = tuple[Array, Array]


def draw_one(
    networks: Networks, key: Array, tokens: Int[Array, " variables"], position: Int[Array, ""]
) -> Step:
    """Draw the variable at `position` from the conditional network, unless it is observed."""
    log_probs = networks.log_conditionals(tokens)[position]
    return _fill(tokens, position, jax.random.categorical(key, log_probs), log_probs)


def score_one(
    networks: Networks,
    tokens: Int[Array, " variables"],
    position: Int[Array, ""],
    target: Int[Array, " variables"],
) -> Step:
    """Give the variable at `position` its value in `target` (tokens of a whole row), unless it is observed."""
    log_probs = networks.log_conditionals(tokens)[position]
    return _fill(tokens, position, target[position] - 1, log_probs)


def generate(
    networks: Networks,
    key: Array,
    tokens: Int[Array, " variables"],
    order: Int[Array, " steps"],
) -> tuple[Int[Array, " variables"], Float[Array, ""]]:
    """Draw the variables of `order` one after the other; returns tokens and the log-probability of the draw given the order."""

    def step(tokens: Array, inputs: tuple[Array, Array]) -> Step:
        position, key = inputs
        return draw_one(networks, key, tokens, position)

    tokens, log_conditionals = jax.lax.scan(
        step, tokens, (order, jax.random.split(key, order.shape[0]))
    )
    return tokens, log_conditionals.sum()


def score(
    networks: Networks,
    target: Int[Array, " variables"],
    tokens: Int[Array, " variables"],
    order: Int[Array, " steps"],
) -> Float[Array, ""]:
    """Log-probability in nats that `generate` from `tokens` in this order draws `target`."""
    return log_steps(networks, target, tokens, order).sum()


def log_steps(
    networks: Networks,
    target: Int[Array, " variables"],
    tokens: Int[Array, " variables"],
    order: Int[Array, " steps"],
) -> Float[Array, " steps"]:
    """Log-probability of each step along an order."""
    step = lambda tokens, position: score_one(networks, tokens, position, target)
    return jax.lax.scan(step, tokens, order)[1]


def residuals(
    networks: Networks,
    target: Int[Array, " variables"],
    tokens: Int[Array, " variables"],
    order: Int[Array, " steps"],
) -> Float[Array, " steps"]:
    """l(after) - l(before) - c for every step from `tokens` to `target` in this order, nats; 0 for evidence."""

    def step(carry: tuple[Array, Array], position: Array) -> tuple[tuple[Array, Array], Array]:
        before, level = carry
        after, log_conditional = score_one(networks, before, position, target)
        new_level = networks.log_marginal(after)
        return (after, new_level), new_level - level - log_conditional

    return jax.lax.scan(step, (tokens, networks.log_marginal(tokens)), order)[1]


def residual(
    networks: Networks,
    num_observed: Int[Array, ""],
    target: Int[Array, " variables"],
    tokens: Int[Array, " variables"],
    order: Int[Array, " variables"],
) -> Float[Array, ""]:
    """The step of `residuals` at number `num_observed` alone: one pass of the conditional network, two of the marginal one."""
    before = prefix(target, tokens, order, num_observed)
    after, log_conditional = score_one(networks, before, order[num_observed], target)
    # One batch of two, since the rows share their weights.
    levels = jax.vmap(networks.log_marginal)(jnp.stack([before, after]))
    return levels[1] - levels[0] - log_conditional


def prefix(
    target: Int[Array, " variables"],
    tokens: Int[Array, " variables"],
    order: Int[Array, " variables"],
    num_observed: Int[Array, ""],
) -> Int[Array, " variables"]:
    """Tokens after the first `num_observed` steps of `order` towards `target`."""
    ranks = jnp.argsort(order)
    return jnp.where(ranks < num_observed, target, tokens)


@eqx.filter_jit
def by_row(
    fn: Callable[..., PyTree], networks: Networks, *vectors: Array, scalars: tuple[Array, ...] = ()
) -> PyTree:
    """`fn(networks, *scalars, *vectors)` for every row of vectors [*shape, D] and scalars [*shape], which broadcast.

    Compiled once for each `fn`, which should be a function of a module for that reason, and each shape.
    """
    lead = jnp.broadcast_shapes(*(x.shape[:-1] for x in vectors), *(x.shape for x in scalars))
    flat = [jnp.broadcast_to(x, lead).ravel() for x in scalars]
    flat += [jnp.broadcast_to(x, (*lead, x.shape[-1])).reshape(-1, x.shape[-1]) for x in vectors]
    out = jax.vmap(lambda *row: fn(networks, *row))(*flat)
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), out)


def log_marginal(networks: Networks, tokens: Int[Array, " variables"]) -> Float[Array, ""]:
    """The networks' method as a function, for `by_row`."""
    return networks.log_marginal(tokens)


def log_conditionals(
    networks: Networks, tokens: Int[Array, " variables"]
) -> Float[Array, "variables values"]:
    """The networks' method as a function, for `by_row`."""
    return networks.log_conditionals(tokens)


def _fill(tokens: Array, position: Array, value: Array, log_probs: Array) -> Step:
    is_given = tokens[position] > 0
    filled = jnp.where(is_given, tokens, tokens.at[position].set(value + 1))
    return filled, jnp.where(is_given, 0.0, log_probs[value])
