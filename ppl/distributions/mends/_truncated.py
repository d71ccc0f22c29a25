"""Truncated laws: their normalisers, distribution functions and draws, in any tail and of any width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpyro.distributions as dist

from ..._compat import validate_sample
from ._tails import STANDARD, Window, is_known

LEFT, RIGHT, BOTH = (
    dist.LeftTruncatedDistribution,
    dist.RightTruncatedDistribution,
    dist.TwoSidedTruncatedDistribution,
)


def window_of(law: Any) -> Window:
    """What a truncated law of NumPyro's leaves of its base."""
    return Window(law.base_dist, getattr(law, "low", None), getattr(law, "high", None))


def _log_prob(owner: Any) -> Callable[..., Any]:
    theirs = owner.log_prob

    @validate_sample
    def log_prob(self: Any, value: Any) -> Any:
        return self.base_dist.log_prob(value) - window_of(self).log_mass()

    def either(self: Any, value: Any) -> Any:
        return (log_prob if is_known(self.base_dist) else theirs)(self, value)

    return either


def _function(owner: Any, name: str) -> Callable[..., Any]:
    theirs = getattr(owner, name)

    def either(self: Any, argument: Any) -> Any:
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
