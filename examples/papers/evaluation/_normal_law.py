"""A classifier of two normal classes whose error is known, learned from real rows and from a generator that was fitted to them.

x | y ~ Normal(y mu, sigma^2 I), y = +-1, |mu| = 1; half of m rows of each class; theta is the mean of y x over the rows. The
generator has the class means and, pooled over classes, the variance of each coordinate; it draws gamma m rows, half of each
class.

Reference: Zheng, Wu and Li 2023, arXiv:2305.17476 (the case of two normal classes).
"""

from typing import Any

import numpy as np
from scipy.stats import chi2, norm

SIGMA = 0.6


def risk(theta: np.ndarray, mu: np.ndarray) -> np.ndarray:
    """Exact error of sign(theta'x), [*any], of theta [*any, d]."""
    return norm.cdf(-(theta @ mu) / (SIGMA * np.linalg.norm(theta, axis=-1)))


def excess_nll(theta: np.ndarray, mu: np.ndarray) -> np.ndarray:
    return ((theta - mu) ** 2).sum(-1) / (2 * SIGMA**2)


def mean_excess_nll(d: int, m: int, gamma: float) -> float:
    return d / (2 * m) * (1 + gamma / (1 + gamma) ** 2)


def mean_risk(d: int, variance: float, grid: int = 1_000) -> float:
    """E risk of theta ~ Normal(mu, variance I), by midpoints of quantiles of theta'mu and of the square of the rest."""
    at = (np.arange(grid) + 0.5) / grid
    along = 1 + variance**0.5 * norm.ppf(at)[:, None]
    across = variance * chi2.ppf(at, d - 1) if d > 1 else np.zeros(1)
    return float(norm.cdf(-along / (SIGMA * np.sqrt(along**2 + across))).mean())


def thetas(d: int, m: int, gammas: tuple[float, ...], repeats: int, rng: Any) -> np.ndarray:
    """Thetas with each amount of generated rows, [gammas, repeats, d], all from the same real rows.

    Drawn by their laws given what the rows enter by: half of them of each class, the mean of y x is Normal(mu, sigma^2 / m), the
    pooled variances are sigma^2 chi^2 / (m - 2), and the mean over generated rows is normal around the former.
    """
    mu = np.eye(d)[0]
    real = mu + SIGMA / m**0.5 * rng.normal(size=(repeats, d))
    variances = SIGMA**2 * rng.chisquare(m - 2, (repeats, d)) / (m - 2)
    noise = np.sqrt(variances / m) * rng.normal(size=(repeats, d))
    return np.stack([real + np.sqrt(gamma) / (1 + gamma) * noise for gamma in gammas])
