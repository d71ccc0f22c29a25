"""Log-probabilities of discrete laws whose derivatives some versions of NumPyro get wrong.

At logits of exactly 0 (every network whose last layer starts at zero begins there): NumPyro 0.22 writes log(1 + e^x) as
jnp.clip(x, 0) + log1p(exp(-|x|)), whose derivative comes out as 0 at 0 instead of 1/2, and so the gradient of the log-probability
as y, not y - 1/2. At probabilities of exactly 0 and 1 of an event: they are cut off just inside, and the derivative of the cut is
0 instead of 1, so that what is impossible and did not happen has no gradient. At weights of exactly 0 in a mixture: the
derivative in such a weight is 0, not the ratio of its component's density to the mixture's, so that nothing can revive it.

Values are the same, those of probabilities to rounding.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import gammaln
from jaxtyping import Array, ArrayLike, PyTree

from ..._compat import Mixture, remixed, validate_sample

_BY_LOGITS = Mixture.log_prob


def softplus(x: Array) -> ArrayLike:
    """log(1 + e^x), all of it through |x|, whatever JAX takes its derivative at 0 to be: both parts are seen from the same side.

    No comparison, which the search for jumps would have to look into.
    """
    size = jnp.abs(x)
    return 0.5 * (x + size) + jnp.log1p(jnp.exp(-size))


def bernoulli_loss(x: PyTree, y: ArrayLike) -> Array:
    """Minus the log-probability of y (0 or 1) at logits x, infinite ones too."""
    is_finite = jnp.isfinite(x)
    finite = jnp.where(is_finite, x, 0)
    return jnp.where(is_finite, softplus(finite) - finite * y, jnp.inf * jnp.logical_xor(y, x > 0))


@validate_sample
def binomial_log_prob(self: Any, value: Array) -> Array:
    n = jnp.asarray(self.total_count, jnp.result_type(float))
    log_ways = gammaln(n + 1) - gammaln(value + 1) - gammaln(n - value + 1)
    return log_ways + value * self.logits - n * softplus(self.logits)


def clamped(probs: ArrayLike) -> Array:
    """Probabilities brought inside of (0, 1), those of [0, 1] by a line of slope 1 - eps."""
    finfo = jnp.finfo(jnp.result_type(probs, float))
    inside = 2 * finfo.tiny + (1 - finfo.eps) * jnp.asarray(probs)
    return jnp.clip(
        inside, finfo.tiny, 1 - finfo.epsneg
    )  # for those outside of [0, 1], by rounding


@jax.custom_jvp
def _mixed(log_probs: Array, weights: Array) -> Array:
    """log(sum(weights * exp(log_probs))) over the last axis, differentiable in weights of exactly 0."""
    log_weights = dist.CategoricalProbs(weights, validate_args=False).logits
    return jax.nn.logsumexp(log_probs + log_weights, axis=-1)


@_mixed.defjvp
def _mixed_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    log_probs, weights = primals
    total = _mixed(log_probs, weights)
    # A component of weight 0 may be denser than the mixture by any factor, another by 1 / weight at most.
    limit = np.log(jnp.finfo(log_probs.dtype).max) - 1
    log_ratios = jnp.minimum(log_probs - total[..., None], limit)
    return total, (jnp.exp(log_ratios) * (tangents[1] + weights * tangents[0])).sum(-1)


@validate_sample
def mixture_log_prob(
    self: dist.MixtureSameFamily, value: Array, intermediates: list[Array] | None = None
) -> Array:
    mixing = self.mixing_distribution
    if not isinstance(mixing, dist.CategoricalProbs):
        return _BY_LOGITS(self, value, intermediates)
    even = remixed(self, dist.CategoricalLogits(jnp.zeros_like(mixing.probs)))
    log_probs = even.component_log_probs(value) + np.log(self.mixture_size)
    # NumPyro's way to keep derivatives of what is impossible out.
    log_probs = jnp.where(jnp.isneginf(log_probs), -jnp.inf, log_probs)
    weights = jnp.asarray(mixing.probs)
    return _mixed(log_probs, weights / weights.sum(-1, keepdims=True))
