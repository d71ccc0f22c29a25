"""The law of a normal statement whose mean is uncertain."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints

from .._precision import full_precision
from .._types import Key
from ._arranged import flat, unflat
from .beliefs import LOG_2_PI, Noise, meeting_of

Array = jax.Array


class JointNormal(dist.Distribution):
    """The law of arrays x = loc + seen u + noise, u ~ N(0, 1), some cells of which may be missing.

    Args:
        loc: mean, shape (*batch, *event).
        seen: shape (*rows, m, k), m the number of numbers in a row.
        noise: of a row's numbers.
        cells: boolean, shape of loc: the numbers that have a density; None: all.
        rows: axes of loc along which rows are independent. The leading ones, in order: these are the batch axes; else there are
            none.
        moved: what is asked for of u given the numbers (`beliefs`).
    """

    arg_constraints = {"loc": constraints.real}
    pytree_data_fields = ("loc", "seen", "noise", "cells", "meeting")
    pytree_aux_fields = ("rows",)
    reparametrized_params = ["loc"]

    def __init__(
        self,
        loc: Array,
        seen: Array,
        noise: Noise,
        cells: Array | None,
        rows: tuple[int, ...],
        moved: Array | None = None,
    ) -> None:
        self.loc, self.seen, self.noise = loc, seen, noise
        self.cells, self.rows = cells, rows
        self.meeting = meeting_of(*self.counted(), moved)
        batch = len(rows) if is_leading(rows) else 0
        super().__init__(loc.shape[:batch], loc.shape[batch:])

    def counted(self) -> tuple[Array, Noise]:
        """Coefficients and noise, with unit noise alone where a cell is missing."""
        if self.cells is None:
            return self.seen, self.noise
        is_seen = flat(self.cells, self.rows)
        return jnp.where(is_seen[..., None], self.seen, 0), self.noise.apart(is_seen)

    @constraints.dependent_property(is_discrete=False)  # pyright: ignore[reportArgumentType]
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All real arrays."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Array:
        """Loc."""
        return self.loc

    @property
    @full_precision
    def covariance(self) -> Array:
        """Covariance of the numbers of a row, missing ones included, shape (*rows, m, m)."""
        return self.seen @ self.seen.mT + self.noise.covariance

    @property
    def variance(self) -> Array:
        """Variance of each number."""
        found = jnp.diagonal(self.covariance, axis1=-2, axis2=-1)
        return unflat(found, self.rows, self.loc.shape)

    @full_precision
    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """By the noise and the coordinates that the numbers are made of: no decomposition is needed."""
        *rows, size, columns = self.seen.shape
        own, shared = jax.random.split(key)
        draw = lambda key, n: jax.random.normal(key, (*sample_shape, *rows, n, 1), self.loc.dtype)
        found = self.noise.times(draw(own, size)) + self.seen @ draw(shared, columns)
        return self.loc + unflat(found[..., 0], self.rows, self.loc.shape)

    def log_prob(self, value: Array) -> Array:
        """Log-density of the cells that count, in nats."""
        away = value - self.loc
        if away.ndim == self.loc.ndim:
            return self._log_prob(away)
        lead = away.shape[: away.ndim - self.loc.ndim]
        each = jax.vmap(self._log_prob)(away.reshape(-1, *self.loc.shape))
        return each.reshape(*lead, *self.batch_shape)

    def _log_prob(self, away: Array) -> Array:
        away = self.away(away)
        count: Any = away.shape[-1]
        if self.cells is not None:
            count = flat(self.cells, self.rows).sum(-1)
        each = self.meeting.log_prob(away) - 0.5 * LOG_2_PI * count
        return each if len(self.batch_shape) == len(self.rows) else each.sum()

    def away(self, away: Array) -> Array:
        """A value's distance from its mean, 0 in missing cells, row by row."""
        if self.cells is not None:
            away = jnp.where(self.cells, away, 0)
        return flat(away, self.rows)


def is_leading(rows: tuple[int, ...]) -> bool:
    """Whether the axes of rows are the first ones, in order."""
    return rows == tuple(range(len(rows)))


def made_plain(law: JointNormal, fn: dist.Distribution) -> tuple[dist.Distribution, int | None]:
    """The law in place of a normal statement's `fn`, with the least of machinery; how many batch axes became event axes.

    Returns:
        The law: `Normal` where a row has one number. The number of axes; None: all.
    """
    is_first = is_leading(law.rows)
    if is_first and law.loc.ndim == len(law.rows) and fn.event_dim == 0:
        plain = dist.Normal(law.loc, jnp.sqrt(law.covariance[..., 0, 0]))
        return (plain if law.cells is None else plain.mask(law.cells)), 0
    return law, len(fn.batch_shape) - len(law.rows) if is_first and law.rows else None
