"""Predictive laws as equally weighted mixtures of what particles emit.

`emitted` holds, for K particles, what `Network.emit` gives: [..., K, out]. The law of an observation is 1/K sum_k law(emitted_k).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...ppl._checks import check_event
from ...ppl._compat import is_concrete
from ._network import Categorical, Network


def log_score(
    network: Network, emitted: Float[Array, "*batch particles out"], x: Float[Array, "*batch size"]
) -> Float[Array, "*batch"]:
    """Log 1/K sum_k p(x | emitted_k): the log-score of the mixture (nats).

    Args:
        network: trained weights.
        emitted: what particles emit before the output's law is made of it, [*batch, K, out].
        x: what was observed, [*batch, size].

    Returns:
        Nats; -inf for what is no symbol of the output.

    Raises:
        ValueError: the last axis of x is not that of the output, or its others are not those of `emitted`.
    """
    check_event("log_score: x", x, (network.output.size,))
    value = jnp.asarray(x)
    if value.shape[:-1] != jnp.shape(emitted)[:-2]:
        raise ValueError(
            f"log_score: x has shape {value.shape} and emitted {jnp.shape(emitted)}, so that observations would be scored by the "
            "predictions of others. Give x [*batch, size] and emitted [*batch, particles, out], e.g. emitted[:-1, 0] of a run, "
            "one step ahead, for x[1:]."
        )
    is_value = jnp.ones(value.shape[:-1], bool)
    if isinstance(network.output, Categorical):
        # JAX would read the nearest symbol's probability.
        is_symbol = jnp.isin(value, jnp.arange(network.output.num_classes))
        value, is_value = jnp.where(is_symbol, value, 0).astype(int), is_symbol.all(-1)
    log_probs = network.law(emitted).log_prob(value[..., None, :])
    score = jax.nn.logsumexp(log_probs, axis=-1) - jnp.log(emitted.shape[-2])
    return jnp.where(is_value, score, -jnp.inf)


def mean(network: Network, emitted: Float[Array, "*batch particles out"]) -> Array:
    """Mean of the mixture, [*batch, size]; for symbols the probabilities [*batch, size, num_classes].

    Args:
        network: trained weights.
        emitted: what particles emit before the output's law is made of it, [*batch, K, out].
    """
    output = network.output
    if not isinstance(output, Categorical):
        return emitted.mean(-2)
    logits = emitted.reshape(*emitted.shape[:-1], output.size, output.num_classes)
    return jax.nn.softmax(logits, axis=-1).mean(-3)


def interval(
    network: Network, emitted: Float[Array, "*batch particles out"], level: float, key: Array
) -> tuple[Array, Array]:
    """Central interval of each dimension, by one draw of every particle: (lower, upper), [*batch, size].

    Args:
        network: trained weights.
        emitted: what particles emit before the output's law is made of it, [*batch, K, out].
        level: probability inside, in (0, 1).
        key: PRNG key.

    Raises:
        ValueError: the output is of symbols, which have no order; `level` is not in (0, 1).
    """
    if isinstance(network.output, Categorical):
        raise ValueError(
            "pv_rnn.interval: symbols have no order; use the probabilities of pv_rnn.mean."
        )
    if is_concrete(level) and not 0 < level < 1:
        raise ValueError(
            f"pv_rnn.interval: level must lie in (0, 1), got {level}; no interval holds such a probability. Give some, e.g. 0.9."
        )
    draws = network.law(emitted).sample(key)
    tail = (1 - level) / 2
    lower, upper = jnp.quantile(draws, jnp.array([tail, 1 - tail]), axis=-2)
    return lower, upper
