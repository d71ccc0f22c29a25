"""Normal statements: the mean and the noise of one, and the law of one when its mean is uncertain."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints

from .._compat import mask_of
from ..distributions import NormalCells, base_of
from ._roots import lower, solved, upper
from ._rows import flat, unflat

Array = jax.Array
NORMAL = (dist.Normal, dist.MultivariateNormal)


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
        """With independent unit noise for the numbers outside of `cells`, shape (*rows, m); blocks are seen whole or not at all."""
        *rows, num, size, _ = self.blocks.shape
        seen = cells.reshape(*rows, num, size)[..., None]
        return Noise(jnp.where(seen, self.blocks, jnp.eye(size, dtype=self.blocks.dtype)))


class JointNormal(dist.Distribution):
    """A normal law of arrays of any shape, some cells of which may be missing.

        x = loc + factor e_1 + noise e_2,   e_1, e_2 ~ N(0, 1),

    row by row, by the smaller of two forms: the Cholesky factor of the covariance of a row's m numbers, or, for a factor of k < m
    columns, that of 1 + W'W, W = noise^-1 factor.

    Args:
        loc: mean, shape (*batch, *event).
        factor: shape (*rows, m, k).
        blocks: independent noise, as in `Noise`, shape (*rows, blocks, m / blocks, m / blocks).
        cells: boolean, shape of loc: the numbers that have a density; None: all.
        rows: axes of loc along which rows are independent. The leading ones, in order: these are the batch axes; else there are
            none.
    """

    arg_constraints = {"loc": constraints.real}
    pytree_data_fields = ("loc", "factor", "blocks", "cells")
    pytree_aux_fields = ("rows",)
    reparametrized_params = ["loc", "factor", "blocks"]

    def __init__(
        self, loc: Array, factor: Array, blocks: Array, cells: Array | None, rows: tuple[int, ...]
    ) -> None:
        self.loc, self.factor, self.blocks, self.cells = loc, factor, blocks, cells
        self.rows = rows
        batch = len(rows) if rows == tuple(range(len(rows))) else 0
        super().__init__(loc.shape[:batch], loc.shape[batch:])

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All real arrays."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Array:
        """Loc."""
        return self.loc

    @property
    def variance(self) -> Array:
        """Of each number."""
        noise = (Noise(self.blocks).root ** 2).sum(-1)
        return unflat(noise + (self.factor**2).sum(-1), self.rows, self.loc.shape)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """Loc + factor e_1 + noise e_2."""
        key_1, key_2 = jax.random.split(key)
        *rows, _, columns = self.factor.shape
        draws = jax.random.normal(key_1, (*sample_shape, *rows, columns), self.loc.dtype)
        own = jax.random.normal(key_2, (*sample_shape, *self.blocks.shape[:-1]), self.loc.dtype)
        added = (self.factor @ draws[..., None])[..., 0]
        added = added + (self.blocks @ own[..., None])[..., 0].reshape(added.shape)
        return self.loc + unflat(added, self.rows, self.loc.shape)

    def log_prob(self, value: Any) -> Array:
        """Log-density of the cells that count, in nats."""
        away = value - self.loc
        if away.ndim > self.loc.ndim:
            lead = away.shape[: away.ndim - self.loc.ndim]
            each = jax.vmap(self._log_prob)(away.reshape(-1, *self.loc.shape))
            return each.reshape(*lead, *self.batch_shape)
        return self._log_prob(away)

    def _log_prob(self, away: Array) -> Array:
        away, factor, noise = flat(away, self.rows), self.factor, Noise(self.blocks)
        count: Any = away.shape[-1]
        if self.cells is not None:
            cells = flat(self.cells, self.rows)
            away, noise = jnp.where(cells, away, 0), noise.apart(cells)
            factor, count = jnp.where(cells[..., None], factor, 0), cells.sum(-1)
        if away.shape[-1] > factor.shape[-1]:
            seen, whitened = noise.whitened(factor), noise.whitened(away[..., None])
            top = upper(seen)
            inner = solved(top, seen.mT @ whitened, is_lower=False, transposed=True)
            shift = solved(top, inner, is_lower=False)
            square = ((whitened - seen @ shift) ** 2).sum((-2, -1)) + (shift**2).sum((-2, -1))
            log_det = noise.log_det + _log_diagonal(top)
        else:
            tril = lower(jnp.concatenate([noise.root, factor], -1))
            square = (solved(tril, away[..., None], is_lower=True) ** 2).sum((-2, -1))
            log_det = _log_diagonal(tril)
        each = -0.5 * math.log(2 * math.pi) * count - log_det - 0.5 * square
        return each if len(self.batch_shape) == len(self.rows) else each.sum()


def law_given(
    loc: Array, factor: Array, noise: Noise, cells: Array | None, rows: tuple[int, ...], fn: Any
) -> tuple[Any, int | None]:
    """The law of a normal statement `fn` under a belief, with the least of machinery; how many batch axes became event axes.

    Args:
        loc: mean.
        factor: root of the covariance of its mean, shape (*rows, m, k).
        noise: its own noise.
        cells: which numbers count; None: all.
        rows: axes of loc along which rows are independent.
        fn: the statement's law.

    Returns:
        The law; None for a number: all batch axes.
    """
    is_leading = rows == tuple(range(len(rows)))
    if is_leading and loc.ndim == len(rows) and fn.event_dim == 0:
        scale = lower(jnp.concatenate([noise.root, factor], -1))[..., 0, 0]
        law = dist.Normal(loc, scale)
        return (law if cells is None else law.mask(cells)), 0
    law = JointNormal(loc, factor, noise.blocks, cells, rows)
    return law, len(fn.batch_shape) - len(rows) if is_leading and rows else None


def _log_diagonal(triangle: Array) -> Array:
    return jnp.log(jnp.abs(jnp.diagonal(triangle, axis1=-2, axis2=-1))).sum(-1)


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
    is_normal = type(base) in (*NORMAL, NormalCells)
    return base.loc if is_normal and isinstance(base.loc, int) else None


def reading_of(fn: Any) -> Reading:
    """The noise of a normal law."""
    base, shape, cells = base_of(fn), fn.shape(), cells_of(fn)
    if isinstance(base, dist.Normal):
        return Reading(jnp.broadcast_to(base.scale, shape), True, cells)
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
