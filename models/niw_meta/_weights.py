"""Networks with one vector of weights per episode."""

from __future__ import annotations

import equinox as eqx
import jax
import numpy as np
from jax.flatten_util import ravel_pytree

Array = jax.Array


class Weights:
    """A network as a function of its floating-point arrays, as one vector.

    Args:
        network: any `equinox.Module` that maps one input to a vector of outputs.

    Attributes:
        start: the network's own weights, [d].
        layer: number of the layer of each weight, 0 ... L - 1, [d]; a layer is a module that holds arrays, e.g. weight and bias
            of an `equinox.nn.Linear`.
    """

    def __init__(self, network: object) -> None:
        arrays, self._static = eqx.partition(network, eqx.is_inexact_array)
        self.start, self._unravel = ravel_pytree(arrays)
        leaves = jax.tree_util.tree_leaves_with_path(arrays)
        holders = [path[:-1] for path, _ in leaves]
        numbers = {holder: i for i, holder in enumerate(dict.fromkeys(holders))}
        sizes = [np.size(leaf) for _, leaf in leaves]
        self.layer = np.repeat([numbers[holder] for holder in holders], sizes)

    def __call__(self, theta: Array, x: Array) -> Array:
        """Outputs [n, k] with weights `theta` [d] at inputs `x` [n, *input]."""
        return jax.vmap(eqx.combine(self._unravel(theta), self._static))(x)

    def of_episodes(self, theta: Array, x: Array) -> Array:
        """Outputs [episodes, n, k] at inputs x [episodes, n, *input].

        Weights `theta` are [episodes, 1, d], or [episodes, n, d], those of each point, of which points in another number take the
        first.
        """
        if theta.shape[1] == x.shape[1]:
            return jax.vmap(jax.vmap(lambda theta, x: self(theta, x[None])[0]))(theta, x)
        return jax.vmap(self)(theta[:, 0], x)
