"""Where in the space of data a posterior is wrong, and in which direction: ranks regressed on the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, PyTree
from scipy.special import fdtrc, ndtr, ndtri

from ...ppl._calls import checked_call
from ...ppl._data import as_numbers
from ...ppl._show import shown
from ...ppl._table import table
from ...ppl._types import Key
from ._ranks import ranks_of
from ._simulations import Simulations, generator

_MOST_FEATURES = 10


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class LocalCoverage:
    """See `local_coverage`.

    Attributes:
        labels: latent coordinates.
        features: names of what the ranks were regressed on.
        p_values: [coordinates, 2], of shifts and of widths that vary with the data.
        shift_slopes: [coordinates, features], how many posterior deviations the truth rises against the posterior, as one feature
            rises by its deviation.
        width_slopes: [coordinates, features], likewise the squared deviation of the truth, whose mean is 1 if the posterior is
            right: positive where it is too narrow.
        feature_matrix: [S, features], what was regressed on, standardised.
        scores: [S, coordinates], normal scores of the ranks.
    """

    labels: tuple[str, ...]
    features: tuple[str, ...]
    p_values: Float[np.ndarray, "coordinates 2"]
    shift_slopes: Float[np.ndarray, "coordinates features"]
    width_slopes: Float[np.ndarray, "coordinates features"]
    feature_matrix: Float[np.ndarray, "simulations features"]
    scores: Float[np.ndarray, "simulations coordinates"]

    @property
    def smallest_p_value(self) -> float:
        """Smallest p-value times their number (Bonferroni), at most 1."""
        return float(min(1.0, self.p_values.min() * self.p_values.size))

    def _facts(self) -> dict[str, PyTree]:
        order = np.argsort(self.p_values.min(1))[:4]
        return {
            "simulations": len(self.scores),
            "features": self.features[:6],
            "p-values": {self.labels[i]: float(self.p_values[i].min()) for i in order},
            "smallest": f"{self.smallest_p_value:.3g}, corrected for {self.p_values.size} p-values",
        }

    def _tables(self) -> list[list[tuple[str, ...]]]:
        head = (
            "coordinate",
            "p shift",
            "steepest with",
            "slope",
            "p width",
            "steepest with",
            "slope",
        )
        rows: list[tuple[str, ...]] = [head]
        for i, label in enumerate(self.labels):
            cells: list[str] = []
            for j, slopes in enumerate((self.shift_slopes[i], self.width_slopes[i])):
                most = int(np.abs(slopes).argmax())
                cells += [f"{self.p_values[i, j]:.2g}", self.features[most], f"{slopes[most]:+.2f}"]
            rows.append((label, *cells))
        return [rows]

    def __str__(self) -> str:
        return table(*self._tables())


@checked_call
def local_coverage(
    simulations: Simulations,
    key: Key,
    *,
    features_fn: Callable[[np.ndarray], np.ndarray] | None = None,
) -> LocalCoverage:
    """Regress the ranks on the data: a posterior that is right at all data has ranks that know nothing of them.

    With u_i = (r_i + uniform) / (L + 1), normal scores g_i = Phi^{-1}(u_i) and h_i = Phi^{-1}(|2 u_i - 1|) are N(0, 1)
    whatever the data, if the posterior is right: F-tests of linear regressions of g (shift) and of h (width) on features of the
    data.

    Args:
        simulations: of `simulate`.
        key: PRNG key of either kind, for ties and the null law.
        features_fn: data [S, data coordinates] -> features [S, F]. Left out: normal scores of every data coordinate, and their
            squares; of more than ten coordinates, those of the first ten principal components.

    Returns:
        A `LocalCoverage`.

    Raises:
        ValueError: features of another length, not finite, constant, or as many as a third of the simulations.

    Validity: exact for any number of draws and any features, which may see data but no truths. What the features cannot
    express is not seen: a wrong constant is the matter of `coverage`.

    Reference: Zhao, Dalmasso, Izbicki and Lee 2021, arXiv:2102.10473 (local coverage by regression of probability integral
    transforms), here with linear regressions.
    """
    rng = generator(key)
    data = simulations.data_matrix
    number = len(data)
    if features_fn is None:
        features, names = _features(data, simulations.data_coordinates)
    else:
        features = as_numbers("local_coverage: features", features_fn(data))
        features = features.reshape(len(features), -1) if features.ndim else features[None, None]
        names = tuple(f"feature {i}" for i in range(features.shape[1]))
    spread = features.std(0)
    if len(features) != number or not np.isfinite(features).all() or not (spread > 0).any():
        raise ValueError(
            f"local_coverage: features of shape {features.shape} for {number} simulations. Give one finite row for each, and a "
            "column that varies."
        )
    if 3 * features.shape[1] >= number:
        raise ValueError(
            f"local_coverage: {features.shape[1]} features and {number} simulations. Give fewer features, or three times as many "
            "simulations."
        )
    kept = spread > 0
    inputs = (features[:, kept] - features[:, kept].mean(0)) / spread[kept]
    names = tuple(n for n, k in zip(names, kept, strict=True) if k)
    draws = simulations.draw_matrix
    ranks = ranks_of(rng, simulations.truth_matrix, draws)
    scores = ndtri((ranks + rng.uniform(1e-9, 1 - 1e-9, ranks.shape)) / (draws.shape[1] + 1))
    widths = ndtri(np.abs(2 * ndtr(scores) - 1).clip(1e-12, 1 - 1e-12))
    p_values = np.column_stack([_f_test(inputs, scores), _f_test(inputs, widths)])
    alone = inputs.T / number  # the slope on one standardised feature alone
    return LocalCoverage(
        simulations.coordinates, names, p_values, (alone @ (scores - scores.mean(0))).T,
        (alone @ (scores**2 - (scores**2).mean(0))).T, inputs, scores,
    )  # fmt: skip


def _f_test(inputs: np.ndarray, responses: np.ndarray) -> Float[np.ndarray, " columns"]:
    """P-values of no slope, of each column; inputs are centred and may be collinear."""
    left, sizes, _ = np.linalg.svd(inputs, full_matrices=False)
    basis = left[:, sizes > 1e-9 * sizes[0]]
    centred = responses - responses.mean(0)
    explained = ((basis.T @ centred) ** 2).sum(0)
    rest = np.maximum((centred**2).sum(0) - explained, 1e-30)
    free = len(inputs) - 1 - basis.shape[1]
    return fdtrc(basis.shape[1], free, explained / basis.shape[1] * free / rest)


def _features(data: np.ndarray, names: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Normal scores of data coordinates (principal components of many), and their squares."""
    if data.shape[1] > _MOST_FEATURES:
        spread = data.std(0)
        units = (data - data.mean(0)) / np.where(spread > 0, spread, 1.0)
        left, sizes, _ = np.linalg.svd(units, full_matrices=False)
        data = left[:, :_MOST_FEATURES] * sizes[:_MOST_FEATURES]
        names = tuple(f"component {i}" for i in range(data.shape[1]))
    ranks = np.array([_middle_ranks(column) for column in data.T]).T
    scores = ndtri((ranks + 0.5) / len(data))
    several = np.array([len(np.unique(column)) > 2 for column in data.T])
    squares = scores[:, several] ** 2
    of_squares = tuple(f"{n} squared" for n, more in zip(names, several, strict=True) if more)
    return np.column_stack([scores, squares]), (*names, *of_squares)


def _middle_ranks(column: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata  # on use: a fifth of a second

    return rankdata(column) - 1
