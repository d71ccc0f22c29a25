"""Exact fields between Gaussian mixtures, against which what is learned can be told."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float

from ...ppl._compat import is_concrete
from ...ppl._types import Key
from ._matching import Field
from ._path import Interpolant


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture of isotropic normals of equal weights and one variance.

    Args:
        means: [components, size].
        variance: of each coordinate; 0 for points.

    Raises:
        ValueError: means of another number of axes, or a negative variance.
    """

    means: Float[ArrayLike, "components size"]
    variance: float

    def __post_init__(self) -> None:
        if np.ndim(self.means) != 2:
            raise ValueError(
                f"Mixture: means have shape {np.shape(self.means)}, and would be spread over components and coordinates alike. "
                "Give [components, size], means[:, None] for points of one coordinate."
            )
        if is_concrete(self.variance) and not self.variance >= 0:
            raise ValueError(
                f"Mixture: variance is {self.variance:g}, which the noise of a path would hide. Give a variance (no "
                "logarithm) of at least 0."
            )

    @property
    def law(self) -> dist.MixtureSameFamily:
        """The law of one point."""
        means = jnp.asarray(self.means, float)
        each = dist.Normal(means, jnp.sqrt(self.variance)).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=jnp.zeros(len(means))), each)

    def sample(self, key: Key, num: int) -> Float[Array, "num size"]:
        """Draws."""
        return jnp.asarray(self.law.sample(key, (num,)))


def mixture_field(path: Interpolant, start: Mixture, end: Mixture) -> Field:
    """The field between two Gaussian mixtures with independent draws: exact velocity, score and log-density.

    Given the components i and j of the ends, x_t and u are jointly normal, so that E[u | x_t, i, j] is affine, and the weights of
    i, j given x_t are those of a mixture.

    Args:
        path: an interpolant, with noise or without.
        start: law of x_0.
        end: law of x_1.
    """

    def parts(t: Array, x: Array) -> tuple[Array, Array, Array]:
        t = jnp.asarray(t, float)
        both = lambda part: jax.jvp(part, (t,), (jnp.ones_like(t),))
        (a, da), (b, db) = both(path.alpha), both(path.beta)
        noise, d_noise = both(path.variance) if path.variance is not None else (0.0, 0.0)
        m0, m1 = (jnp.asarray(m, float) for m in (start.means, end.means))
        means, rates = a * m0[:, None] + b * m1, da * m0[:, None] + db * m1
        variance = a**2 * start.variance + b**2 * end.variance + noise
        # Of u and x_t; gamma gamma' is half of the derivative of gamma^2, which is finite at the ends.
        covariance = a * da * start.variance + b * db * end.variance + 0.5 * d_noise
        away = x - means
        logs = -0.5 * jnp.sum(away**2, -1) / variance
        logs = logs - 0.5 * x.size * jnp.log(2 * jnp.pi * variance) - jnp.log(logs.size)
        share = jax.nn.softmax(logs.ravel()).reshape(logs.shape)[..., None]
        velocity = jnp.sum(share * (rates + covariance / variance * away), (0, 1))
        return jax.nn.logsumexp(logs), velocity, -jnp.sum(share * away, (0, 1)) / variance

    part = lambda i: lambda t, x: parts(t, x)[i]
    return Field(part(1), part(2), part(0))
