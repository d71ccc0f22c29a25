"""Sums of independent variables whose law is known: a law, and normal noise added to its draws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist


class NoConvolution(Exception):
    """The sum has no law in closed form; says of which law that holds."""


def convolved(law: dist.Distribution, noise: dist.Distribution) -> dist.Distribution:
    """The law of x + e for independent draws x of `law` and e of `noise`, a Normal or a MultivariateNormal.

    Normals, multivariate ones, mixtures of both over components, and points (Delta) have one in closed form.

    Raises:
        NoConvolution: another law, or noise of another kind or event.
    """
    if isinstance(law, dist.ExpandedDistribution):
        return convolved(law.base_dist, noise).expand(law.batch_shape)
    if isinstance(noise, dist.ExpandedDistribution):
        return convolved(law, noise.base_dist)
    if isinstance(law, dist.MaskedDistribution):
        return convolved(law.base_dist, noise).mask(law._mask)
    if isinstance(law, dist.Independent):
        if not isinstance(noise, dist.Independent) and noise.event_shape == ():
            return law_of_parts(law, noise)
        if isinstance(noise, dist.Independent) and noise.event_dim == law.event_dim:
            return law_of_parts(law, noise.base_dist)
        raise NoConvolution(f"noise of event shape {noise.event_shape} on {law.event_shape}")
    if isinstance(law, dist.MixtureSameFamily):
        parts = convolved(law.component_distribution, noise)
        return dist.MixtureSameFamily(law.mixing_distribution, parts)
    if isinstance(law, dist.MixtureGeneral):
        parts = [convolved(part, noise) for part in law.component_distributions]
        return dist.MixtureGeneral(law.mixing_distribution, parts)
    if isinstance(law, dist.MultivariateNormal):
        mean, covariance = _moments(noise, law.event_shape[0])
        return dist.MultivariateNormal(law.loc + mean, law.covariance_matrix + covariance)
    if not isinstance(noise, dist.Normal):
        raise NoConvolution(f"a {type(noise).__name__} added to a {type(law).__name__}")
    if isinstance(law, dist.Normal):
        scale = jnp.hypot(law.scale, noise.scale)
        return dist.Normal(law.loc + noise.loc, scale)
    if isinstance(law, dist.Delta) and law.event_dim == 0:
        return dist.Normal(law.v + noise.loc, noise.scale)
    raise NoConvolution(f"a {type(law).__name__}")


def law_of_parts(law: dist.Independent, noise: dist.Distribution) -> dist.Distribution:
    """`convolved` of each coordinate, joined again."""
    return convolved(law.base_dist, noise).to_event(law.reinterpreted_batch_ndims)


def _moments(noise: dist.Distribution, size: int) -> tuple[jax.Array, jax.Array]:
    """Mean and covariance of noise on vectors."""
    if isinstance(noise, dist.MultivariateNormal):
        return noise.loc, noise.covariance_matrix
    part = noise.base_dist if isinstance(noise, dist.Independent) else noise
    if isinstance(part, dist.ExpandedDistribution):
        part = part.base_dist
    if not isinstance(part, dist.Normal) or noise.event_dim > 1:
        raise NoConvolution(f"a {type(noise).__name__} added to a MultivariateNormal")
    scale = jnp.broadcast_to(part.scale, (size,))
    return part.loc, jnp.diag(scale**2)
