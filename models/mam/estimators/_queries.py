"""What is asked of an any-order network: probabilities of known cells, conditionals, and rows filled in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from .. import _chain
from .._orders import random_orders
from ..networks import Pair

PART = 256  # rows at once


class Possible(eqx.Module):
    """A conditional network that gives no probability to values that a column has not.

    Args:
        network: `tokens -> logits [D, K]`.
        is_possible: which of the K values a column has, [D, K].
    """

    network: Any
    is_possible: Bool[np.ndarray, "variables values"]

    def __call__(self, tokens: Int[Array, " variables"]) -> Float[Array, "variables values"]:
        """Logits of one row."""
        return jnp.where(self.is_possible, self.network(tokens), -jnp.inf)


def arguments(seen: Int[np.ndarray, "rows columns"]) -> tuple[np.ndarray, np.ndarray]:
    """Values, and which cells have one."""
    return np.maximum(seen - 1, 0), seen > 0


def held_out_loss(objective: Any, held: np.ndarray, params: PyTree, key: Array) -> Array:
    return -objective.value(params, key, *arguments(held)) / len(held)


def by_parts(fn: Callable[[Array], PyTree], rows: np.ndarray) -> np.ndarray:
    """`fn` on parts of one size, so that any number of rows is compiled once."""
    found = []
    for start in range(0, len(rows), PART):
        part = rows[start : start + PART]
        found.append(
            np.asarray(fn(jnp.asarray(np.resize(part, (PART, rows.shape[1])))))[: len(part)]
        )
    return np.concatenate(found)


@eqx.filter_jit
def log_prob(networks: Pair, orders: Array, wanted: Array) -> Float[Array, " rows"]:
    """Log of the mean over orders of the probability of the known cells."""

    def score(wanted: Array, order: Array) -> Array:
        def step(seen: Array, position: Array) -> tuple[Array, Array]:
            token = wanted[position]
            log_p = networks.log_conditionals(seen)[position, jnp.maximum(token - 1, 0)]
            return seen.at[position].set(token), jnp.where(token > 0, log_p, 0.0)

        return jax.lax.scan(step, jnp.zeros_like(wanted), order)[1].sum()

    found = jax.vmap(jax.vmap(score, (None, 0)), (0, None))(wanted, orders)
    return jax.nn.logsumexp(found, 1) - jnp.log(orders.shape[0])


@eqx.filter_jit
def conditionals(networks: Pair, seen: Array) -> Float[Array, "rows variables values"]:
    return jax.vmap(networks.log_conditionals)(seen)


@eqx.filter_jit
def filled(networks: Pair, keys: Array, seen: Array) -> Int[Array, "rows variables"]:
    """Missing cells drawn one after the other, in an order of each row's own."""

    def draw(key: Array, seen: Array) -> Array:
        order_key, draw_key = jax.random.split(key)
        order = random_orders(order_key, seen > 0)
        return _chain.generate(networks, draw_key, seen, order)[0]

    return jax.vmap(draw)(keys, seen)
