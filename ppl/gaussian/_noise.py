"""The noise of normal statements, and how to read it off their laws."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from .._compat import mask_of
from .._precision import full_precision
from ..distributions import NormalCells, base_of
from ._roots import solved

Array = jax.Array
NORMAL = (dist.Normal, dist.MultivariateNormal, NormalCells)


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
        unit = jnp.eye(num, dtype=self.blocks.dtype)[:, None, :, None]
        whole = unit * self.blocks[..., :, :, None, :]
        return whole.reshape(*rows, num * size, num * size)

    @property
    @full_precision
    def covariance(self) -> Array:
        """The whole covariance, shape (*rows, m, m)."""
        root = self.root
        return root**2 if self.blocks.shape[-1] == 1 else root @ root.mT

    def whitened(self, x: Array) -> Array:
        """root^-1 x, for x of shape (*rows, m, columns)."""
        *rows, num, size, _ = self.blocks.shape
        parts = x.reshape(*x.shape[:-2], num, size, x.shape[-1])
        blocks = jnp.broadcast_to(self.blocks, (*parts.shape[:-1], size))
        return solved(blocks, parts, is_lower=True).reshape(x.shape)

    @property
    def log_det(self) -> Array:
        """Log det of the root, shape rows."""
        return jnp.log(jnp.diagonal(self.blocks, axis1=-2, axis2=-1)).sum((-2, -1))

    def apart(self, cells: Array) -> Noise:
        """With unit noise for the numbers outside of `cells`, shape (*rows, m); of a block all are seen, or none."""
        *rows, num, size, _ = self.blocks.shape
        seen = cells.reshape(*rows, num, size)[..., None]
        return Noise(jnp.where(seen, self.blocks, jnp.eye(size, dtype=self.blocks.dtype)))


class Reading(NamedTuple):
    """The noise of a normal statement, and which of its numbers count, at full shape.

    Attributes:
        blocks: scales of shape (*batch, *event), or triangles with two axes for the last one of the event.
        is_scale: which of the two.
        cells: boolean, shape (*batch, *event); None: all count.
    """

    blocks: Array
    is_scale: bool
    cells: Array | None


def loc_of(treedef: Any) -> int | None:
    """Which leaf of a law is the location of a normal one; None: it is none."""
    base = base_of(treedef.unflatten(range(treedef.num_leaves)))
    is_normal = type(base) in NORMAL
    return base.loc if is_normal and isinstance(base.loc, int) else None


def reading_of(fn: Any) -> Reading:
    """The noise of a normal law."""
    base: Any = base_of(fn)
    shape: Any = fn.shape()
    cells = cells_of(fn)
    if isinstance(base, dist.Normal):
        scale = jnp.broadcast_to(base.scale, shape)  # pyright: ignore[reportArgumentType]
        return Reading(scale, True, cells)
    if isinstance(base, NormalCells):
        own = jnp.broadcast_to(base.cells, shape)
        cells = own if cells is None else cells & own
    return Reading(jnp.broadcast_to(base.scale_tril, (*shape, shape[-1])), False, cells)


def cells_of(fn: Any) -> Array | None:
    """Which numbers of a value count in a law's density, shape `fn.shape()`; None: all."""
    found, shape = None, fn.shape()
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        if isinstance(fn, dist.MaskedDistribution):
            mask = jnp.broadcast_to(jnp.asarray(mask_of(fn), bool), fn.batch_shape)
            mask = mask.reshape(mask.shape + (1,) * len(fn.event_shape))
            mask = jnp.broadcast_to(mask, shape)
            found = mask if found is None else found & mask
        fn = fn.base_dist
    return found
