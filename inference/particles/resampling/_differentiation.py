"""What a run is told about its derivative, and how its results carry it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ....ppl.estimation import watched_again
from ..population import unused
from ._differentiable import ResamplingGradient
from ._resample import Resampled
from ._scheme import Scheme

Array = jax.Array
stop = jax.lax.stop_gradient


@dataclasses.dataclass(frozen=True)
class Differentiation:
    """What a run is told about its derivative.

    Attributes:
        strategy: how it passes through resampling.
        scheme: the resampling scheme.
        sites: pattern -> strategy of sites.
    """

    strategy: ResamplingGradient
    scheme: Scheme
    sites: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def offspring(self) -> Callable[[Array, PyTree, Array], Resampled]:
        """`(key, particles, log_weights) -> Resampled`."""
        return functools.partial(self.strategy.offspring, self.scheme)


def box(log_prob: Array) -> Array:
    """Zero, with the derivative of `log_prob`."""
    return log_prob - stop(log_prob)


def scored(increments: Array, scores: Array, baseline: Array | float = 0.0) -> Array:
    """Increments with the score factor: (inc_t - baseline) d S_t is added to their derivative."""
    signal = stop(jnp.where(jnp.isfinite(increments), increments, 0.0) - baseline)
    return increments + signal * box(scores)


def once_only(tree: PyTree) -> PyTree:
    """Results whose derivative is an estimator: a second derivative is refused."""

    def refuse() -> None:
        raise TypeError(
            "The gradient of a particle filter's result was differentiated again, but resampling has no unbiased second "
            "derivative here. Differentiate once only, or take finite differences of gradients."
        )

    guard = lambda x: watched_again(x, refuse) if jnp.issubdtype(x.dtype, jnp.floating) else x
    return jax.tree.map(guard, tree)


def evidence_only(strategy: ResamplingGradient, tree: PyTree) -> Any:
    """Results that carry no score factor: their derivative is refused."""
    message = (
        f"smc: with gradient='{strategy.name}' only log_evidence and increments carry the score factor of what was drawn; the "
        "derivative of particles, weights or averages would miss it. Use gradient='stop_gradient' for these."
    )
    guard = lambda x: unused(message, x) if jnp.issubdtype(x.dtype, jnp.floating) else x
    return jax.tree.map(guard, tree)
