"""The generalised Pareto distribution of the largest weights."""

from __future__ import annotations

import numpy as np


def pareto_smoothed(log_weights: np.ndarray, num_tail: int) -> tuple[np.ndarray, float]:
    """Normalised log-weights, of which the largest `num_tail` are smoothed, and k-hat; inf or NaN where it cannot be fitted.

    The largest weights are replaced by the quantiles (1/2, 3/2, ...) / num_tail of the Pareto distribution that is fitted to
    them, none above the largest weight.

    Reference: Vehtari, Simpson, Gelman, Yao and Gabry 2024, arXiv:1507.02646. ArviZ's `psislw` gives the same numbers.
    """
    lw = log_weights - log_weights.max()
    order = np.argsort(lw)
    tail = order[-num_tail:]
    cutoff = np.exp(lw[order[-num_tail - 1]])
    k_hat, sigma = fitted(np.exp(lw[tail]) - cutoff)
    if np.isfinite(k_hat) and sigma > 0:
        survival = np.log1p(-np.arange(0.5, num_tail) / num_tail)
        excess = -survival if k_hat == 0 else np.expm1(-k_hat * survival) / k_hat
        lw[tail] = np.minimum(np.log(cutoff + sigma * excess), 0.0)
    return lw - np.log(np.exp(lw).sum()), float(k_hat)


def fitted(excess: np.ndarray) -> tuple[float, float]:
    """Shape and scale of ordered excesses [n]; inf or NaN where they cannot be fitted.

    The posterior mean of b = -k / sigma over a grid, and a prior of 10 draws for k.

    Reference: Zhang and Stephens 2009, Technometrics 51; the prior is Vehtari's and others', appendix G.
    """
    size = len(excess)
    quartile = excess[int(size / 4 + 0.5) - 1]
    if not quartile > excess[0]:
        return np.nan, np.nan
    number = 30 + int(size**0.5)
    grid = 1 - np.sqrt(number / (np.arange(1, number + 1) - 0.5))
    grid = grid / (3 * quartile) + 1 / excess[-1]
    shape = np.log1p(-grid[:, None] * excess).mean(1)
    profile = size * (np.log(-grid / shape) - shape - 1)
    weight = np.exp(profile - profile.max())
    weight = np.where(weight >= 10 * np.finfo(float).eps * weight.sum(), weight, 0.0)
    b = (grid * weight).sum() / weight.sum()
    k = np.log1p(-b * excess).mean()
    k_hat = (size * k + 5) / (size + 10)
    return (np.inf, np.nan) if np.isnan(k_hat) else (k_hat, -k / b)
