"""Truncated laws: their normalisers, distribution functions and draws, in any tail and of any width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import ArrayLike, PyTree

from ..._compat import validate_sample
from ._tails import STANDARD, mirrored, ratio

Array = jax.Array
_STRAIGHT = 0.01  # difference of log-probabilities below which a density is taken to be a line
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


class Window:
    """A symmetric law between two ends, either of which may be None.

    Args:
        base: a law of `STANDARD`.
        low, high: the ends.
    """

    def __init__(self, base: Any, low: PyTree, high: PyTree) -> None:
        self.base, self.low, self.high = base, low, high
        self.law = STANDARD[type(base)]

    def _args(self, *values: ArrayLike) -> tuple[Array, ...]:
        shape = [getattr(self.base, name) for name in self.law.names]
        dtype = jnp.result_type(float, *values, *shape)
        arrays = [jnp.asarray(x, dtype) for x in (*values, *shape)]
        return tuple(jnp.broadcast_arrays(*arrays))

    def _standardised(self, x: Array) -> Array:
        return ratio(x, self.base.loc, self.base.scale)

    def _width(self) -> Array:
        return ratio(self.high, self.low, self.base.scale)

    def log_mass(self) -> Array:
        """The logarithm of its probability."""
        if self.low is None and self.high is None:
            return jnp.zeros(())
        if self.low is None:
            return self.law.log_cdf(*self._args(self._standardised(self.high)))
        if self.high is None:
            return self.law.log_cdf(*self._args(-self._standardised(self.low)))
        ends = self._standardised(self.low), self._standardised(self.high)
        return self.law.log_window(*self._args(*ends, self._width()))

    def cdf(self, value: ArrayLike) -> Array:
        """The distribution function of the law given the window."""
        value = jnp.asarray(value)
        low = -jnp.inf if self.low is None else self.low
        high = jnp.inf if self.high is None else self.high
        is_inside = (value > low) & (value < high)
        if self.low is None:
            inside = jnp.where(is_inside, value, high)
            part = Window(self.base, None, inside)
        elif self.high is None:
            inside = jnp.where(is_inside, value, low + self.base.scale)
            part = Window(self.base, low, inside)
        else:
            part = Window(self.base, low, jnp.where(is_inside, value, high))
        below = jnp.exp(part.log_mass() - self.log_mass())
        return jnp.where(is_inside, jnp.clip(below, 0, 1), jnp.where(value >= high, 1.0, 0.0))

    def icdf(self, q: ArrayLike) -> Array:
        """Its inverse, inside of the window whatever is rounded."""
        assert self.law.quantile is not None
        q = jnp.asarray(q)
        log_q, log_rest = jnp.log(q), jnp.log1p(-q)
        if self.low is None:
            z = self.law.quantile(log_q + self.log_mass())
        elif self.high is None:
            z = self._from_below(q, log_q, log_rest)
        else:
            z = self._between(q, log_q, log_rest)
        x = self.base.loc + self.base.scale * z
        is_probability = (q >= 0) & (q <= 1)
        return jnp.where(is_probability, jnp.clip(x, self.low, self.high), jnp.nan)

    def _from_below(self, q: Array, log_q: Array, log_rest: Array) -> Array:
        start = self._standardised(self.low)
        is_up = start > 0
        beyond = log_rest + self.law.log_cdf(-jnp.where(is_up, start, 1))
        before = jnp.logaddexp(log_rest + self.law.log_cdf(jnp.where(is_up, -1, start)), log_q)
        assert self.law.quantile is not None
        z = self.law.quantile(jnp.where(is_up, beyond, before))
        return jnp.where(is_up, -z, z)

    def _between(self, q: Array, log_q: Array, log_rest: Array) -> Array:
        ends = self._standardised(self.low), self._standardised(self.high)
        is_up = ends[0] + ends[1] > 0
        low, high = mirrored(*ends)
        width = self._width()
        share = jnp.where(is_up, 1 - q, q)
        log_share, log_other = jnp.where(is_up, log_rest, log_q), jnp.where(is_up, log_q, log_rest)
        log_low, log_high = self.law.log_cdf(low), self.law.log_cdf(high)
        is_narrow = log_high - log_low < _STRAIGHT
        target = jnp.logaddexp(log_other + log_low, log_share + log_high)
        assert self.law.quantile is not None
        wide = self.law.quantile(jnp.where(is_narrow, -1, target))
        # A density of relative slope r over the window has the quantile q (1 + (1 - q) r / 2) of its width.
        slope = self.law.log_density(high) - self.law.log_density(low)
        narrow = low + width * share * (1 + 0.5 * (1 - share) * slope)
        z = jnp.where(is_narrow, narrow, wide)
        return jnp.where(is_up, -z, z)


def is_known(base: dist.Distribution) -> bool:
    """Whether the windows of a law are; not of a user's subclass, which may have another density."""
    return type(base) in STANDARD


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
