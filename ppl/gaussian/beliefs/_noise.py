"""The noise of normal numbers."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..._precision import full_precision
from ._roots import solved

Array = jax.Array


class Noise(NamedTuple):
    """The noise of the numbers of a row: independent blocks of one size.

    Attributes:
        blocks: lower triangular roots of the covariances, shape (*rows, blocks, k, k); for k = 1 scales.
    """

    blocks: Array

    @property
    def root(self) -> Array:
        """The root of the whole covariance, shape (*rows, m, m)."""
        *rows, num, size, _ = self.blocks.shape
        if num == 1:
            return self.blocks[..., 0, :, :]
        # Block b at rows and columns b: [blocks, k, blocks, k], zero off the diagonal of blocks.
        unit = jnp.eye(num, dtype=self.blocks.dtype)[:, None, :, None]
        whole = unit * self.blocks[..., :, :, None, :]
        return whole.reshape(*rows, num * size, num * size)

    @property
    @full_precision
    def covariance(self) -> Array:
        """The whole covariance, shape (*rows, m, m)."""
        root = self.root
        return root**2 if self.blocks.shape[-1] == 1 else root @ root.mT

    @full_precision
    def times(self, x: Array) -> Array:
        """Root x, for x of shape (*lead, *rows, m, columns)."""
        num, size = self.blocks.shape[-3:-1]
        return (self.blocks @ x.reshape(*x.shape[:-2], num, size, x.shape[-1])).reshape(x.shape)

    def whitened(self, x: Array) -> Array:
        """root^-1 x, for x of shape (*rows, m, columns)."""
        num, size = self.blocks.shape[-3:-1]
        parts = x.reshape(*x.shape[:-2], num, size, x.shape[-1])
        blocks = jnp.broadcast_to(self.blocks, (*parts.shape[:-1], size))
        return solved(blocks, parts, is_lower=True).reshape(x.shape)

    def whitened_by(self, x: Array) -> Array:
        """X root^-1, for x of shape (*rows, n, m)."""
        num, size = self.blocks.shape[-3:-1]
        parts = jnp.moveaxis(x.reshape(*x.shape[:-1], num, size), -3, -1)  # num, size, n
        blocks = jnp.broadcast_to(self.blocks, (*parts.shape[:-1], size))
        found = solved(blocks, parts, is_lower=True, transposed=True)
        return jnp.moveaxis(found, -1, -3).reshape(x.shape)

    @property
    def log_det(self) -> Array:
        """Log det of the root, shape rows."""
        return jnp.log(jnp.diagonal(self.blocks, axis1=-2, axis2=-1)).sum((-2, -1))

    def apart(self, cells: Array) -> Noise:
        """This noise with unit noise for the numbers outside of `cells`, shape (*rows, m); of a block all are seen, or none."""
        *rows, num, size, _ = self.blocks.shape
        seen = cells.reshape(*rows, num, size)[..., None]
        return Noise(jnp.where(seen, self.blocks, jnp.eye(size, dtype=self.blocks.dtype)))
