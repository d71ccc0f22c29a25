"""Kernels of discrete diffusion, variable by variable.

Terms: x in {0, ..., K - 1}^D; tokens 0 for masked, v + 1 for the value v. Each variable on its own keeps its value with
probability a(t) = 1 - t, and is masked ("masked") or drawn evenly ("uniform") otherwise; a step of noising from s to t > s keeps
it with probability a(t) / a(s). A model's step from t to s, with its network's p(k | x_t), is by variable

    R(j | x_t) = sum_k p(k | x_t) q(x_s = j | x_t, x = k) = U(j | x_t) rho(j),

U(j | i) the same step for a law that knows nothing, so that prod_n U along a path is the law of noising backwards, and

    masked     rho(j) = p(j | x_t) where a value appears, 1 where none does
    uniform    rho(j) = sum_k p(k | x_t) q(x_s = j | k) / q(x_t | k).

Hence log p(path) - log q(path | x) = [log K^-D if uniform] + sum_n log rho_n for each model. (U counts values: in a masked step
it is 1 for each value times the probability that one appears.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ....ppl._compat import is_concrete
from ....ppl._precision import full_precision

Kind = Literal["masked", "uniform"]
NORMALISED = 1e-3  # nats by which probabilities may miss the sum 1: roundings of float32 leave 1e-5
Network = Callable[[Array, Array], Array]  # (tokens [D], t) -> log p(x_i = k | tokens), [D, K]


def asked(
    who: str,
    network: Network,
    tokens: Int[Array, " variables"],
    t: Array,
    kind: Kind,
    num_values: int,
) -> Float[Array, "variables values"]:
    """What the network says, NaN for a variable whose probabilities do not add up to 1.

    Where a value is shown nobody looks, and the network may say anything.

    Raises:
        ValueError: another shape.
    """
    found = _said(who, network, tokens, t, num_values)
    is_wrong = _is_off(jax.nn.logsumexp(found, -1)) & ((tokens == 0) | (kind == "uniform"))
    return jnp.where(is_wrong[:, None], jnp.nan, found)


def refuse_logits(who: str, network: Network, size: int, kind: Kind, num_values: int) -> None:
    """Refuse a network whose probabilities do not add up to 1 where nothing is known yet, if its numbers are known.

    Raises:
        ValueError: they do not, or it returns another shape.
    """
    with jax.ensure_compile_time_eval():
        tokens, t = jnp.full(size, 0 if kind == "masked" else 1), jnp.ones(())
        total = jax.nn.logsumexp(_said(who, network, tokens, t, num_values), -1)
        is_off = _is_off(total).any()
    if is_concrete(is_off) and bool(is_off):
        worst = np.asarray(total)[np.argmax(np.abs(np.asarray(total)))]
        raise ValueError(
            f"{who}: the network's probabilities of a variable add up to exp({worst:.3g}), not to 1, and densities made of them "
            "would be off by as much. Return log-probabilities: jax.nn.log_softmax(logits) in float32, or the log of "
            "probabilities."
        )


def _said(
    who: str, network: Network, tokens: Int[Array, " variables"], t: Array, num_values: int
) -> Float[Array, "variables values"]:
    found, size = jnp.asarray(network(tokens, t)), len(tokens)
    if found.shape != (size, num_values):
        raise ValueError(
            f"{who}: the network returned shape {found.shape} for a row of {size} variables of {num_values} values. Return "
            f"log p(x_i = k | tokens) for one row, as [{size}, {num_values}]."
        )
    return found


def _is_off(total: Float[Array, " variables"]) -> Bool[Array, " variables"]:
    # Minus infinity, all values being ruled out, is no law either, but nothing that is drawn.
    return (jnp.abs(total) > NORMALISED) & (total > -jnp.inf)


def log_reference(
    tokens: Int[Array, " variables"], t: Array, s: Array, kind: Kind, num_values: int
) -> Float[Array, "variables tokens"]:
    """Log U of each token at s, [D, K + 1]; -inf for what cannot be."""
    kept = (1 - t) / (1 - s)
    if kind == "uniform":
        return _padded(jnp.log(_even(kept, num_values)[tokens - 1]), -jnp.inf)
    stays = s / t
    row = jnp.full(num_values + 1, jnp.log1p(-stays)).at[0].set(jnp.log(stays))
    is_its = tokens[:, None] == jnp.arange(num_values + 1)
    return jnp.where((tokens == 0)[:, None], row, jnp.where(is_its, 0.0, -jnp.inf))


@full_precision
def log_ratios(
    log_probs: Float[Array, "variables values"],
    tokens: Int[Array, " variables"],
    t: Array,
    s: Array,
    kind: Kind,
) -> Float[Array, "variables tokens"]:
    """Log rho of each token at s, [D, K + 1]; any number where U is 0."""
    if kind == "uniform":
        num_values = log_probs.shape[1]
        shares = jnp.exp(log_probs) / _even(1 - t, num_values)[tokens - 1]
        return _padded(jnp.log(shares @ _even(1 - s, num_values)), 0.0)
    return jnp.where((tokens == 0)[:, None], _padded(log_probs, 0.0), 0.0)


def noised(
    key: Array, tokens: Int[Array, " variables"], kept: Array, kind: Kind, num_values: int
) -> Int[Array, " variables"]:
    """Each token kept with this probability, or masked, or drawn evenly."""
    keep_key, draw_key = jax.random.split(key)
    other = jnp.zeros_like(tokens)
    if kind == "uniform":
        other = jax.random.randint(draw_key, tokens.shape, 1, num_values + 1)
    return jnp.where(jax.random.uniform(keep_key, tokens.shape) < kept, tokens, other)


def _even(kept: Array, num_values: int) -> Array:
    """The law of a value given another, [K, K]."""
    return kept * jnp.eye(num_values) + (1 - kept) / num_values


def _padded(values: Array, of_mask: float) -> Array:
    """The values with a column for the mask in front."""
    return jnp.pad(values, ((0, 0), (1, 0)), constant_values=of_mask)
