"""Networks with one vector of weights per episode."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
from jax.flatten_util import ravel_pytree

Array = jax.Array


class Weights:
    """A network as a function of its floating-point arrays, as one vector.

    Args:
        network: any `equinox.Module` that maps one input to a vector of outputs.

    Attributes:
        start: the network's own weights, [d].
    """

    def __init__(self, network: Any) -> None:
        arrays, self._static = eqx.partition(network, eqx.is_inexact_array)
        self.start, self._unravel = ravel_pytree(arrays)

    def __call__(self, theta: Array, x: Array) -> Array:
        """Outputs [n, k] with weights `theta` [d] at inputs `x` [n, *input]."""
        return jax.vmap(eqx.combine(self._unravel(theta), self._static))(x)

    def of_episodes(self, theta: Array, x: Array) -> Array:
        """Outputs [episodes, n, k] at inputs x [episodes, n, *input].

        Weights `theta` are [episodes, 1, d], or [episodes, g, d], one vector for each of g groups of n / g neighbouring points;
        points whose number g does not divide take the first.
        """
        (episodes, groups, _), n = theta.shape, x.shape[1]
        if groups == 1 or n % groups:
            return jax.vmap(self)(theta[:, 0], x)
        grouped = x.reshape(episodes, groups, n // groups, *x.shape[2:])
        return jax.vmap(jax.vmap(self))(theta, grouped).reshape(episodes, n, -1)
