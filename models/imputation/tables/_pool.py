"""Rubin's rules: what analyses of several completed tables say together."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy.special import stdtr, stdtrit

from ....ppl._compat import ArrayLike


@dataclasses.dataclass(frozen=True)
class Pooled:
    """Pooled estimates; arrays have the shape of one estimate.

    Attributes:
        estimate: mean over the completed tables.
        within: mean of the variances.
        between: variance of the estimates.
        variance: total, within + (1 + 1 / M) between.
        df: degrees of freedom of Student's t.
        fmi: fraction of missing information, (r + 2 / (nu + 3)) / (r + 1) with r = (1 + 1 / M) between / within and nu = df for
            infinitely many rows (R's mice puts `df` there, which leaves 2 / (df + 3) where nothing is missing).
        num_tables: M.
    """

    estimate: Float[np.ndarray, "*shape"]
    within: Float[np.ndarray, "*shape"]
    between: Float[np.ndarray, "*shape"]
    variance: Float[np.ndarray, "*shape"]
    df: Float[np.ndarray, "*shape"]
    fmi: Float[np.ndarray, "*shape"]
    num_tables: int

    @property
    def standard_error(self) -> Float[np.ndarray, "*shape"]:
        """The root of the total variance."""
        return np.sqrt(self.variance)

    def interval(
        self, level: float = 0.95
    ) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
        """Ends of the interval of Student's t that covers `level`.

        Args:
            level: in (0, 1).

        Raises:
            ValueError: it is not.
        """
        if not 0 < level < 1:
            raise ValueError(
                f"Pooled.interval: level must lie in (0, 1), got {level}. Give some, e.g. 0.95."
            )
        reach = -_quantile(self.df, (1 - level) / 2) * self.standard_error
        return self.estimate - reach, self.estimate + reach

    def p_value(self, null: ArrayLike = 0.0) -> Float[np.ndarray, "*shape"]:
        """Two-sided p-values of estimate = null.

        Args:
            null: value under the hypothesis.
        """
        t = np.abs(self.estimate - np.asarray(null)) / self.standard_error
        return 2 * np.asarray(stdtr(np.minimum(self.df, 1e12), -t))


def pool(
    estimates: ArrayLike,
    variances: ArrayLike,
    *,
    df: float | None = None,
) -> Pooled:
    """Estimates from M completed tables, pooled by Rubin's rules.

    With W the mean of the variances and B the variance of the estimates, the total variance is T = W + (1 + 1 / M) B. With
    lambda = (1 + 1 / M) B / T, nu = (M - 1) / lambda^2 and, for `df` degrees of freedom of the complete table,
    nu_obs = (df + 1) / (df + 3) df (1 - lambda), the degrees of freedom are nu nu_obs / (nu + nu_obs).

    Args:
        estimates: of each completed table, e.g. coefficients of a regression, [tables, ...].
        variances: their squared standard errors, of the same shape.
        df: degrees of freedom of the analysis of a complete table, rows less coefficients; None: infinitely many.

    Returns:
        `Pooled`.

    Raises:
        ValueError: fewer than two tables, shapes that differ, numbers that are not finite, variances or `df` that are not
            positive.

    Validity: for imputations from a model that holds what the analysis uses, with draws of its parameters (`TableImputer`), and
    estimates that are nearly normal: pool log odds and not odds. Intervals are somewhat wide where the imputation model knows
    more than the analysis.

    Example:
        >>> from lapilli.models.imputation import pool
        >>> found = pool([1.9, 2.1, 2.0], [0.04, 0.05, 0.03], df=100)
        >>> round(float(found.estimate), 2), round(float(found.standard_error), 3)
        (2.0, 0.231)

    Reference: Rubin 1987, Multiple imputation for nonresponse in surveys, section 3.1; Barnard and Rubin 1999, Biometrika 86,
    948.
    """
    q, u = np.asarray(estimates, float), np.asarray(variances, float)
    if q.shape != u.shape or not q.ndim or len(q) < 2:
        raise ValueError(
            f"pool: estimates have shape {q.shape} and variances {u.shape}. Give both as [tables, ...], of two tables or more."
        )
    if not (np.isfinite(q).all() and np.isfinite(u).all() and (u > 0).all()):
        raise ValueError(
            "pool: estimates must be finite, and variances finite and positive. Look for analyses that failed: "
            f"tables {np.unique(np.nonzero(~(np.isfinite(q) & np.isfinite(u) & (u > 0)))[0]).tolist()}."
        )
    if df is not None and not df > 0:
        raise ValueError(f"pool: df must be positive or None, got {df}.")
    size = len(q)
    within, between = u.mean(0), q.var(0, ddof=1)
    extra = (1 + 1 / size) * between
    total, share, ratio = within + extra, extra / (within + extra), extra / within
    with np.errstate(divide="ignore"):
        nu = (size - 1) / share**2
    fmi = (ratio + 2 / (nu + 3)) / (ratio + 1)
    if df is not None and np.isfinite(df):
        observed = (df + 1) / (df + 3) * df * (1 - share)
        nu = 1 / (1 / nu + 1 / observed)
    return Pooled(q.mean(0), within, between, total, nu, fmi, size)


def _quantile(df: np.ndarray, prob: float) -> np.ndarray:
    return np.asarray(stdtrit(np.minimum(df, 1e12), prob))
