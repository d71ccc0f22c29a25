"""A picture of one run of particles. Matplotlib loads on use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import PyTree

from ....ppl._calls import checked_call
from ....ppl._checks import check_counts
from ....ppl._data import as_one_array
from ..._figure import empty_figure
from ..engine import SMCResult
from ..resampling import lineages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BANDS = (0.95, 0.5)


@checked_call
def plot_smc(
    result: SMCResult,
    sites: Sequence[str] = (),
    *,
    times: object = None,
    max_lines: int = 200,
) -> Figure:
    """Plot how a particle run went: fan charts of sites, effective sample size, evidence, genealogy.

    Panels from above: for each of `sites` the weighted median and the central 50% and 95% intervals of the particles' paths;
    ESS / K, with marks where particles were resampled; the cumulated log evidence; the ancestral lines of the final
    particles, with the number of distinct ancestors. Where few are left the fan chart above rests on few numbers.

    Args:
        result: of `smc`; panels whose history was not kept are left out.
        sites: names of scalar sites in a `ppl.scan`, values [particles, time].
        times: coordinates of the time axis of `sites`, [time]; 0, 1, ... by default.
        max_lines: number of ancestral lines drawn.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: a site that is not there, is not [particles, time], or does not fit `times`; a batch of runs.
        ImportError: matplotlib is missing.
    """
    check_counts("plot_smc", max_lines=max_lines)
    times = None if times is None else as_one_array("plot_smc: times", times)
    _check(result, sites, times)
    panels = [*sites, "ess", "evidence"] + ["genealogy"] * (result.ancestors is not None)
    figure = empty_figure((8.0, 1.0 + 1.9 * len(panels)))
    axes = dict(zip(panels, figure.subplots(len(panels), squeeze=False)[:, 0], strict=True))
    weights = np.exp(np.asarray(result.log_weights, float))
    for name in sites:
        plot_fan(axes[name], np.asarray(result.particles[name]), weights, times)
        axes[name].set_ylabel(name)
    _plot_ess(axes["ess"], np.asarray(result.ess) / weights.size, np.asarray(result.is_resampled))
    evidence = np.cumsum(np.asarray(result.increments, float))
    axes["evidence"].plot(evidence, color="C0")
    axes["evidence"].set_ylabel("log evidence\n(nats)")
    if result.ancestors is not None:
        _plot_genealogy(axes["genealogy"], np.asarray(lineages(result.ancestors)), max_lines)
    list(axes.values())[-1].set_xlabel("weighing")
    return figure


@checked_call
def plot_fan(axis: Any, values: np.ndarray, weights: np.ndarray, times: Any = None) -> None:
    """Draw the weighted median and the central 50% and 95% intervals of `values` [particles, time] into a matplotlib axis.

    Args:
        axis: where to draw.
        values: numbers of the particles, [particles, time].
        weights: of the particles, [particles].
        times: coordinates, [time]; 0, 1, ... by default.
    """
    times = np.arange(values.shape[1]) if times is None else np.asarray(times)
    levels = [0.5] + [0.5 + sign * band / 2 for band in BANDS for sign in (-1, 1)]
    median, *edges = weighted_quantiles(values, weights, levels)
    for i, band in enumerate(BANDS):
        low, high = edges[2 * i : 2 * i + 2]
        axis.fill_between(
            times, low, high, color="C0", alpha=0.2 + 0.2 * i, lw=0, label=f"{band:.0%}"
        )
    axis.plot(times, median, color="C0", label="median")


def weighted_quantiles(
    values: np.ndarray, weights: np.ndarray, levels: Sequence[float]
) -> np.ndarray:
    """Smallest values whose cumulated weight reaches each level: [levels, time] from [particles, time]."""
    order = np.argsort(values, axis=0)
    cumulated = np.cumsum(weights[order], axis=0)
    reached = cumulated[None] >= np.asarray(levels)[:, None, None] * cumulated[-1]
    index = reached.argmax(1)
    return np.take_along_axis(np.take_along_axis(values, order, 0), index, 0)


def _plot_ess(axis: Any, share: np.ndarray, is_resampled: np.ndarray) -> None:
    axis.plot(share, color="C0")
    at = np.flatnonzero(is_resampled)
    axis.plot(at, np.zeros(at.size), "|", color="C3", label="resampled before this weighing")
    axis.set_ylim(-0.05, 1.05)
    axis.set_ylabel("ESS / K")
    if at.size:
        axis.legend(loc="lower right", bbox_to_anchor=(1.0, 0.97), frameon=False, fontsize="small")


def _plot_genealogy(axis: Any, lines: np.ndarray, max_lines: int) -> None:
    """`lines` [weighings, particles]: index, at each weighing, of the ancestor of each final particle."""
    num_particles = lines.shape[1]
    chosen = np.unique(np.linspace(0, num_particles - 1, min(max_lines, num_particles)).astype(int))
    axis.plot(lines[:, chosen], color="0.5", lw=0.4)
    axis.set_ylabel("particle")
    count = axis.twinx()
    count.plot([np.unique(row).size for row in lines], color="C3")
    count.set_yscale("log")
    count.set_ylim(0.8, 1.2 * num_particles)
    count.set_ylabel("ancestors", color="C3")


def _check(result: Any, sites: Sequence[str], times: PyTree) -> None:
    shape = np.shape(result.log_weights)
    if len(shape) != 1:
        raise ValueError(
            f"plot_smc: takes one run, but log_weights has shape {shape}. Pick one, e.g. jax.tree.map(lambda x: x[0], result)."
        )
    if not isinstance(result.particles, dict) and sites:
        raise ValueError(
            "plot_smc: the particles of a FeynmanKac have no sites. Leave `sites` out."
        )
    for name in sites:
        if name not in result.particles:
            raise ValueError(
                f"plot_smc: site '{name}' is not among the particles {sorted(result.particles)}. Name one of these; sites in "
                "ppl.scan are kept with smc(..., history='full') only."
            )
        have = np.shape(result.particles[name])
        if len(have) != 2:
            raise ValueError(
                f"plot_smc: site '{name}' has shape {have}, and a fan chart needs [particles, time]. Name scalar sites of a scan."
            )
        if times is not None and np.shape(times) != have[1:]:
            raise ValueError(
                f"plot_smc: times has shape {np.shape(times)}, but site '{name}' has {have[1]} steps. Give one number a step."
            )
