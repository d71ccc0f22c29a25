"""An empty figure, for whoever plots."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def empty_figure(size: tuple[float, float]) -> Figure:
    """A matplotlib figure outside of pyplot, `size` inches wide and high.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as err:
        raise ImportError(
            "Plots need matplotlib. Install it with: pip install 'lapilli[plot]'."
        ) from err
    return Figure(figsize=size, layout="constrained")
