"""Kernel distance: unbiased squared maximum mean discrepancy with the variance of its U-statistics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._compat import ArrayLike
from ._estimate import Estimate
from ._inputs import Features, rows, with_floor

_AT_ONCE = 2**21  # entries of a kernel matrix: some passes over them are made in the cache


@checked_call
def kernel_distance(
    real: Float[ArrayLike, "n d"],
    generated: Float[ArrayLike, "m d"],
    *,
    degree: int = 3,
    kernel: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    features: Features | None = None,
    held_out: Float[ArrayLike, "m d"] | None = None,
) -> Estimate:
    """Squared maximum mean discrepancy, unbiased.

        MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),  k(x, y) = (x'y / d + 1)^degree

    Args:
        real: n rows.
        generated: m rows.
        degree: of the polynomial kernel. It sees the moments up to this order, and nothing else.
        kernel: `([a, d], [b, d]) -> [a, b]` in place of it, e.g. of a Gaussian, which sees every difference.
        features: a function of each sample.
        held_out: real rows for the floor, as many as `generated`.

    Returns:
        The estimate, which is 0 in mean under equality and then negative half of the time, with its standard error. Sums run
        over blocks of rows, [n, m] is never formed.

    Raises:
        ValueError: what `rows` are not, or a kernel that does not return [a, b].

    Validity: unbiased at all sizes, for independent rows. The standard error estimates the whole variance of the U-statistics,
    terms of the second order included. Under equality the law is no Normal (a weighted sum of chi-squares): for a test take
    `permutation_test`.

    Reference: Gretton et al. 2012; Binkowski et al. 2018, arXiv:1801.01401 (the kernel inception distance); the variance
    by Hoeffding's decomposition, as Sutherland et al. 2017, arXiv:1611.04488, for two sizes.

    Example:
        >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
        >>> round(kernel_distance(x, x + 2.0, degree=1).value, 6)  # 11/6 + 71/6 - 2 * 21/4: products of pairs of rows
        3.166667
    """
    label = "kernel_distance"
    check_counts(label, degree=degree)
    x, y, *other = rows(
        label, features, {"real": real, "generated": generated, "held_out": held_out},
        least=4, why="the variance of a U-statistic",
    )  # fmt: skip
    used = kernel or (lambda a, b: _polynomial(a, b, degree))

    def compute(x: np.ndarray, y: np.ndarray) -> Estimate:
        xx, yy, xy = _sums(label, used, x), _sums(label, used, y), _sums(label, used, x, y)
        n, m = len(x), len(y)
        f, g = xx.by_row / (n - 1), yy.by_row / (m - 1)
        across, back = xy.by_row / m, xy.by_column / n
        value = f.mean() + g.mean() - 2 * across.mean()
        error = _variance(xx, yy, xy, f - across, g - back) ** 0.5
        return Estimate(float(value), float(error), exact=0.0, name=label, sizes=(n, m))

    return with_floor(label, compute, x, y, other[0] if other else None)


def _polynomial(a: np.ndarray, b: np.ndarray, degree: int) -> np.ndarray:
    """(a'b / d + 1)^degree by products, many times as fast as a power of double precision."""
    k = (a / a.shape[1]) @ b.T
    k += 1
    if degree == 1:
        return k
    power = k * k
    for _ in range(degree - 2):
        power *= k
    return power


@dataclasses.dataclass(frozen=True)
class _Sums:
    """Sums of a kernel matrix by row and by column, and the variance of its entries; of one sample without the diagonal."""

    by_row: np.ndarray
    by_column: np.ndarray
    variance: float  # of all entries


def _sums(
    label: str,
    kernel: Callable[[np.ndarray, np.ndarray], np.ndarray],
    x: np.ndarray,
    other: np.ndarray | None = None,
) -> _Sums:
    """Of two samples, or of one: which is told by the call, since a sample may be compared with itself."""
    is_one = other is None
    y = x if other is None else other
    step = max(1, _AT_ONCE // len(y))
    by_row, by_column, squares, shift = np.zeros(len(x)), np.zeros(len(y)), 0.0, None
    for start in range(0, len(x), step):
        part = x[start : start + step]
        k = np.array(kernel(part, y), float)  # a copy: it is changed below
        if k.shape != (len(part), len(y)) or not np.isfinite(k).all():
            raise ValueError(
                f"{label}: kernel returned shape {k.shape} for {len(part)} and {len(y)} rows, or numbers that are not finite. "
                "Return one finite number for each pair, [a, b]."
            )
        inside = np.arange(len(part)), np.arange(start, start + len(part))
        shift = float(k.mean()) if shift is None else shift  # against cancellation in the variance
        if is_one:
            k[inside] = 0.0
        by_row[start : start + step] = k.sum(1)
        by_column += k.sum(0)
        k -= shift
        if is_one:
            k[inside] = 0.0
        squares += float(np.vdot(k, k))
    number = len(x) * (len(y) - is_one)
    mean = by_row.sum() / number - (shift or 0.0)
    return _Sums(by_row, by_column, squares / number - mean**2)


def _variance(xx: _Sums, yy: _Sums, xy: _Sums, a: np.ndarray, b: np.ndarray) -> float:
    """Variance of the sum of U-statistics, by Hoeffding's decomposition, from the rows' means.

    With v the variances of the parts that no row explains alone, it is 4 Var a / n + 4 Var b / m + 2 v_xx / (n (n - 1))
    + 2 v_yy / (m (m - 1)) + 4 v_xy / (n m), and the sample variance of a is too large by v_xx / (n - 1) + v_xy / m.
    """
    n, m = len(a), len(b)
    v_x = _left(xx.variance, 2 * (xx.by_row / (n - 1)).var(ddof=1), 2 / (n - 1))
    v_y = _left(yy.variance, 2 * (yy.by_row / (m - 1)).var(ddof=1), 2 / (m - 1))
    rows = (xy.by_row / m).var(ddof=1) + (xy.by_column / n).var(ddof=1)
    v_xy = _left(xy.variance, rows, 1 / n + 1 / m)
    second = 2 * v_x / (n * (n - 1)) + 2 * v_y / (m * (m - 1)) + 4 * v_xy / (n * m)
    first = 4 * a.var(ddof=1) / n + 4 * b.var(ddof=1) / m - 2 * second
    return max(first, 0.0) + second


def _left(total: float, by_rows: float, share: float) -> float:
    """Variance of entries that rows and columns do not explain; the variances of their means have a share of it."""
    return max((total - by_rows) / (1 - share), 0.0)
