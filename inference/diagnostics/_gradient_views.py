"""A gradient report as ArviZ groups and as a picture. Xarray and matplotlib load on use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import PyTree

from ...ppl._calls import checked_call
from .._figure import empty_figure
from ._gradient_report import GradientReport

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure


@checked_call
def gradient_tree(report: GradientReport) -> xarray.DataTree:
    """The report as a DataTree, to keep beside a posterior: `tree.update(inference.diagnostics.gradient_tree(report))`.

    Groups: gradient_parameter with size, mean, sd, snr on the axis "parameter"; gradient_site with strategy, variance, error,
    share on the axis "site"; the attributes of both hold value, value_sd, variance, num_draws, seconds, num_operations.

    Args:
        report: of `gradient_report`.
    """
    import xarray

    names = ("value", "value_sd", "variance", "num_draws", "seconds", "num_operations")
    attributes = {name: getattr(report, name) for name in names}

    def dataset(rows: dict[str, PyTree], axis: str) -> xarray.Dataset:
        fields = next(iter(rows.values()))._fields if rows else ()
        columns = {f: (axis, np.array([getattr(r, f) for r in rows.values()])) for f in fields}
        return xarray.Dataset(columns, {axis: list(rows)}, attributes)

    return xarray.DataTree.from_dict(
        {
            "gradient_parameter": dataset(report.parameters, "parameter"),
            "gradient_site": dataset(report.sites, "site"),
        }
    )


@checked_call
def plot_gradients(report: GradientReport) -> Figure:
    """Plot what a gradient estimate is worth: mean and spread by parameter, and which site's noise the spread is owed to.

    Left: Euclidean norm of the mean gradient and root of the summed variances of each parameter, on a logarithmic axis; where the
    bar of the spread is longer, one estimate is mostly noise. Right: variance that each site's noise is answerable for, with two
    standard errors.

    Args:
        report: of `gradient_report`.

    Returns:
        The figure, two panels.

    Raises:
        ImportError: matplotlib is missing.
    """
    rows = max(len(report.parameters), len(report.sites))
    figure = empty_figure((9.0, 1.4 + 0.45 * rows))
    left, right = figure.subplots(1, 2)
    _plot_parameters(left, report)
    _plot_sites(right, report)
    return figure


def _plot_parameters(axis: Any, report: GradientReport) -> None:
    places = np.arange(len(report.parameters))
    for name, shift, color in (("mean", -0.2, "C0"), ("sd", 0.2, "C3")):
        lengths = [getattr(p, name) for p in report.parameters.values()]
        axis.barh(places + shift, lengths, 0.4, color=color, label=name)
    axis.set_xscale("log")
    axis.xaxis.set_minor_formatter("")  # minor labels overlap where the range is short
    axis.set_xlabel("gradient (nats per unit)")
    axis.legend(frameon=False)
    _label(axis, list(report.parameters))


def _plot_sites(axis: Any, report: GradientReport) -> None:
    sites = report.sites.values()
    errors = [2 * s.error for s in sites]
    axis.barh(np.arange(len(sites)), [s.variance for s in sites], 0.6, xerr=errors, color="C0")
    axis.axvline(report.variance, color="0.4", ls="--", label="whole variance")
    axis.set_xlabel("variance by site")
    axis.legend(frameon=False)
    _label(axis, [f"{name} ({s.strategy})" for name, s in report.sites.items()])


def _label(axis: Any, names: list[str]) -> None:
    axis.set_yticks(np.arange(len(names)), names)
    axis.invert_yaxis()
