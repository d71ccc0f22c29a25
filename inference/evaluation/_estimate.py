"""A number that compares samples: with its error, its floor, and what it is where nothing differs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from jaxtyping import PyTree

from ...ppl._calls import checked_call
from .._figure import empty_figure

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A metric of two samples; made by the functions of `inference.evaluation`. Printing it is one line.

    Attributes:
        value: the estimate.
        standard_error: of `value`; which sources of noise it has is said by the function.
        floor: the same metric of real against other real rows, at the same sizes; None without `held_out`.
        exact: the expectation of `value` where both samples have one law, if it is known.
        name: of the metric.
        sizes: rows of the real sample and of the generated one.
        details: further numbers by name, which the function describes.
    """

    value: float
    standard_error: float
    floor: Estimate | None = None
    exact: float | None = None
    name: str = ""
    sizes: tuple[int, int] | None = None
    details: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def z(self) -> float:
        """How many standard errors `value` lies above what equal laws give: `exact`, else `floor`; NaN without either."""
        if self.exact is not None:
            base, noise = self.exact, self.standard_error
        elif self.floor is not None:
            base = self.floor.value
            noise = (self.standard_error**2 + self.floor.standard_error**2) ** 0.5
        else:
            return float("nan")
        gap = self.value - base
        return gap / noise if noise > 0 else float("nan") if gap == 0 else gap * float("inf")

    def __repr__(self) -> str:
        parts = []
        if self.floor is not None:
            parts.append(f"floor {_number(self.floor.value, self.floor.standard_error)}")
        if self.exact is not None:
            parts.append(f"equal laws {self.exact:.4g}")
        if self.floor is None and self.exact is None and self.sizes is not None:
            parts.append("no floor: pass held_out=")
        if self.sizes is not None:
            parts.append(f"{self.sizes[0]:,} against {self.sizes[1]:,} rows")
        name = f"{self.name} " if self.name else ""
        notes = f" ({', '.join(parts)})" if parts else ""
        return f"{name}{_number(self.value, self.standard_error)}{notes}"

    def to_xarray(self) -> xarray.Dataset:
        """The numbers as variables without dimensions; NaN for what there is not."""
        import xarray

        return xarray.Dataset(_numbers(self) | dict(self.details), attrs={"metric": self.name})

    def plot(self) -> Figure:
        """See `plot_estimates`."""
        return plot_estimates({self.name or "estimate": self})


@checked_call
def to_xarray(estimates: Mapping[str, Estimate]) -> xarray.Dataset:
    """Estimates by name as one data set, which writes netCDF.

    Args:
        estimates: by name, e.g. of models.

    Returns:
        `value`, `standard_error`, `floor`, `floor_error` and `exact` along the dimension "name"; NaN for what there is not.
    """
    import xarray

    rows = {name: _numbers(estimate) for name, estimate in estimates.items()}
    fields = ("value", "standard_error", "floor", "floor_error", "exact")
    data = {f: ("name", [float(row[f]) for row in rows.values()]) for f in fields}
    return xarray.Dataset(data, coords={"name": list(rows)})


@checked_call
def plot_estimates(estimates: Mapping[str, Estimate]) -> Figure:
    """Plot estimates of one metric by name: two standard errors each, and floors as grey crosses.

    Args:
        estimates: by name, e.g. of models.

    Returns:
        A matplotlib figure; a dotted line where equal laws would lie, if that is known and the same for all.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure = empty_figure((6.0, 1.0 + 0.4 * len(estimates)))
    axis, named = figure.subplots(), {}
    for row, estimate in enumerate(estimates.values()):
        axis.errorbar(
            estimate.value, row, xerr=2 * estimate.standard_error, fmt="o", color="C0", ms=4
        )
        if estimate.floor is not None:
            floor = estimate.floor
            bars = axis.errorbar(
                floor.value, row - 0.18, xerr=2 * floor.standard_error, fmt="x", color="0.5", ms=4
            )
            named["floor"] = bars
    exact = {e.exact for e in estimates.values() if e.exact is not None}
    if len(exact) == 1:
        named["equal laws"] = axis.axvline(exact.pop(), color="0.4", ls=":", lw=1)
    if named:
        axis.legend(
            named.values(),
            named,
            frameon=False,
            fontsize=8,
            ncols=2,
            loc="lower right",
            bbox_to_anchor=(1, 1),
        )
    axis.set_yticks(range(len(estimates)), labels=list(estimates))
    axis.set_ylim(len(estimates) - 0.5, -0.5)
    names = {e.name for e in estimates.values()}
    axis.set_xlabel(names.pop().replace("_", " ") if len(names) == 1 else "value")
    return figure


def _numbers(estimate: Estimate) -> dict[str, PyTree]:
    floor = estimate.floor
    nan = float("nan")
    return {
        "value": estimate.value,
        "standard_error": estimate.standard_error,
        "floor": nan if floor is None else floor.value,
        "floor_error": nan if floor is None else floor.standard_error,
        "exact": nan if estimate.exact is None else estimate.exact,
    }


def _number(value: float, error: float) -> str:
    return f"{value:.4g} +- {error:.2g}"
