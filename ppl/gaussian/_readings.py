"""The noise of normal statements, read off their laws: those that users write, and those that an integral leaves."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import PyTree

from .._compat import mask_of
from ..distributions import NormalCells, base_of
from ._arranged import flat
from ._forms import RowsMeet
from ._laws import JointNormal
from .beliefs import Noise, lower

Array = jax.Array
NORMAL = (dist.Normal, dist.MultivariateNormal, NormalCells, JointNormal)


class Reading(NamedTuple):
    """The noise of a normal statement, and which of its numbers count, at full shape.

    Attributes:
        blocks: scales of shape (*batch, *event), or triangles with two axes for the last one of the event.
        is_scale: which of the two.
        cells: boolean, shape (*batch, *event); None: all count.
        joint: of a law that an integral has left; then nothing is in `blocks`.
    """

    blocks: Array
    is_scale: bool
    cells: Array | None
    joint: JointNormal | None = None


def loc_of(treedef: PyTree) -> int | None:
    """Which leaf of a law is the location of a normal one; None: it is none."""
    base = base_of(treedef.unflatten(range(treedef.num_leaves)))
    is_normal = type(base) in NORMAL
    return base.loc if is_normal and isinstance(base.loc, int) else None


def reading_of(fn: dist.Distribution) -> Reading:
    """The noise of a normal law."""
    base: Any = base_of(fn)
    shape: Any = fn.shape()
    cells = cells_of(fn)
    if isinstance(base, JointNormal):
        if base.cells is not None:
            cells = base.cells if cells is None else cells & base.cells
        return Reading(jnp.zeros(()), False, cells, base)
    if isinstance(base, dist.Normal):
        scale = jnp.broadcast_to(base.scale, shape)  # pyright: ignore[reportArgumentType]
        return Reading(scale, True, cells)
    if isinstance(base, NormalCells):
        own = jnp.broadcast_to(base.cells, shape)
        cells = own if cells is None else cells & own
    return Reading(jnp.broadcast_to(base.scale_tril, (*shape, shape[-1])), False, cells)


def cells_of(fn: dist.Distribution) -> Array | None:
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


def noise_of(reading: Reading, rows: tuple[int, ...]) -> Noise:
    """The noise of a statement whose basis has these rows.

    Raises:
        RowsMeet: it is not independent along one of them.
    """
    if reading.joint is not None:
        return _noise_of_joint(reading.joint, rows)
    if reading.is_scale:
        return Noise(flat(reading.blocks, rows)[..., None, None])
    size = reading.blocks.shape[-1]
    x = jnp.moveaxis(reading.blocks, rows, range(len(rows)))
    return Noise(x.reshape(*x.shape[: len(rows)], -1, size, size))


def _noise_of_joint(law: JointNormal, rows: tuple[int, ...]) -> Noise:
    """The noise of what an integral has left: a block for each row of it that stands in a row here."""
    for number, axis in enumerate(rows):
        if axis not in law.rows:
            raise RowsMeet.along(number)
    seen, noise = law.counted()
    size = seen.shape[-2]
    own = jnp.broadcast_to(noise.root, (*seen.shape[:-1], size))
    root = lower(jnp.concatenate([own, seen], -1))
    blocks = jnp.moveaxis(root, [law.rows.index(a) for a in rows], range(len(rows)))
    blocks = blocks.reshape(*blocks.shape[: len(rows)], -1, size, size)
    # The numbers of the first row in the order of the blocks, and as they stand in the value.
    index = np.arange(law.loc.size).reshape(law.loc.shape)
    num_lead = len(rows)
    ours = np.moveaxis(
        index, [*rows, *(a for a in law.rows if a not in rows)], range(len(law.rows))
    )
    theirs = np.moveaxis(index, rows, range(num_lead))
    ours, theirs = ours[(0,) * num_lead].ravel(), theirs[(0,) * num_lead].ravel()
    found = Noise(blocks)
    if (ours == theirs).all():
        return found
    place = np.argsort(ours)[np.argsort(np.argsort(theirs))]
    return Noise(lower(found.root[..., place, :])[..., None, :, :])
