"""The log-likelihood of a linear-Gaussian chain by other libraries' Kalman filters, one step after the other.

pip install dynamax cuthbert. Both run in the process of the benchmark.
"""

from __future__ import annotations

import cuthbert
import jax
import jax.numpy as jnp
from cuthbert.gaussian import kalman
from dynamax.linear_gaussian_ssm import lgssm_filter
from dynamax.linear_gaussian_ssm.inference import make_lgssm_params

Array = jax.Array
Params = tuple[Array, Array, Array]


def by_dynamax(params: Params, sensors: Array, data: Array) -> Array:
    """With covariances; the first state has the law of the noise."""
    move, inner, outer = params
    d, k = len(move), len(sensors)
    noise = inner**2 * jnp.eye(d)
    system = make_lgssm_params(jnp.zeros(d), noise, move, noise, sensors, outer**2 * jnp.eye(k))
    return lgssm_filter(system, data).marginal_loglik


def by_cuthbert(params: Params, sensors: Array, data: Array) -> Array:
    """With square roots."""
    move, inner, outer = params
    d, k = len(move), len(sensors)
    # A root of 0 has no derivative: start next to it.
    chain = kalman.build_filter(
        jnp.zeros(d),
        1e-9 * jnp.eye(d),
        lambda y: (move, jnp.zeros(d), inner * jnp.eye(d)),
        lambda y: (sensors, jnp.zeros(k), outer * jnp.eye(k), y),
    )
    states = cuthbert.filtering.filter(chain, data, chain.init_prepare())
    return states.log_normalizing_constant[-1]
