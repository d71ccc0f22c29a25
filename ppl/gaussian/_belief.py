"""What is believed of the Gaussian sites, given all that was met: a joint normal law of a vector, its *basis*.

Values of the program are affine in the basis (`_forms.py`). The law is kept as mean and root of the covariance, so that nothing is
lost in single precision; rows of a plate that are separate have a law each.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ._laws import Noise
from ._roots import compressed, lower, solved, upper

Array = jax.Array


class Belief(NamedTuple):
    """N(mean, root root'), of one vector a row.

    Attributes:
        mean: shape (*rows, n).
        root: shape (*rows, n, k).
    """

    mean: Array
    root: Array

    @property
    def size(self) -> int:
        """N."""
        return self.mean.shape[-1]

    def with_noise(self, mean: Array) -> Belief:
        """With independent standard normal numbers at the end; `mean` shifts theirs, shape (*rows, number)."""
        size, new = self.size, mean.shape[-1]
        rows = self.mean.shape[:-1]
        zeros = lambda *shape: jnp.zeros((*rows, *shape), self.mean.dtype)
        unit = jnp.broadcast_to(jnp.eye(new, dtype=self.mean.dtype), (*rows, new, new))
        above = jnp.concatenate([self.root, zeros(size, new)], -1)
        below = jnp.concatenate([zeros(new, self.root.shape[-1]), unit], -1)
        return Belief(jnp.concatenate([self.mean, mean], -1), jnp.concatenate([above, below], -2))

    def of(self, const: Array, matrix: Array, *, is_square: bool = False) -> Belief:
        """The law of const + matrix basis: const of shape (*rows, m), matrix of shape (*rows, m, n).

        `is_square`: with a root of shape (m, m), whatever the columns were.
        """
        mean = const + (matrix @ self.mean[..., None])[..., 0]
        root = compressed(matrix @ self.root)
        if is_square and (missing := root.shape[-2] - root.shape[-1]):
            root = jnp.pad(root, [(0, 0)] * (root.ndim - 1) + [(0, missing)])
        return Belief(mean, root)

    def given(self, residual: Array, matrix: Array, noise: Noise) -> Belief:
        """The law given that residual = matrix basis' + noise, basis' = basis - mean.

        Where there are fewer numbers than columns of the root (gain form),

            K = P H' S^-1,   root <- [(1 - K H) root, K noise],   S = H P H' + R,

        else with W = R^-1/2 H root and U'U = 1 + W'W (information form): root <- root U^-1.
        """
        seen = matrix @ self.root
        if seen.shape[-2] > seen.shape[-1]:
            whitened = noise.whitened(jnp.concatenate([seen, residual[..., None]], -1))
            seen, residual = whitened[..., :-1], whitened[..., -1:]
            top = upper(seen)
            inner = solved(top, seen.mT @ residual, is_lower=False, transposed=True)
            shift = solved(top, inner, is_lower=False)
            root = solved(top, self.root.mT, is_lower=False, transposed=True).mT
            return Belief(self.mean + (self.root @ shift)[..., 0], root)
        spread = noise.root
        tril = lower(jnp.concatenate([spread, seen], -1))
        gain = solved(tril, seen @ self.root.mT, is_lower=True)
        whitened = solved(tril, residual[..., None], is_lower=True)
        gain_full = solved(tril, gain, is_lower=True, transposed=True)  # K'
        root = jnp.concatenate([self.root - gain_full.mT @ seen, gain_full.mT @ spread], -1)
        belief = Belief(self.mean + (gain.mT @ whitened)[..., 0], root)
        if root.shape[-1] > 2 * self.size + 8:  # many observations between two steps
            belief = belief._replace(root=compressed(root))
        return belief
