"""The parameters of a fit that a validation loss likes best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ... import inference

Array = jax.Array


class Best:
    """A callback of `fit` that keeps the parameters with the least validation loss.

    Args:
        loss: `(params, key) -> loss`.
        key: PRNG key of all looks.

    Attributes:
        params: those kept.
        seen: step and loss of each look.
    """

    def __init__(self, loss: Callable[[Any, Any], Array], key: Any) -> None:
        self.loss, self.key = loss, key
        self.seen: list[tuple[int, float]] = []
        self.params: Any = None

    def __call__(self, info: inference.FitInfo) -> None:
        value = float(self.loss(info.params, self.key))
        if self.params is None or value < min(v for _, v in self.seen):
            self.params = jax.tree.map(jnp.copy, info.params)
        self.seen.append((info.step, value))
