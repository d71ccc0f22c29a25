"""A figure of the latents over time. Matplotlib loads on use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...inference._figure import empty_figure
from ._analysis import Latents

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_latents(latents: Latents, row: int = 0) -> Figure:
    """Scales of posterior and prior and the divergence between them, for one sequence; a column for each layer.

    Args:
        latents: of `latents`.
        row: number of the sequence.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: matplotlib is not installed (the extra "plot").
    """
    num_layers = len(latents.kl)
    figure = empty_figure((5.0 * num_layers, 4.5))
    axes = figure.subplots(2, num_layers, sharex=True, squeeze=False)
    for l in range(num_layers):
        scales = {"posterior": latents.posterior_scale, "prior": latents.prior_scale}
        steps = np.arange(1, latents.kl[l].shape[1] + 1)
        for i, (name, scale) in enumerate(scales.items()):
            for z, line in enumerate(np.asarray(scale[l][row]).T):
                axes[0, l].plot(
                    steps, line, color=f"C{i}", alpha=0.8, label=name if z == 0 else None
                )
        axes[1, l].plot(steps, np.asarray(latents.kl[l][row]).sum(-1), color="C2")
        axes[0, l].set(title=f"layer {l + 1}", yscale="log")
        axes[1, l].set_xlabel("step")
    axes[0, 0].set_ylabel("standard deviation")
    axes[1, 0].set_ylabel("KL(q || p), nats")
    axes[0, 0].legend(frameon=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure
