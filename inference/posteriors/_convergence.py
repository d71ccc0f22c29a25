"""What chains show of their convergence: R-hat, effective sample sizes, divergences, energy, tails.

R-hat is the rank-normalised split one, the larger of bulk and folded; effective sample sizes are those of the bulk and of the
5 % and 95 % quantiles, from autocorrelations cut at Geyer's initial monotone sequence. All are of single numbers, axes [chains,
draws, numbers], and of float64.

Reference: Vehtari, Gelman, Simpson, Carpenter and Buerkner 2021, arXiv:1903.08008; Betancourt 2016, arXiv:1604.00695 (energy);
Zhang and Stephens 2009 (tails).
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

_BLOCK = 200  # numbers at a time


def r_hat(x: np.ndarray) -> np.ndarray:
    """R-hat of each number [d]; NaN where chains do not move at all, infinite where they stand at different places."""
    return np.concatenate([_r_hat(x[:, :, i : i + _BLOCK]) for i in range(0, x.shape[2], _BLOCK)])


def ess(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Effective sample size of the bulk and of the tails of each number, [d] and [d]."""
    pairs = [_ess(x[:, :, i : i + _BLOCK]) for i in range(0, x.shape[2], _BLOCK)]
    bulk, tail = zip(*pairs, strict=True)
    return np.concatenate(bulk), np.concatenate(tail)


def e_bfmi(energy: np.ndarray) -> float:
    """The least share, over chains [chains, draws], of the energy's spread that one momentum draw covers."""
    energy = energy.astype(float)
    steps = (np.diff(energy, axis=1) ** 2).mean(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.min(steps / energy.var(1)))


def _r_hat(x: np.ndarray) -> np.ndarray:
    x = _split(x)
    folded = np.abs(x - np.median(x, axis=(0, 1)))
    return np.maximum(_ratio(_normal_scores(x)), _ratio(_normal_scores(folded)))


def _ess(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = _split(x)
    low, high = np.quantile(x, [0.05, 0.95], axis=(0, 1))
    tails = [mean_sizes((x <= low).astype(float)), mean_sizes((x <= high).astype(float))]
    return mean_sizes(_normal_scores(x)), np.minimum(*tails)


def _split(x: np.ndarray) -> np.ndarray:
    half = x.shape[1] // 2
    return np.concatenate([x[:, :half], x[:, -half:]]).astype(float)


def _normal_scores(x: np.ndarray) -> np.ndarray:
    """Normal quantiles of the ranks over all chains; ties have their mean rank."""
    flat = x.reshape(-1, x.shape[2])
    size = len(flat)
    order = np.argsort(flat, axis=0, kind="stable")
    in_order = np.take_along_axis(flat, order, 0)
    is_new = np.ones(flat.shape, bool)
    is_new[1:] = in_order[1:] != in_order[:-1]
    places = np.arange(size)[:, None]
    first = np.maximum.accumulate(np.where(is_new, places, 0), axis=0)
    ends = np.roll(is_new, -1, axis=0)
    ends[-1] = True
    last = np.minimum.accumulate(np.where(ends, places, size)[::-1], axis=0)[::-1]
    ranks = np.empty(flat.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, 0)
    return ndtri((ranks - 0.375) / (size + 0.25)).reshape(x.shape)


def _ratio(x: np.ndarray) -> np.ndarray:
    num = x.shape[1]
    within, between = x.var(1, ddof=1).mean(0), num * x.mean(1).var(0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(((num - 1) / num * within + between / num) / within)


def mean_sizes(x: np.ndarray) -> np.ndarray:
    """Effective sample size of the mean of each number, [d]."""
    chains, num, _ = x.shape
    centred = x - x.mean(1, keepdims=True)
    length = 2 ** int(np.ceil(np.log2(2 * num)))
    power = np.abs(np.fft.rfft(centred, n=length, axis=1)) ** 2
    autocovariance = np.fft.irfft(power, n=length, axis=1)[:, :num] / num
    within = autocovariance[:, 0].mean(0) * num / (num - 1)
    total = within * (num - 1) / num
    if chains > 1:
        total = total + x.mean(1).var(0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = 1 - (within - autocovariance.mean(0)) / total
    rho[0] = 1.0
    pairs = rho[: num // 2 * 2].reshape(-1, 2, rho.shape[1]).sum(1)
    is_positive = np.cumprod(pairs > 0, axis=0).astype(bool)
    monotone = np.minimum.accumulate(np.where(is_positive, pairs, 0.0), axis=0)
    # Of the pair at which the sequence ends its first member still counts, once, which antithetic chains need.
    end = np.minimum(is_positive.sum(0), len(pairs) - 1)
    last = np.maximum(np.take_along_axis(rho, 2 * end[None], 0)[0], 0.0)
    time = np.maximum(-1 + 2 * monotone.sum(0) + last, 1 / np.log10(chains * num))
    size = chains * num / time
    return np.where(total > 0, size, np.nan)
