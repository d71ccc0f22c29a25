"""Data as networks see them: each number by its rank among the rows, whatever the scales of its law."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import ndtr

_KNOTS = np.linspace(-3.0, 3.0, 31)  # standard deviations of a Normal


class NormalScores(NamedTuple):
    """Number by number, x -> Phi^-1(share of the rows below x): straight between quantiles, on a logarithmic scale beyond.

    Where a number spans orders of magnitude (populations, rates) its standard deviation is that of the largest, and what the
    others tell of the parameters is lost beside it, in single precision for good; so x is the number as it came, not
    standardised. Numbers that take few values, as counts do, have ranks that jump, and are standardised instead.

    Attributes:
        low: a piece's lower end, [c, K].
        width: of the piece, [c, K].
        rise: of the score on it, [c, K]; 0 of pieces that are not needed.
        least: the score of the smallest quantile, [c].
        ends: the smallest and the largest quantile, [2, c]; both the mean of what is standardised.
        scale: standard deviation of the rows, [c]; 1 where they are one number.
    """

    low: np.ndarray
    width: np.ndarray
    rise: np.ndarray
    least: np.ndarray
    ends: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, rows: Float[np.ndarray, "N c"]) -> NormalScores:
        """The scores among rows."""
        shape = (rows.shape[1], len(_KNOTS) - 1)
        low, width, rise = np.zeros(shape), np.ones(shape), np.zeros(shape)
        least, ends = np.zeros(shape[0]), np.stack([np.mean(rows, 0, dtype=float)] * 2)
        for i, column in enumerate(np.asarray(rows, float).T):
            if has_few_values(column):
                continue
            quantiles = np.quantile(column, ndtr(_KNOTS)).astype(np.float32)
            at, number = np.unique(quantiles, return_inverse=True)
            score = np.bincount(number, _KNOTS) / np.bincount(number)
            n = len(at) - 1
            low[i, :n], width[i, :n], rise[i, :n] = at[:-1], np.diff(at), np.diff(score)
            least[i], ends[:, i] = score[0], at[[0, -1]]
        sd = np.std(rows, 0, dtype=float)
        found = (low, width, rise, least, ends, np.where(sd > 0, sd, 1.0))
        return cls(*(x.astype(np.float32) for x in found))

    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        share = jnp.clip((x[..., None] - self.low) / self.width, 0.0, 1.0)
        inside = self.least + (self.rise * share).sum(-1)
        below, above = jnp.maximum(self.ends[0] - x, 0.0), jnp.maximum(x - self.ends[1], 0.0)
        return inside - jnp.arcsinh(below / self.scale) + jnp.arcsinh(above / self.scale)


def has_few_values(column: np.ndarray) -> bool:
    """Whether numbers are fewer than half as many values as numbers."""
    return 2 * len(np.unique(column)) < len(column)
