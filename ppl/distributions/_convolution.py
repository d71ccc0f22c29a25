"""Sums of independent variables whose law is known: a law, and normal noise added to its draws."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PyTree

from .._compat import mask_of
from ._polyline import Polyline


def convolved(law: dist.Distribution, noise: dist.Distribution) -> dist.Distribution | None:
    """The law of x + e for independent draws x of `law` and e of `noise`; None where it has no closed form that is known here.

    Known are normals, multivariate ones, mixtures of either over components, and points (Delta), with Normal noise on each
    coordinate or MultivariateNormal noise; and a curve (Polyline) with one Normal noise for all coordinates.
    """
    if isinstance(noise, dist.ExpandedDistribution):
        return convolved(law, noise.base_dist)
    if isinstance(law, dist.ExpandedDistribution):
        return _wrapped(convolved(law.base_dist, noise), lambda x: x.expand(law.batch_shape))
    if isinstance(law, dist.MaskedDistribution):
        mask: PyTree = mask_of(law)
        return _wrapped(convolved(law.base_dist, noise), lambda x: x.mask(mask))
    if isinstance(law, dist.Independent):
        if isinstance(noise, dist.Independent) and noise.event_dim == law.event_dim:
            noise = noise.base_dist
        elif noise.event_shape != ():
            return None
        return _wrapped(
            convolved(law.base_dist, noise), lambda x: x.to_event(law.reinterpreted_batch_ndims)
        )
    if isinstance(law, dist.MixtureSameFamily):
        parts = convolved(law.component_distribution, noise)
        return _wrapped(parts, lambda x: dist.MixtureSameFamily(law.mixing_distribution, x))
    if isinstance(law, dist.MixtureGeneral):
        each = [convolved(part, noise) for part in law.component_distributions]
        return None if None in each else dist.MixtureGeneral(law.mixing_distribution, each)
    if isinstance(law, dist.MultivariateNormal):
        return _normal_vector(law, noise)
    if not isinstance(noise, dist.Normal):
        return None
    one, other = _untyped(law), _untyped(noise)
    if isinstance(law, Polyline) and noise.event_shape + noise.batch_shape == ():
        return law.moved(other.loc, other.scale)
    if isinstance(law, dist.Normal):
        return dist.Normal(one.loc + other.loc, jnp.hypot(one.scale, other.scale))
    if isinstance(law, dist.Delta) and law.event_dim == 0:
        return dist.Normal(one.v + other.loc, other.scale)
    return None


def _untyped(law: dist.Distribution) -> PyTree:
    """The law, for attributes that NumPyro declares as tuples or properties and that are arrays."""
    return law


def _wrapped(
    law: dist.Distribution | None, wrap: Callable[[dist.Distribution], dist.Distribution]
) -> dist.Distribution | None:
    return None if law is None else wrap(law)


def _normal_vector(
    law: dist.MultivariateNormal, noise: dist.Distribution
) -> dist.Distribution | None:
    """A normal vector plus a normal one, or plus independent normal coordinates."""
    one = _untyped(law)
    if isinstance(noise, dist.MultivariateNormal):
        other = _untyped(noise)
        return dist.MultivariateNormal(
            one.loc + other.loc, one.covariance_matrix + other.covariance_matrix
        )
    part = noise.base_dist if isinstance(noise, dist.Independent) else noise
    if isinstance(part, dist.ExpandedDistribution):
        part = part.base_dist
    if not isinstance(part, dist.Normal) or noise.event_dim > 1:
        return None
    other = _untyped(part)
    variances = jnp.broadcast_to(other.scale**2, law.event_shape)
    return dist.MultivariateNormal(one.loc + other.loc, one.covariance_matrix + jnp.diag(variances))
