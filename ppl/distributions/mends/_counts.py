"""Log-probabilities of counts and of ordered categories, where gamma functions or sigmoids are subtracted."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import ArrayLike, PyTree
from numpyro.distributions import discrete

from ..._compat import validate_sample
from ._continuous import arrays
from ._special import (
    continuous,
    log1mexp,
    log_beta_negative_binomial,
    log_binomial,
    log_dirichlet_multinomial,
    log_negative_binomial,
    log_poisson,
)

Array = jax.Array
_POISSON = dist.Poisson.log_prob


def poisson(self: dist.Poisson, value: ArrayLike) -> ArrayLike:
    return _POISSON(self, value) if self.is_sparse else _dense_poisson(self, value)


@validate_sample
def _dense_poisson(self: dist.Poisson, value: ArrayLike) -> ArrayLike:
    return log_poisson(*arrays(value, self.rate))


@validate_sample
def gamma_poisson(self: dist.GammaPoisson, value: ArrayLike) -> Array:
    k, c, rate = arrays(value, self.concentration, self.rate)
    x, rest = 1 / (1 + 1 / rate), 1 / (1 + rate)
    return log_negative_binomial(k, c, x, rest, -jnp.log1p(1 / rate), -jnp.log1p(rate))


@validate_sample
def negative_binomial_logits(self: dist.NegativeBinomialLogits, value: ArrayLike) -> Array:
    k, c, logits = arrays(value, self.total_count, self.logits)
    logs = jax.nn.log_sigmoid(-logits), jax.nn.log_sigmoid(logits)
    return log_negative_binomial(k, c, *map(jnp.exp, logs), *logs)


@validate_sample
def binomial_probs(self: Any, value: ArrayLike) -> Array:
    k, n, probs = arrays(value, self.total_count, discrete.clamp_probs(self.probs))
    return log_binomial(k, n - k, probs, 1 - probs, jnp.log(probs), jnp.log1p(-probs))


@validate_sample
def beta_binomial(self: dist.BetaBinomial, value: ArrayLike) -> Array:
    k, n, a, b = arrays(value, self.total_count, self.concentration1, self.concentration0)
    return log_dirichlet_multinomial(jnp.stack([k, n - k], -1), jnp.stack([a, b], -1))


@validate_sample
def beta_negative_binomial(self: PyTree, value: ArrayLike) -> Array:
    return log_beta_negative_binomial(
        *arrays(value, self.n, self.concentration1, self.concentration0)
    )


@validate_sample
def dirichlet_multinomial(self: dist.DirichletMultinomial, value: ArrayLike) -> Array:
    return log_dirichlet_multinomial(*arrays(value, self.concentration))


@continuous
def log_between_sigmoids(low: Array, high: Array, gap: Array) -> Array:
    """By log(sigmoid(high) - sigmoid(low)) = log sigmoid(high) + log sigmoid(-low) + log(1 - e^(low - high))."""
    return jax.nn.log_sigmoid(high) + jax.nn.log_sigmoid(-low) + log1mexp(gap)


@validate_sample
def ordered_logistic(self: dist.OrderedLogistic, value: ArrayLike) -> Array:
    predictor = jnp.asarray(self.predictor)[..., None]
    cutpoints = jnp.asarray(self.cutpoints)
    below = cutpoints - predictor
    first, last = jax.nn.log_sigmoid(below[..., :1]), jax.nn.log_sigmoid(-below[..., -1:])
    gaps = jnp.broadcast_to(jnp.diff(cutpoints), below[..., 1:].shape)
    between = log_between_sigmoids(below[..., :-1], below[..., 1:], gaps)
    logits = jnp.concatenate([first, between, last], -1)
    shape = jnp.broadcast_shapes(jnp.shape(value), self.batch_shape)
    logits = jnp.broadcast_to(logits, (*shape, logits.shape[-1]))
    index = jnp.broadcast_to(value, shape)[..., None]
    return jnp.take_along_axis(logits, index, -1)[..., 0]
