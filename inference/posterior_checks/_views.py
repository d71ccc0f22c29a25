"""A report as ArviZ groups and as a picture. Xarray and matplotlib load on use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import PyTree

from ...ppl._calls import checked_call
from .._figure import empty_figure
from ._local import LocalCoverage
from ._ranks import RankCheck
from ._report import PosteriorReport

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure


@checked_call
def report_tree(report: PosteriorReport) -> xarray.DataTree:
    """The report as a DataTree, to keep beside a posterior: `tree.update(report_tree(report))`.

    Groups: posterior_checks, the p-values on the axis "check", with what was found in the attribute "findings"; coverage_NAME for
    each check of ranks, its curve and band over "level"; local_coverage, local_c2st and misspecification with their numbers; and
    z_scores on the axes "simulation" and "coordinate".

    Args:
        report: of `check_posterior`.
    """
    import xarray

    names = list(report.p_values)
    attributes = {
        "level": report.level,
        "num_simulations": report.simulations.num_simulations,
        "num_draws": report.simulations.num_draws,
        "findings": "\n".join(report.sentences),
    }
    groups = {
        "posterior_checks": xarray.Dataset(
            {"p_value": ("check", list(report.p_values.values())), "corrected": ("check", [report.corrected[n] for n in names])},
            {"check": names}, attributes,
        ),
        "z_scores": xarray.Dataset(
            {n: (("simulation", "coordinate"), getattr(report.z, n)) for n in ("z_scores", "shrinkage")},
            {"coordinate": list(report.z.labels)},
        ),
    }  # fmt: skip
    for name, check in report.checks.items():
        if isinstance(check, RankCheck):
            low, high = check.band()
            groups[f"coverage_{name}"] = xarray.Dataset(
                {
                    "coverage": (("level", "column"), check.curves),
                    "low": ("level", low),
                    "high": ("level", high),
                    "p_value": ("column", check.p_values),
                },
                {"level": check.levels, "column": list(check.labels)},
                {"name": check.name},
            )
    local: PyTree = report.checks["local"]
    groups["local_coverage"] = xarray.Dataset(
        {
            "p_value": (("coordinate", "error"), local.p_values),
            "shift_slope": (("coordinate", "feature"), local.shift_slopes),
            "width_slope": (("coordinate", "feature"), local.width_slopes),
        },
        {
            "coordinate": list(local.labels),
            "feature": list(local.features),
            "error": ["shift", "width"],
        },
    )
    if "here" in report.checks:
        here: Any = report.checks["here"]
        model: Any = report.checks["model"]
        groups["local_c2st"] = xarray.Dataset(
            {"shift": ("coordinate", here.shifts), "scale": ("coordinate", here.scales), "null": ("null_draw", here.null)},
            {"coordinate": list(here.labels)}, {"statistic": here.statistic, "p_value": here.p_value},
        )  # fmt: skip
        groups["misspecification"] = xarray.Dataset(
            {"tail": ("summary", model.tails)}, {"summary": list(model.labels)},
            {"mmd": model.mmd, "distance": model.distance, "p_value": model.p_value},
        )  # fmt: skip
    return xarray.DataTree.from_dict(groups)


@checked_call
def plot_report(report: PosteriorReport) -> Figure:
    """Plot a report: bias, width, joint coverage, and where in the space of data the posterior is wrong.

    Upper left: share of simulations whose truth lies below each quantile, less its level, a line for each coordinate; above the
    band the draws lie too high. Upper right: likewise of central intervals; below the band they are too narrow. Lower left: of
    regions of all coordinates, and along the worst directions. Lower right: normal scores of the ranks over the feature of the
    data with which they rise most, means in tenths; flat if the posterior is right everywhere. Bands hold 95% of whole curves.

    Args:
        report: of `check_posterior`.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure = empty_figure((9.0, 6.4))
    axes = figure.subplots(2, 2)
    checks: dict[str, Any] = report.checks
    _plot_curves(axes[0, 0], [checks["below"]], "bias: truth below a quantile, less level")
    _plot_curves(axes[0, 1], [checks["central"]], "width: coverage of intervals, less level")
    together = [checks[n] for n in ("joint", "tarp", "tarp_data", "directions") if n in checks]
    _plot_curves(axes[1, 0], together, "all coordinates: coverage, less level")
    _plot_local(axes[1, 1], checks["local"])
    axes[1, 0].set_xlabel("level")
    return figure


def _plot_curves(axis: Any, checks: list[RankCheck], title: str) -> None:
    low, high = checks[0].band()
    levels = checks[0].levels
    axis.fill_between(levels, low - levels, high - levels, color="0.5", alpha=0.3, lw=0)
    axis.axhline(0.0, color="0.3", lw=0.8)
    number = 0
    for check in checks:
        for label, curve in zip(check.labels[:8], check.curves.T, strict=False):
            name = check.name if label == "all coordinates" else label
            axis.plot(
                check.levels, curve - check.levels, color=f"C{number % 10}", lw=1.4, label=name
            )
            number += 1
    axis.set_title(title, fontsize="medium")
    axis.legend(frameon=False, fontsize="small")


def _plot_local(axis: Any, local: LocalCoverage) -> None:
    row, column = np.unravel_index(np.abs(local.shift_slopes).argmax(), local.shift_slopes.shape)
    x, scores = local.feature_matrix[:, column], local.scores[:, row]
    parts = np.array_split(np.argsort(x), max(4, min(10, len(x) // 20)))
    middle = [x[part].mean() for part in parts]
    mean = np.array([scores[part].mean() for part in parts])
    error = np.array([2 / len(part) ** 0.5 for part in parts])
    axis.plot(x, scores, ".", ms=2.5, color="0.7")
    axis.axhline(0.0, color="0.3", lw=0.8)
    axis.errorbar(middle, mean, error, fmt="o-", color="C3", ms=4, lw=1.2)
    axis.set_title(f"local: truth against draws of {local.labels[row]}", fontsize="medium")
    axis.set_xlabel(f"{local.features[column]}, standardised")
    axis.set_ylabel("posterior deviations")
