"""Products of diffusion models with exponents, tilted by a reward: the laws that `fkc` samples.

A composition stands for the family of unnormalised densities, t a noising time,

    log p_t(x) = sum_i w_i(t) log q_i,t(x) + h_t(x).

Invariants: a model occurs once (exponents of equal models are added), all models share one noising process, and a power or
a product of compositions is a composition: exponents multiply and add, rewards are scaled and added.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._diffusion import Diffusion

Exponent = float | Array | Callable[[Array], Array]
Reward = Callable[[Array, Array], Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Composition:
    """Models with their exponents, and the reward.

    Attributes:
        models: the distinct models.
        exponents: one for each, a number or a function of the noising time.
        reward: `(x, t) -> h_t(x)` in nats, or None for zero.
    """

    models: tuple[Diffusion, ...]
    exponents: tuple[Exponent, ...]
    reward: Reward | None = None

    @property
    def varies(self) -> bool:
        """Whether an exponent is a function of time."""
        return any(callable(w) for w in self.exponents)

    def exponents_at(self, times: Float[Array, " times"]) -> Float[Array, "times models"]:
        """All exponents at all times."""
        rows = [jax.vmap(lambda t, w=w: _at(w, t))(times) for w in self.exponents]
        return jnp.stack(rows, 1)


def as_composition(model: Diffusion | Composition) -> Composition:
    """A model alone is its first power."""
    return model if isinstance(model, Composition) else Composition((model,), (1.0,))


def product(
    factors: Sequence[Composition], powers: Sequence[Exponent], reward: Reward | None
) -> Composition:
    """prod_j factor_j^power_j, tilted by exp(reward)."""
    exponents: dict[Diffusion, Exponent] = {}
    rewards: list[tuple[Exponent, Reward]] = []
    for factor, power in zip(factors, powers, strict=True):
        for model, w in zip(factor.models, factor.exponents, strict=True):
            w = _times(power, w)
            exponents[model] = _plus(exponents[model], w) if model in exponents else w
        if factor.reward is not None:
            rewards.append((power, factor.reward))
    if reward is not None:
        rewards.append((1.0, reward))
    return Composition(tuple(exponents), tuple(exponents.values()), _weighted_sum(rewards))


def _at(w: Exponent, t: Array) -> Array:
    value = jnp.asarray(w(t) if callable(w) else w, float)
    if value.shape != ():
        raise ValueError(
            f"fkc: an exponent must be one number for one time, got shape {value.shape}."
        )
    return value


def _times(a: Exponent, b: Exponent) -> Exponent:
    if not callable(a) and not callable(b):
        return a * b
    return lambda t: _at(a, t) * _at(b, t)


def _plus(a: Exponent, b: Exponent) -> Exponent:
    if not callable(a) and not callable(b):
        return a + b
    return lambda t: _at(a, t) + _at(b, t)


def _weighted_sum(rewards: list[tuple[Exponent, Reward]]) -> Reward | None:
    if not rewards:
        return None
    if len(rewards) == 1 and not callable(rewards[0][0]) and rewards[0][0] == 1:
        return rewards[0][1]
    return lambda x, t: sum((_at(w, t) * h(x, t) for w, h in rewards), jnp.zeros(()))
