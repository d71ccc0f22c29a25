"""Rates: weights, widths of the population and the scale of a head move at paces of their own."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array, PyTree

WIDTHS = ("scale", "mean_precision", "concentration", "rate")
HEAD = ("head_log_scale",)


def optimizer(
    num_steps: int, *, weights: float = 3e-3, widths: float = 1e-2, head: float = 1e-2
) -> PyTree:
    """Adam along a cosine over `num_steps`, with rates by what a parameter of `programs` is.

    Adam moves a parameter by at most about half of rate times `num_steps` in all. A weight needs a fraction of one; widths and
    the scale of a head are learned on a log scale, where a rate that suits weights may end before they are anywhere near their
    optimum: a covariance that is where it started, and a temperature that the number of steps has chosen.

    Args:
        num_steps: of the fit.
        weights: rate of all parameters but the following: the population's "loc", weights of modules.
        widths: of the population's "scale", and of "mean_precision", "concentration" and "rate" of a finite one.
        head: of "head_log_scale", see `NearestCentroid`. A scale that has settled on the classes of training may be too sure of
            others: the remedy is `fitted_temperature`, not a rate that stops it early.

    Returns:
        An optax transformation, for `inference.fit`; also for programs of one's own, whose parameters are weights unless they
        have these names.

    Example:
        >>> from lapilli.models import niw_meta
        >>> params = {"loc": jax.numpy.zeros(2), "scale": jax.numpy.zeros(1)}
        >>> rates = niw_meta.optimizer(100, weights=1e-3, widths=0.1)
        >>> moves, _ = rates.update(jax.tree.map(jax.numpy.ones_like, params), rates.init(params))
        >>> [round(float(-moves[name][0]), 4) for name in params]
        [0.001, 0.1]
    """
    import optax  # on use: a tenth of a second

    def kind(path: tuple[PyTree, ...], leaf: Array) -> str:
        name = path[0].key
        return "widths" if name in WIDTHS else "head" if name in HEAD else "weights"

    rates = {"weights": weights, "widths": widths, "head": head}
    adam: dict[Any, Any] = {
        k: optax.adam(optax.cosine_decay_schedule(v, num_steps)) for k, v in rates.items()
    }
    return optax.partition(adam, lambda params: jax.tree.map_with_path(kind, params))
