"""Guides refined for the series at hand: what an encoder misses on series that it was not trained on.

A guide of `programs` is set by its looks at each step of the paths, "looks" h and "look_precision" r. From the encoder's, steps
of Adam raise the importance-weighted bound of each series in h and log r. No label is read and no parameter moves, and weights
know the refined law as well as they know the encoder's: refining changes their variance, and leaves no bias.

Reference: Kim et al. 2018, arXiv:1802.02550 (semi-amortised inference).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from numpyro.primitives import Messenger

from ... import ppl
from ...ppl._types import Message
from .._series import Series

Array = jax.Array
NUM_DRAWS = 4
LEARNING_RATE = 0.05


def refined(
    model: ppl.Program, guide: ppl.Program, data: Series, key: Array, num_steps: int, draws: Any
) -> ppl.Program:
    """The guide with looks for these series; traceable.

    Args:
        model: with its parameters bound.
        guide: of `programs`, with its parameters bound.
        data: series without labels.
        key: PRNG key.
        num_steps: of Adam.
        draws: `(model, guide, data, key, num_particles, num_imputations)` whose `log_weights` are [K, J, series].
    """
    import optax  # on use: a tenth of a second

    start = guide.simulate(key, data).deterministic
    looks, precision = start["looks"], start["look_precision"]

    def looking(change: tuple[Array, Array]) -> ppl.Program:
        return set_sites(
            guide, {"looks": looks + change[0], "look_precision": precision * jnp.exp(change[1])}
        )

    def loss(change: tuple[Array, Array], key: Array) -> Array:
        log_weights = draws(model, looking(change), data, key, NUM_DRAWS, 1).log_weights
        return -jax.nn.logsumexp(log_weights, (0, 1)).sum()

    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_steps))

    def step(state: PyTree, key: Array) -> tuple[PyTree, None]:
        change, moments = state
        update, moments = optimizer.update(jax.grad(loss)(change, key), moments)
        return (optax.apply_updates(change, update), moments), None

    change = jnp.zeros_like(looks), jnp.zeros_like(precision)
    keys = jax.random.split(key, num_steps)
    (change, _), _ = jax.lax.scan(step, (change, optimizer.init(change)), keys)
    return looking(change)


def set_sites(program: ppl.Program, values: dict[str, Array]) -> ppl.Program:
    """The program with some of its deterministic sites set."""

    class Given(Messenger):
        def process_message(self, msg: Message) -> None:
            if msg["type"] == "deterministic" and msg["name"] in values:
                msg["value"] = values[msg["name"]]

    def given(data: Series) -> PyTree:
        with Given():
            return program.fn(data)

    return ppl.Program(given, program.params)
