"""What a network of a diffusion model may predict, and how one prediction becomes another."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...inference.diffusion import Noising
from ...inference.diffusion._diffusion import Time

Parametrisation = Literal["score", "noise", "data", "velocity", "flow"]


def convert(
    value: Float[Array, " *shape"],
    x: Float[Array, " *shape"],
    t: Time,
    noising: Noising,
    source: Parametrisation,
    target: Parametrisation,
) -> Float[Array, " *shape"]:
    """A prediction at x = alpha x_0 + std eps, in another parametrisation.

        score     grad log q_t(x) = -eps / std
        noise     eps
        data      x_0
        velocity  alpha eps - std x_0
        flow      d alpha/dt x_0 + d std/dt eps, the velocity dx/dt of the probability flow

    Args:
        value: the prediction, E[. | x_t = x] if exact.
        x: the noisy point.
        t: its noising time.
        noising: the process.
        source: what `value` is.
        target: what is wanted.

    Raises:
        ValueError: an unknown name.

    Validity: exact where alpha(t) and std(t) are positive. Near t = 0 "noise" and "score" from "data" lose digits, near the end
    "data" from "noise" and "score" does, as far as x holds no trace of what is asked.

    Reference: Salimans and Ho 2022, arXiv:2202.00512 (velocity); Lipman et al. 2023, arXiv:2210.02747 (flow).
    """
    for name in (source, target):
        if name not in get_args(Parametrisation):
            raise ValueError(
                f"convert: unknown parametrisation {name!r}. Use one of {', '.join(map(repr, get_args(Parametrisation)))}."
            )
    if source == target:
        return value
    alpha, std = noising.alpha(t), noising.std(t)
    rates = _rates(noising, t) if "flow" in (source, target) else (alpha, std)
    data, noise = _data_and_noise(value, x, alpha, std, rates, source)
    if target == "score":
        return -noise / std
    if target == "velocity":
        return alpha * noise - std * data
    if target == "flow":
        return rates[0] * data + rates[1] * noise
    return data if target == "data" else noise


def _rates(noising: Noising, t: Time) -> tuple[Array, Array]:
    """D alpha / dt and d std / dt."""
    t = jnp.asarray(t, float)
    return jax.grad(noising.alpha)(t), jax.grad(noising.std)(t)


def _data_and_noise(
    value: Array, x: Array, alpha: Array, std: Array, rates: tuple[Array, Array], source: str
) -> tuple[Array, Array]:
    """(x_0, eps) with x = alpha x_0 + std eps."""
    if source == "data":
        return value, (x - alpha * value) / std
    if source == "velocity":
        power = alpha**2 + std**2
        return (alpha * x - std * value) / power, (std * x + alpha * value) / power
    if source == "flow":
        determinant = alpha * rates[1] - std * rates[0]
        return (
            (rates[1] * x - std * value) / determinant,
            (alpha * value - rates[0] * x) / determinant,
        )
    noise = value if source == "noise" else -std * value
    return (x - std * noise) / alpha, noise
