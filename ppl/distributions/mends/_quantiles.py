"""Distribution functions and their inverses: small probabilities to their own digits, and those near 1 from above."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import erfinv, ndtri
from jaxtyping import ArrayLike, PyTree

from ._censored import KNOWN, log_probabilities
from ._continuous import arrays
from ._incomplete import bernoulli_excess
from ._special import continuous, log1mexp, log_sinhc
from ._tails import STANDARD

Array = jax.Array


def _cdf(owner: type[dist.Distribution]) -> Callable[..., Array]:
    """The distribution function by the logarithms of both tails; a user's subclass keeps the one it has."""
    theirs = owner.cdf

    def cdf(self: Any, value: ArrayLike) -> Array:
        if type(self) not in KNOWN:
            return theirs(self, value)
        value = jnp.asarray(value, jnp.result_type(float, value))
        support = self.support
        point = jnp.floor(value) if support.is_discrete else value
        inside = jnp.asarray(support.feasible_like(point), value.dtype)
        is_inside = support(point) & jnp.isfinite(point)
        below, beyond = log_probabilities(self, jnp.where(is_inside, point, inside))
        is_small = below < -np.log(2)
        found = jnp.where(is_small, jnp.exp(below), -jnp.expm1(jnp.where(is_small, -1, beyond)))
        outside = jnp.where(jnp.isnan(value), jnp.nan, (value > inside).astype(value.dtype))
        return jnp.where(is_inside, found, outside)

    return cdf


def _probability(q: ArrayLike, *parameters: PyTree) -> tuple[Array, ...]:
    """Q, NaN where it is no probability, and parameters, of one shape."""
    q, *rest = arrays(q, *parameters)
    return jnp.where((q >= 0) & (q <= 1), q, jnp.nan), *rest


def _symmetric(self: dist.Laplace | dist.Cauchy, q: ArrayLike) -> Array:
    """Of a law of `STANDARD`, by its smaller tail."""
    q, loc, scale = _probability(q, self.loc, self.scale)
    quantile = STANDARD[type(self)].quantile
    assert quantile is not None
    z = quantile(jnp.log(jnp.minimum(q, 1 - q)))
    return loc + scale * jnp.where(q < 0.5, z, -z)


def _of(owner: type[dist.Distribution], ours: Callable[..., Array]) -> Callable[..., Array]:
    theirs = owner.icdf

    def icdf(self: dist.Distribution, q: ArrayLike) -> Array:
        return (ours if type(self) is owner else theirs)(self, q)

    return icdf


@continuous
def half_normal_quantile(q: Array) -> Array:
    """Of the standard HalfNormal law."""
    is_low = q < 0.5
    low, high = jnp.where(is_low, q, 0.5), jnp.where(is_low, 0.5, q)
    return jnp.where(is_low, np.sqrt(2) * erfinv(low), -ndtri(0.5 * (1 - high)))


@continuous
def half_cauchy_quantile(q: Array) -> Array:
    """Of the standard HalfCauchy law."""
    is_low = q < 0.5
    low, high = jnp.where(is_low, q, 0.5), jnp.where(is_low, 0.5, q)
    return jnp.where(is_low, jnp.tan(0.5 * np.pi * low), 1 / jnp.tan(0.5 * np.pi * (1 - high)))


def _half_normal(self: dist.HalfNormal, q: ArrayLike) -> Array:
    q, scale = _probability(q, self.scale)
    return scale * half_normal_quantile(q)


def _half_cauchy(self: dist.HalfCauchy, q: ArrayLike) -> Array:
    q, scale = _probability(q, self.scale)
    return scale * half_cauchy_quantile(q)


def _levy(self: dist.Levy, q: ArrayLike) -> Array:
    """As loc + scale / z^2 for a half normal z."""
    q, loc, scale = _probability(q, self.loc, self.scale)
    # P(z > z_q) = q
    is_low = q < 0.5
    low, high = jnp.where(is_low, q, 0.5), jnp.where(is_low, 0.5, q)
    z = jnp.where(is_low, -ndtri(0.5 * low), np.sqrt(2) * erfinv(1 - high))
    return loc + scale / z**2


def _dagum(self: dist.Dagum, q: ArrayLike) -> Array:
    q, c, a, scale = _probability(q, self.concentration, self.sharpness, self.scale)
    y = -jnp.log(q) / c
    return scale * jnp.exp(-(y + log1mexp(y)) / a)  # (e^y - 1)^(-1 / a)


def _lower_power_cdf(self: dist.LowerTruncatedPowerLaw, value: ArrayLike) -> Array:
    value, alpha, low = arrays(value, self.alpha, self.low)
    inside = jnp.maximum(value, low)
    return -jnp.expm1((1 + alpha) * jnp.log(inside / low))


def _lower_power_icdf(self: dist.LowerTruncatedPowerLaw, q: ArrayLike) -> Array:
    q, alpha, low = _probability(q, self.alpha, self.low)
    return low * jnp.exp(jnp.log1p(-q) / (1 + alpha))


def _power_cdf(self: dist.DoublyTruncatedPowerLaw, value: ArrayLike) -> Array:
    """With u = log(x / low) and L = log(high / low): (e^(s u) - 1) / (e^(s L) - 1), s = 1 + alpha, by sinh(y) / y."""
    value, alpha, low, high = arrays(value, self.alpha, self.low, self.high)
    inside = jnp.clip(value, low, high)
    u, span, s = jnp.log(inside / low), jnp.log(high / low), 1 + alpha
    grown = 0.5 * s * (u - span) + log_sinhc(0.5 * s * u) - log_sinhc(0.5 * s * span)
    return u / span * jnp.exp(grown)


def _power_icdf(self: dist.DoublyTruncatedPowerLaw, q: ArrayLike) -> Array:
    """The inverse: u = L (q + e / b), b = s L and e = log(1 + q (e^b - 1)) - q b."""
    q, alpha, low, high = _probability(q, self.alpha, self.low, self.high)
    span = jnp.log(high / low)
    b = (1 + alpha) * span
    is_steep = b > 80  # where e^b would overflow
    excess = bernoulli_excess(jnp.where(is_steep, 1 - q, q), jnp.where(is_steep, -b, b))
    share = q + jnp.where(b == 0, 0, excess / jnp.where(b == 0, 1, b))
    return jnp.clip(low * jnp.exp(span * share), low, high)


def _cdfs(
    *owners: type[dist.Distribution],
) -> tuple[tuple[type[dist.Distribution], str, Callable[..., Array]], ...]:
    return tuple((owner, "cdf", _cdf(owner)) for owner in owners)


OF_GAMMA = _cdfs(dist.Gamma, dist.InverseGamma, dist.Poisson)
OF_BETA = _cdfs(dist.Beta, dist.GammaPoisson, dist.StudentT)
SMALL = _cdfs(dist.Cauchy, dist.Laplace, dist.HalfNormal, dist.HalfCauchy, dist.Weibull, dist.Levy)
QUANTILES = tuple(
    (owner, "icdf", _of(owner, ours))
    for owner, ours in (
        (dist.Laplace, _symmetric), (dist.Cauchy, _symmetric), (dist.HalfNormal, _half_normal),
        (dist.HalfCauchy, _half_cauchy), (dist.Levy, _levy), (dist.Dagum, _dagum),
    )
)  # fmt: skip
POWERS = (
    (dist.DoublyTruncatedPowerLaw, "cdf", _power_cdf),
    (dist.DoublyTruncatedPowerLaw, "icdf", _power_icdf),
    (dist.LowerTruncatedPowerLaw, "cdf", _lower_power_cdf),
    (dist.LowerTruncatedPowerLaw, "icdf", _lower_power_icdf),
)
