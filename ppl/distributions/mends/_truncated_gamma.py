"""Truncated gamma laws and power laws: normalisers that neither underflow nor cancel."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ..._compat import validate_sample
from ._censored import log_between, log_probabilities
from ._continuous import arrays
from ._special import continuous, log_sinhc

Array = jax.Array


@validate_sample
def gamma_from_below(self: Any, value: Array) -> Array:
    return self.base_dist.log_prob(value) - log_probabilities(self.base_dist, self.low)[1]


@validate_sample
def gamma_to_above(self: Any, value: Array) -> Array:
    return self.base_dist.log_prob(value) - log_probabilities(self.base_dist, self.high)[0]


@validate_sample
def gamma_between(self: Any, value: Array) -> Array:
    return self.base_dist.log_prob(value) - log_between(self.base_dist, self.low, self.high)


@continuous
def log_power(x: Array, alpha: Array, low: Array, high: Array) -> Array:
    """The log-density in proportion to x^alpha between two ends, about their geometric mean."""
    span = jnp.log(high / low)
    log_middle = 0.5 * (jnp.log(low) + jnp.log(high))
    shift = jnp.log(x) - log_middle
    return alpha * shift - log_middle - jnp.log(span) - log_sinhc(0.5 * (1 + alpha) * span)


@validate_sample
def power_between(self: dist.DoublyTruncatedPowerLaw, value: Array) -> Array:
    return log_power(*arrays(value, self.alpha, self.low, self.high))


@continuous
def log_polya_gamma(x: Array) -> Array:
    """Log-density of PG(1, 0), by its series for small values or by the dual one; each leaves out e^-6 of its first term."""
    n = jnp.arange(1.0, 7.0, dtype=x.dtype)
    signs = jnp.where(n % 2 == 1, -1.0, 1.0) * (2 * n + 1)
    is_small = x < 0.16
    small, large = jnp.where(is_small, x, 0.16), jnp.where(is_small, 0.16, x)
    rest = (signs * jnp.exp(-0.5 * (n**2 + n) / small[..., None])).sum(-1)
    near = -0.5 * np.log(2 * np.pi) - 1.5 * jnp.log(small) - 0.125 / small + jnp.log1p(rest)
    rest = (signs * jnp.exp(-2 * np.pi**2 * (n**2 + n) * large[..., None])).sum(-1)
    far = np.log(2 * np.pi) - 0.5 * np.pi**2 * large + jnp.log1p(rest)
    return jnp.where(is_small, near, far)


@validate_sample
def polya_gamma(self: dist.Distribution, value: Array) -> Array:
    return log_polya_gamma(*arrays(value))


OURS = (
    (dist.LeftTruncatedGamma, "log_prob", gamma_from_below),
    (dist.RightTruncatedGamma, "log_prob", gamma_to_above),
    (dist.TwoSidedTruncatedGamma, "log_prob", gamma_between),
)
