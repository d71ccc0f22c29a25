"""Pictures of a run, of weights and of a calibration. Matplotlib and scipy.stats load on use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...ppl._calls import checked_call
from .._figure import empty_figure
from ._calibration import Calibration
from ._weights import ImportanceDiagnostics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLOCKS = 200
_BINS = 20


@checked_call
def plot_fit(fit: Any) -> Figure:
    """Plot the objective's values over the steps, and their noise.

    The line is the mean over blocks of a 200th of the run, the dark band two standard errors of it, the light one a standard
    deviation of a single estimate, both from differences of neighbouring steps, so that a trend does not count as noise. Several
    seeds are lines of their own. Where iterates were averaged (`average="stationary"`) a line marks the first of them.

    Args:
        fit: of `fit`, with at least two steps.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: fewer than two steps.
    """
    values = np.asarray(fit.history["value"], float)
    if len(values) < 2:
        raise ValueError(
            f"plot_fit: the fit has {len(values)} steps, and noise is told by two or more. Fit for more steps."
        )
    figure = empty_figure((7.0, 4.0))
    axis = figure.subplots()
    values = values.reshape(len(values), -1)
    shown = []
    for number, column in enumerate(values.T):
        steps, means, sd, error = _blocks(column)
        color = f"C{number % 10}"
        axis.plot(steps, means, color=color, lw=1.2, label=f"seed {number}")
        axis.fill_between(
            steps, means - 2 * error, means + 2 * error, color=color, alpha=0.45, lw=0
        )
        axis.fill_between(steps, means - sd, means + sd, color=color, alpha=0.12, lw=0)
        shown.append((means - 2 * sd, means + 2 * sd))
    _limit(axis, shown)
    averaging = getattr(fit, "averaging", None)
    if averaging is not None and averaging.is_averaged:
        for start in np.ravel(averaging.start):
            axis.axvline(start, color="0.4", ls="--", lw=1)
        axis.text(
            np.min(averaging.start),
            1.01,
            " averaged from here",
            transform=axis.get_xaxis_transform(),
        )
    if values.shape[1] > 1:
        axis.legend(frameon=False, loc="lower right")
    axis.set_xlabel("step")
    axis.set_ylabel(f"{fit.objective.name} (nats)")
    return figure


@checked_call
def plot_weights(diagnostics: ImportanceDiagnostics, log_weights: object) -> Figure:
    """Plot the largest importance weights, before and after Pareto smoothing, and say what k-hat allows.

    Args:
        diagnostics: of `importance_diagnostics`.
        log_weights: what it was made of, nats [S].

    Returns:
        A matplotlib figure: shares of the 3 sqrt(S) largest weights by rank. Weights of a good proposal fall slowly; where few
        carry most, the smoothed ones bend away from the raw ones.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: the numbers of weights differ.
    """
    raw, smooth = np.asarray(log_weights, float), np.asarray(diagnostics.smoothed_log_weights)
    if raw.shape != smooth.shape:
        raise ValueError(
            f"plot_weights: {raw.shape} log-weights and diagnostics of {smooth.shape}. Pass those that the diagnostics are of."
        )
    number = min(len(raw), max(20, int(3 * len(raw) ** 0.5)))
    share = lambda x: np.sort(np.exp(x - np.logaddexp.reduce(x)))[::-1][:number]
    figure = empty_figure((6.0, 4.0))
    axis = figure.subplots()
    ranks = np.arange(1, number + 1)
    axis.plot(ranks, share(raw), "o", ms=4, mfc="none", color="C0", label="raw")
    axis.plot(ranks, share(smooth), "-", color="C3", label="smoothed")
    axis.axhline(1 / len(raw), color="0.6", lw=1, ls=":", label="all alike")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("rank of the weight")
    axis.set_ylabel("share of all weights")
    verdict = "at most" if diagnostics.k_hat <= diagnostics.k_threshold else "above"
    worth = f"{diagnostics.ess:.0f} effective draws of {len(raw)}"
    title = f"k-hat {diagnostics.k_hat:.2f}, {verdict} {diagnostics.k_threshold:.2f}; {worth}"
    axis.set_title(title, fontsize="medium")
    axis.legend(frameon=False)
    return figure


@checked_call
def plot_calibration(calibration: Calibration) -> Figure:
    """Plot ranks and coverage of simulation-based calibration, a row for each site, its coordinates together.

    Left: how often the truth has which rank among the draws; right: how often central intervals hold it, less their level, over
    the level. Grey: where 99% of such numbers lie, bin by bin or level by level, if the posterior is calibrated. The band is made
    for one coordinate; the mean over several is seldom as far out.

    Args:
        calibration: of `calibrate`.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: matplotlib is missing.
    """
    sites = list(calibration.ranks)
    figure = empty_figure((8.0, 0.6 + 2.2 * len(sites)))
    axes = figure.subplots(len(sites), 2, squeeze=False)
    for (left, right), name in zip(axes, sites, strict=True):
        ranks = calibration.ranks[name].reshape(len(calibration.ranks[name]), -1)
        _plot_ranks(left, ranks, calibration.num_draws)
        _plot_coverage(right, ranks, calibration.num_draws)
        left.set_ylabel(name)
    axes[0, 0].set_title("ranks of the truth", fontsize="medium")
    axes[0, 1].set_title("coverage less level", fontsize="medium")
    axes[-1, 0].set_xlabel("rank")
    axes[-1, 1].set_xlabel("level of the central interval")
    return figure


def _plot_ranks(axis: Any, ranks: np.ndarray, num_draws: int) -> None:
    num_bins = min(_BINS, num_draws + 1)
    edges = np.round(np.linspace(0, num_draws + 1, num_bins + 1)) - 0.5
    counts = np.mean([np.histogram(column, edges)[0] for column in ranks.T], 0)
    probs = np.diff(edges) / (num_draws + 1)
    low, high = _interval(len(ranks), probs)
    axis.stairs(counts, edges, fill=True, color="C0", alpha=0.7)
    axis.stairs(high, edges, baseline=low, fill=True, color="0.5", alpha=0.35)
    axis.set_ylim(0, 1.15 * max(counts.max(), high.max()))


def _plot_coverage(axis: Any, ranks: np.ndarray, num_draws: int) -> None:
    # A truth of rank r lies in the central interval that leaves out k draws at each end if k <= r <= L - k.
    out = np.arange(0, (num_draws + 1) // 2)
    level = 1 - 2 * out / (num_draws + 1)
    inside = (ranks >= out[:, None, None]) & (ranks <= num_draws - out[:, None, None])
    low, high = _interval(len(ranks), level) / len(ranks)
    axis.fill_between(level, low - level, high - level, color="0.5", alpha=0.35, lw=0)
    axis.plot(level, inside.mean((1, 2)) - level, color="C0")
    axis.axhline(0.0, color="0.3", lw=0.8)
    largest = 1.1 * max(np.abs(inside.mean((1, 2)) - level).max(), (high - level).max())
    axis.set_ylim(-largest, largest)


def _interval(number: int, probs: np.ndarray) -> np.ndarray:
    """Low and high ends of where 99% of binomial counts lie."""
    from scipy.stats import binom  # on use: a fifth of a second

    return np.array(binom.interval(0.99, number, probs))


def _blocks(values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Last step, mean, standard deviation of one value and of the mean, of each block; without values that are not finite."""
    size = max(2, len(values) // _BLOCKS)
    ends = np.arange(size, len(values) + 1, size)
    rows = []
    for end in ends:
        block = values[end - size : end]
        block = block[np.isfinite(block)]
        if len(block) < 2:
            rows.append((np.nan, np.nan, np.nan))
            continue
        sd = np.sqrt(np.mean(np.diff(block) ** 2) / 2)
        rows.append((block.mean(), sd, sd / len(block) ** 0.5))
    return (ends, *np.array(rows).T)


def _limit(axis: Any, shown: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Show the run after its first fifth whole, and as much again, so that a far start does not flatten the rest."""
    late = [(low[len(low) // 5 :], high[len(high) // 5 :]) for low, high in shown]
    low, high = min(np.nanmin(a) for a, _ in late), max(np.nanmax(b) for _, b in late)
    first, last = min(np.nanmin(a) for a, _ in shown), max(np.nanmax(b) for _, b in shown)
    if np.isfinite([first, low, high, last]).all() and high > low:
        height = high - low
        axis.set_ylim(max(first, low - height), min(last, high + height))
