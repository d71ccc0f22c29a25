"""Ranks that are uniform if the posterior is right: their test, their curve, and the band in which it lies.

For S ranks r_i on 0, ..., L and levels a_j = j / (L + 1), the curve is F(a_j) = #{r_i < j} / S, a share of Binomial(S, a_j)
successes. The test's statistic is the smallest two-sided binomial p-value over the levels, its law is simulated; the band has the
one quantile of it at every level (Saeilynoja, Buerkner and Vehtari 2022, arXiv:2103.10522).
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int, PyTree
from scipy.special import bdtr, bdtrc

from ...ppl._show import shown
from ...ppl._table import table

# Simulated curves behind a p-value: it is told to 0.003 near 0.05. Far out the union bound over the levels takes their place.
NUM_NULL = 4_999


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class RankCheck:
    """Ranks of truths among posterior draws by some order, uniform on 0, ..., L if the posterior is right.

    Attributes:
        name: of the check.
        labels: what is ranked, a word for each column.
        ranks: [S, columns].
        num_draws: L.
        p_values: [columns], by simultaneous binomial limits of the curve.
    """

    name: str
    labels: tuple[str, ...]
    ranks: Int[np.ndarray, "simulations columns"]
    num_draws: int
    p_values: Float[np.ndarray, " columns"]

    @property
    def smallest_p_value(self) -> float:
        """Smallest p-value times the number of columns (Bonferroni), at most 1."""
        return float(min(1.0, self.p_values.min() * self.p_values.size))

    @property
    def levels(self) -> Float[np.ndarray, " levels"]:
        """1 / (L + 1), ..., L / (L + 1)."""
        return np.arange(1, self.num_draws + 1) / (self.num_draws + 1)

    @property
    def curves(self) -> Float[np.ndarray, "levels columns"]:
        """Share of simulations with a rank below each level: coverage of the regions, where the check is one of regions."""
        return counts_below(self.ranks, self.num_draws).T / len(self.ranks)

    def band(self, prob: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Low and high ends, [levels] each, between which a whole curve lies with at least probability `prob`.

        Args:
            prob: 0 < prob < 1.

        Raises:
            ValueError: another probability.
        """
        if not 0 < prob < 1:
            raise ValueError(f"band: prob must lie between 0 and 1, got {prob}.")
        number = len(self.ranks)
        level = np.quantile(_null(number, self.num_draws), 1 - prob) / 2
        counts = np.arange(number + 1)[:, None]
        # Counts whose tails are above `level` on both sides, as in the statistic.
        inside = (bdtr(counts, number, self.levels) > level) & (
            _upper(counts, number, self.levels) > level
        )
        return inside.argmax(0) / number, (number - inside[::-1].argmax(0)) / number

    def _facts(self) -> dict[str, PyTree]:
        order = np.argsort(self.p_values)[:4]
        return {
            "name": self.name,
            "simulations": len(self.ranks),
            "num_draws": f"{self.num_draws} for each",
            "p-values": {self.labels[i]: float(self.p_values[i]) for i in order},
            "smallest": f"{self.smallest_p_value:.3g}, corrected for {len(self.labels)} columns",
        }

    def _tables(self) -> list[list[tuple[str, ...]]]:
        rows: list[tuple[str, ...]] = [("what", "mean level", "at level 0.5", "at level 0.9", "p")]
        grid, curves = self.levels, self.curves
        for i, label in enumerate(self.labels):
            at = [np.interp(a, grid, curves[:, i]) for a in (0.5, 0.9)]
            mean = (self.ranks[:, i].mean() + 0.5) / (self.num_draws + 1)
            rows.append(
                (label, f"{mean:.3f}", *(f"{a:.3f}" for a in at), f"{self.p_values[i]:.2g}")
            )
        return [rows]

    def __str__(self) -> str:
        return f"{self.name}\n{table(*self._tables())}"


def rank_check(name: str, labels: tuple[str, ...], ranks: np.ndarray, num_draws: int) -> RankCheck:
    """The check of these ranks, [S, columns]."""
    null = _null(len(ranks), num_draws)
    found = _statistic(counts_below(ranks, num_draws), len(ranks))
    # Mirrored ranks have equal statistics but for rounding; they must count as ties, or p-values are too small.
    at_most = np.searchsorted(null, found * (1 + 1e-9), side="right")
    p_values = (1 + at_most) / (1 + len(null))
    p_values = np.minimum(p_values, num_draws * found)  # the union bound, where simulations end
    return RankCheck(name, labels, ranks, num_draws, p_values)


def ranks_of(
    rng: np.random.Generator, truth: np.ndarray, draws: np.ndarray
) -> Int[np.ndarray, "simulations columns"]:
    """Number of draws (axis 1) below the truth; ties are broken at random."""
    below = (draws < truth[:, None]).sum(1)
    ties = (draws == truth[:, None]).sum(1)
    return below + rng.integers(0, ties + 1)


def central(ranks: np.ndarray, num_draws: int) -> np.ndarray:
    """Ranks by which the middle comes first: r < j where the central interval of level j / (L + 1) holds the truth.

    A bijection of 0, ..., L: the two ends of an interval have neighbouring numbers.
    """
    return np.where(2 * ranks <= num_draws, num_draws - 2 * ranks, 2 * ranks - num_draws - 1)


def counts_below(ranks: np.ndarray, num_draws: int) -> Int[np.ndarray, "columns levels"]:
    """#{r_i < j} for j = 1, ..., L."""
    each = [np.bincount(column, minlength=num_draws + 1) for column in ranks.T]
    return np.cumsum(each, axis=1)[:, :-1]


def _upper(counts: np.ndarray, number: int, levels: np.ndarray) -> np.ndarray:
    """P(count or more)."""
    return np.where(counts > 0, bdtrc(np.maximum(counts - 1, 0), number, levels), 1.0)


def _statistic(counts: np.ndarray, number: int) -> np.ndarray:
    """The smallest two-sided p-value over the levels (last axis)."""
    num_levels = counts.shape[-1]
    levels = np.arange(1, num_levels + 1) / (num_levels + 1)
    every = np.arange(number + 1)[:, None]
    low, high = bdtr(every, number, levels), _upper(every, number, levels)
    both = 2 * np.minimum(low, high)
    return np.take_along_axis(both, counts.reshape(-1, num_levels), 0).min(-1)


@functools.lru_cache(maxsize=16)  # 40 kB each; all checks of a report share one
def _null(number: int, num_draws: int) -> np.ndarray:
    """Sorted statistics of uniform ranks: a table, the same at every call."""
    rng = np.random.default_rng(0)
    each = rng.multinomial(number, np.full(num_draws + 1, 1 / (num_draws + 1)), NUM_NULL)
    return np.sort(_statistic(np.cumsum(each, 1)[:, :-1], number))
