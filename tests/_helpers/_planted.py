"""Simulations of a conjugate normal model with posteriors that are right, or wrong in a known way.

    m ~ N(0, C),   x | m ~ N(m, C),   so that m | x ~ N(x / 2, C / 2).

What is wrong is hidden from the ranks of single coordinates: they are uniform over simulations, exactly.
"""

import numpy as np
from scipy.special import ndtr, ndtri

from lapilli.inference.posterior_checks import Simulations

CORRELATION = 0.8


def covariance(dim, correlation):
    return (1 - correlation) * np.eye(dim) + correlation * np.ones((dim, dim))


def posterior_draws(rng, kind, x, num_draws, correlation=CORRELATION):
    """Draws [S, L, d] given data [S, d].

    Correlations: "independent" has none, "flipped" (two coordinates) the other sign. Locally wrong: "prior" ignores the data;
    "pulled" draws too low where x[0] > 0 and too high elsewhere, "pinched" too narrow there and too wide elsewhere: the
    rank u of the truth has density 2u for half of the data and 2(1 - u) for the other half (likewise |2u - 1|), 1 on average.
    Not hidden: "narrow", half as wide.
    """
    num, dim = x.shape
    claimed = {"independent": 0.0, "flipped": -correlation}.get(kind, correlation)
    root = np.linalg.cholesky(covariance(dim, claimed))
    noise = rng.standard_normal((num, num_draws, dim))
    right = x[:, None, :1] > 0
    if kind == "pulled":  # F^-1(v^2) and F^-1(1 - (1 - v)^2) of the first coordinate
        v = ndtr(noise[..., :1])
        noise[..., :1] = ndtri(np.where(right, v**2, 1 - (1 - v) ** 2))
    if kind == "pinched":
        v = 2 * ndtr(noise[..., :1]) - 1
        size = np.where(right, v**2, 1 - (1 - np.abs(v)) ** 2)
        noise[..., :1] = ndtri((1 + np.sign(v) * size) / 2)
    if kind == "narrow":
        noise *= 0.5
    if kind == "prior":
        return noise @ root.T
    return x[:, None] / 2 + noise @ root.T / np.sqrt(2)


def planted(kind="right", seed=0, *, num=400, num_draws=99, dim=2, correlation=CORRELATION):
    rng = np.random.default_rng(seed)
    root = np.linalg.cholesky(covariance(dim, correlation))
    m = rng.standard_normal((num, dim)) @ root.T
    x = m + rng.standard_normal((num, dim)) @ root.T
    draws = posterior_draws(rng, kind, x, num_draws, correlation)
    return Simulations({"m": m}, {"x": x}, {"m": draws})
