"""How heavy the tails of draws are: the shape of a generalised Pareto law of the largest and of the smallest ones.

Above a shape k a number has no moments of order 1 / k and more: no variance from k = 1/2 on, no mean from 1 on. What averages of
draws say of moments that do not exist is chance.

Reference: Zhang and Stephens 2009; Vehtari et al. 2024, arXiv:1507.02646 (sizes of tails, the prior on the shape).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...diagnostics._pareto import fitted
from .._convergence import mean_sizes

NO_VARIANCE = 0.5  # the least shape that has none
_HEAVY = 0.15  # above the shape of an exponential tail, as it is estimated
_UNKNOWN = 0.1  # relative standard error of a standard deviation
_FAR = 5.0  # quartile distances from the median, below which no draw of a heavy tail stays


def heavy_tails(choices: Mapping[str, np.ndarray], num_chains: int) -> dict[str, float]:
    """Numbers of sites whose tails leave their standard deviation open, by name -> shape.

    There is none, as far as the shape tells, or its standard error, by the effective size of the squared distances from the mean,
    is above a tenth of it. `choices` are chain by chain; draws of one "chain" are independent.
    """
    found = {}
    for name, x in choices.items():
        if x.dtype.kind != "f" or not x[0].size:
            continue
        flat = x.reshape(len(x), -1).astype(float)
        low, middle, high = np.quantile(flat, [0.25, 0.5, 0.75], axis=0)
        with np.errstate(invalid="ignore"):
            places = np.flatnonzero((np.abs(flat - middle) > _FAR * (high - low)).any(0))
        if not len(places):
            continue
        flat = flat[:, places]
        squares = (flat - flat.mean(0)) ** 2
        in_chains = squares.reshape(num_chains, -1, len(places))
        sizes = mean_sizes(in_chains) if num_chains > 1 else float(len(flat))
        with np.errstate(divide="ignore", invalid="ignore"):
            error = 0.5 * squares.std(0) / squares.mean(0) / np.sqrt(sizes)
        shapes = tail_shapes(flat, len(flat))
        for i in np.flatnonzero((shapes >= NO_VARIANCE) | (shapes > _HEAVY) & (error > _UNKNOWN)):
            place = [int(k) for k in np.unravel_index(places[i], x.shape[1:])]
            found[f"{name}{place if place else ''}"] = float(shapes[i])
    return found


def tail_shapes(x: np.ndarray, sizes: np.ndarray | float) -> np.ndarray:
    """The larger shape of both tails of each number of draws [S, d], [d]; -inf where there are too few or equal ones.

    Args:
        x: draws.
        sizes: effective sample sizes, by which tails are shorter; of each number, or of all.
    """
    size, d = x.shape
    share = np.broadcast_to(np.clip(np.asarray(sizes, float) / size, 1e-3, 1.0), (d,))
    lengths = np.minimum(np.ceil(3 * np.sqrt(size / share)), size // 5).astype(int)
    in_order = np.sort(x.astype(float), 0)
    found = np.full(d, -np.inf)
    for i in range(d):
        if lengths[i] >= 20:
            column, cut = in_order[:, i], lengths[i]
            upper = column[-cut:] - column[-cut - 1]
            lower = column[cut] - column[:cut][::-1]
            found[i] = max(_shape(upper), _shape(lower))
    return found


def _shape(x: np.ndarray) -> float:
    """The shape of excesses in ascending order."""
    if not (np.isfinite(x).all() and x[0] >= 0 and x[-1] > x[len(x) // 4] > 0):
        return -np.inf
    return float(np.nan_to_num(fitted(x)[0], nan=-np.inf))
