"""Draws carried along by their distribution: the derivative of a draw in the distribution's parameters at fixed noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PyTree

from ...ppl._precision import full_precision
from ...ppl.strategies import element

Array = jax.Array
stop = jax.lax.stop_gradient
LOCATION_SCALE = (dist.Normal, dist.Laplace, dist.Logistic, dist.Cauchy, dist.Gumbel)
SCALE = (dist.HalfNormal, dist.HalfCauchy)


@full_precision
def transported(fn: dist.Distribution, value: Array) -> Array | None:
    """T(noise; parameters) with noise = T^-1(value) fixed: equal to `value`, with the derivative in the parameters of `fn`.

    The value may come from anywhere in the support, not only from `fn`. None where no T is known here, and for masked
    distributions, whose masked elements have no density to follow.
    """
    if _has_mask(fn):
        return None
    base: Any = element(fn)[0]
    value = stop(value)
    if isinstance(base, dist.TransformedDistribution):
        return _through_transforms(base, value)
    if type(base) in LOCATION_SCALE:
        return base.loc + base.scale * stop((value - base.loc) / base.scale)
    if type(base) in SCALE:
        return base.scale * stop(value / base.scale)
    if type(base) is dist.Exponential:
        return stop(value * base.rate) / base.rate
    if isinstance(base, dist.Gamma):
        return _gamma(base, value)
    if type(base) is dist.MultivariateNormal:
        noise = jnp.linalg.solve(stop(base.scale_tril), (value - stop(base.loc))[..., None])
        return base.loc + (base.scale_tril @ noise)[..., 0]
    return None


def _through_transforms(fn: Callable[..., PyTree], value: Array) -> Array | None:
    inner = value
    for transform in reversed(fn.transforms):
        inner = stop(transform.inv(inner))
    moved = transported(fn.base_dist, inner)
    if moved is None:
        return None
    for transform in fn.transforms:
        moved = transform(moved)
    return moved


def _gamma(fn: Callable[..., PyTree], value: PyTree) -> Array:
    """Along the distribution function: dx/da = -(dF/da) / p(x) at rate 1."""
    standard = stop(value * fn.rate)
    concentration = jnp.broadcast_to(fn.concentration, jnp.shape(standard))
    slope = jax.lax.random_gamma_grad(stop(concentration), standard)  # pyright: ignore[reportCallIssue]
    return (standard + slope * (concentration - stop(concentration))) / fn.rate


def _has_mask(fn: dist.Distribution) -> bool:
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        if isinstance(fn, dist.MaskedDistribution):
            return True
        fn = fn.base_dist
    return False
