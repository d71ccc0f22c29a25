"""Frechet distance: as it is printed everywhere, and with its bias in the sample size taken out."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from ...ppl._calls import checked_call
from ...ppl._compat import ArrayLike
from ...ppl._data import as_numbers
from ...ppl._types import Key
from ._estimate import Estimate
from ._inputs import Features, finite, generator, jackknife_error, rows, with_floor

# Every cell of rows has a part (which subsets it is in) and a group (with which it is left out by the jackknife).
_PARTS, _GROUPS = 12, 20
_FRACTIONS = (
    1,
    2,
    3,
    4,
)  # subsets of 1 / f of the rows: f of them, without common rows, from whole parts


@checked_call
def frechet_distance(
    real: Float[ArrayLike, "n d"],
    generated: Float[ArrayLike, "m d"],
    key: Key | None,
    *,
    features: Features | None = None,
    held_out: Float[ArrayLike, "m d"] | None = None,
) -> Estimate:
    """Squared Frechet distance between the Normals of both samples' moments, extrapolated to infinite samples.

        F = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))

    From samples it is too large, by C / n to first order, and C differs between models. F is computed on all rows, on halves,
    thirds and quarters of both samples, averaged over the disjoint subsets of a size, and regressed on 1 / n; the value is the
    intercept.

    Args:
        real: n rows.
        generated: m rows.
        key: PRNG key that splits the rows into subsets.
        features: a function of each sample: what the Frechet inception distance has a network for.
        held_out: real rows for the floor, as many as `generated`.

    Returns:
        The intercept, with a jackknife error over 20 groups of rows of both samples. It is 0 under equality up to terms of order
        1 / n^2, and may be negative. Details: "plain", the distance of all rows, and "plain_error"; "bias", the slope over the
        number of rows, what `plain` is too large by.

    Raises:
        ValueError: what `rows` are not; quarters with fewer rows than d + 2, whose covariances are singular.

    Validity: the extrapolation takes out the term in 1 / n; what is left matters where d is as large as n / 10. The jackknife
    is too wide under equality (by up to the root of 2), where the distance has no linear term. The distance sees two moments of
    the features and nothing else.

    Reference: Heusel et al. 2017, arXiv:1706.08500; extrapolation: Chong and Forsyth 2020, arXiv:1911.07023.
    """
    label = "frechet_distance"
    x, y, *other = rows(
        label, features, {"real": real, "generated": generated, "held_out": held_out}
    )
    least = _least(x.shape[1])
    rows(
        label,
        None,
        {"real": x, "generated": y},
        least=least,
        why="a quarter with a regular covariance",
    )
    draws = generator(key)

    def compute(x: np.ndarray, y: np.ndarray) -> Estimate:
        centre = x.mean(0)  # against cancellation in sums of products
        one, two = (
            _CellMoments.of_cells(x - centre, draws),
            _CellMoments.of_cells(y - centre, draws),
        )
        intercept, plain, slope = _extrapolated(one.by_part(), two.by_part())
        left_out = np.array([_extrapolated(one.by_part(g), two.by_part(g)) for g in range(_GROUPS)])
        error, plain_error, _ = jackknife_error(left_out)
        details = {"plain": plain, "plain_error": float(plain_error), "bias": slope}
        sizes = (len(x), len(y))
        return Estimate(
            intercept, float(error), exact=0.0, name=label, sizes=sizes, details=details
        )

    return with_floor(label, compute, x, y, other[0] if other else None)


@checked_call
def frechet_of_moments(
    mean: np.ndarray, cov: np.ndarray, other_mean: np.ndarray, other_cov: np.ndarray
) -> float:
    """|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)), the squared Frechet distance of two Normals.

    Args:
        mean: m, [d].
        cov: S, [d, d].
        other_mean: m', [d].
        other_cov: S', [d, d].

    Raises:
        ValueError: other shapes, or numbers that are not finite.
    """
    label = "frechet_of_moments"
    given = {"mean": mean, "cov": cov, "other_mean": other_mean, "other_cov": other_cov}
    mean, cov, other_mean, other_cov = (as_numbers(f"{label}: {n}", x) for n, x in given.items())
    d = mean.shape[-1] if mean.ndim else 0
    if not d or [x.shape for x in (mean, cov, other_mean, other_cov)] != [(d,), (d, d)] * 2:
        shapes = {name: np.shape(x) for name, x in given.items()}
        raise ValueError(
            f"{label}: means must have shape [d] and covariances [d, d] of one d, got {shapes}. Give those of two samples of one "
            "space, e.g. x.mean(0) and np.cov(x.T)."
        )
    for name, x in (
        ("mean", mean),
        ("cov", cov),
        ("other_mean", other_mean),
        ("other_cov", other_cov),
    ):
        finite(label, name, x)
    values, vectors = np.linalg.eigh(cov)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    # S S' has the eigenvalues of S^1/2 S' S^1/2, which is symmetric.
    common = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other_cov @ root), 0)).sum()
    means = ((mean - other_mean) ** 2).sum()
    return float(means + np.trace(cov) + np.trace(other_cov) - 2 * common)


def _least(d: int) -> int:
    """Rows with which each quarter has d + 2 of them, one group left out and cells of unequal size."""
    return int(np.ceil(max(_FRACTIONS) * (d + 2) * _GROUPS / (_GROUPS - 1))) + _PARTS


@dataclasses.dataclass(frozen=True)
class _CellMoments:
    """Sums over the rows of each cell: counts [parts, groups], rows [parts, groups, d], their products [..., d, d]."""

    counts: np.ndarray
    sums: np.ndarray
    products: np.ndarray

    @classmethod
    def of_cells(cls, x: np.ndarray, draws: np.random.Generator) -> _CellMoments:
        order, d = draws.permutation(len(x)), x.shape[1]
        counts = np.zeros((_PARTS, _GROUPS))
        sums, products = np.zeros((_PARTS, _GROUPS, d)), np.zeros((_PARTS, _GROUPS, d, d))
        for cell in range(_PARTS * _GROUPS):
            part = x[order[cell :: _PARTS * _GROUPS]]
            at = cell % _PARTS, cell // _PARTS
            counts[at], sums[at], products[at] = len(part), part.sum(0), part.T @ part
        return cls(counts, sums, products)

    def by_part(self, left_out: int | None = None) -> _CellMoments:
        """Sums over groups, one of them left out: [parts], [parts, d], [parts, d, d]."""
        terms = (self.counts, self.sums, self.products)
        if left_out is None:
            return _CellMoments(*(t.sum(1) for t in terms))
        return _CellMoments(*(t.sum(1) - t[:, left_out] for t in terms))

    def of_subset(self, fraction: int, number: int) -> tuple[float, np.ndarray, np.ndarray]:
        """Rows, mean and covariance of the `number`-th of `fraction` subsets, of moments by part."""
        parts = slice(number, None, fraction)
        n, total = self.counts[parts].sum(), self.sums[parts].sum(0)
        mean = total / n
        return n, mean, (self.products[parts].sum(0) - n * np.outer(mean, mean)) / (n - 1)


def _extrapolated(one: _CellMoments, two: _CellMoments) -> tuple[float, float, float]:
    """Intercept, distance of all rows, and what the latter is too large by, from moments by part."""
    ratios, values = [], []
    for fraction in _FRACTIONS:
        found = []
        for number in range(fraction):
            (_, *first), (_, *second) = (
                one.of_subset(fraction, number),
                two.of_subset(fraction, number),
            )
            found.append(frechet_of_moments(*first, *second))
        ratios.append(float(fraction))  # the bias is in proportion to 1 / n, hence to this
        values.append(np.mean(found))
    slope, intercept = np.polyfit(ratios, values, 1)
    return float(intercept), float(values[0]), float(slope)
