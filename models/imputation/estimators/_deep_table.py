"""The deep model of a table's numbers, its categories beside them as dummies."""

from __future__ import annotations

from typing import Self

import numpy as np
from jaxtyping import Float, PyTree

from ....ppl._quiet import quiet
from ..tables import HiddenCells, Levels, with_dummies
from ._imputer import SeriesImputer


class DeepTable:
    """A deep latent model of numbers and dummies (`SeriesImputer` of a table), in standard units.

    Args:
        levels: numbers of levels of the categories.
        seed: of everything random.
        options: of `SeriesImputer`.
    """

    def __init__(self, levels: Levels, seed: int, **options: PyTree) -> None:
        self.levels = levels
        self.imputer = SeriesImputer(random_state=seed, **options)

    def fit(self, x: np.ndarray, c: np.ndarray) -> Self:
        """Train on numbers with NaN, and levels with -1, where they are missing."""
        self.imputer.fit(with_dummies(x, c, self.levels))
        return self

    def scores(self, x: np.ndarray, c: np.ndarray, hidden: HiddenCells) -> Float[np.ndarray, " m"]:
        """Log-densities of hidden cells given the rest of their rows, nats."""
        rows = hidden.rows
        whole = with_dummies(x[rows], c[rows], self.levels)
        rest = with_dummies(hidden.without(x)[rows], c[rows], self.levels)
        return self.imputer.score_samples(whole) - self.imputer.score_samples(rest)

    def means(self, x: np.ndarray, c: np.ndarray) -> Float[np.ndarray, "rows d"]:
        """The numbers with their expectations in the holes."""
        return self.imputer.transform(with_dummies(x, c, self.levels))[:, : x.shape[1]]

    def draws(
        self, x: np.ndarray, c: np.ndarray, number: int, seed: int
    ) -> Float[np.ndarray, "number rows d"]:
        """Completed numbers."""
        with quiet():  # `TableImputer` has said it
            found = self.imputer.sample(with_dummies(x, c, self.levels), number, random_state=seed)
        return found[..., : x.shape[1]]
