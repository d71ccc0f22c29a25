"""Truncated laws: their normalisers, distribution functions and draws, in any tail and of any width."""

from __future__ import annotations

from collections.abc import Callable

import numpyro.distributions as dist
from jaxtyping import Array, PyTree

from ..._compat import validate_sample
from ._tails import STANDARD, Window, is_known

LEFT, RIGHT, BOTH = (
    dist.LeftTruncatedDistribution,
    dist.RightTruncatedDistribution,
    dist.TwoSidedTruncatedDistribution,
)
type Truncated = (
    dist.LeftTruncatedDistribution
    | dist.RightTruncatedDistribution
    | dist.TwoSidedTruncatedDistribution
)


def window_of(law: Truncated) -> Window:
    """What a truncated law of NumPyro's leaves of its base."""
    return Window(law.base_dist, getattr(law, "low", None), getattr(law, "high", None))


def _log_prob(owner: type) -> Callable[..., PyTree]:
    theirs = owner.log_prob

    @validate_sample
    def log_prob(self: Truncated, value: Array) -> Array:
        return self.base_dist.log_prob(value) - window_of(self).log_mass()

    def either(self: Truncated, value: Array) -> Array:
        return (log_prob if is_known(self.base_dist) else theirs)(self, value)

    return either


def _function(owner: type, name: str) -> Callable[..., PyTree]:
    theirs = getattr(owner, name)

    def either(self: PyTree, argument: PyTree) -> PyTree:
        is_ours = is_known(self.base_dist)
        if name == "icdf":
            is_ours = is_ours and STANDARD[type(self.base_dist)].quantile is not None
        return getattr(window_of(self), name)(argument) if is_ours else theirs(self, argument)

    return either


OURS = tuple(
    (owner, name, _log_prob(owner) if name == "log_prob" else _function(owner, name))
    for owner in (BOTH, LEFT, RIGHT)
    for name in ("log_prob", "cdf", "icdf")
)
