"""Derivatives of Bernoulli and Binomial log-probabilities at logits of exactly 0, where NumPyro 0.22 has a kink.

Every network whose last layer starts at zero begins there. NumPyro writes log(1 + e^x) as jnp.clip(x, 0) + log1p(exp(-|x|)), of
derivative 0 at 0 instead of 1/2: the gradient of the log-probability comes out as y, not y - 1/2. Importing this module puts a
formula with all its derivatives in its place, in NumPyro itself, since every objective scores through it. Values are the same.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.scipy.special import gammaln
from numpyro.distributions import discrete
from numpyro.distributions.util import validate_sample


def _softplus(x: Any) -> Any:
    """log(1 + e^x), all of it through |x|, whose derivative at 0 JAX takes to be 1: both parts are seen from the same side.

    No comparison, which the search for jumps would have to look into.
    """
    size = jnp.abs(x)
    return 0.5 * (x + size) + jnp.log1p(jnp.exp(-size))


def _bernoulli_loss(x: Any, y: Any) -> Any:
    """Minus the log-probability of y (0 or 1) at logits x, infinite ones too."""
    is_finite = jnp.isfinite(x)
    finite = jnp.where(is_finite, x, 0)
    return jnp.where(is_finite, _softplus(finite) - finite * y, jnp.inf * jnp.logical_xor(y, x > 0))


@validate_sample
def _binomial_log_prob(self: Any, value: Any) -> Any:
    n = jnp.asarray(self.total_count, jnp.result_type(float))
    log_ways = gammaln(n + 1) - gammaln(value + 1) - gammaln(n - value + 1)
    return log_ways + value * self.logits - n * _softplus(self.logits)


discrete.binary_cross_entropy_with_logits = _bernoulli_loss
discrete.BinomialLogits.log_prob = _binomial_log_prob
