"""The law of points on a curve, with normal noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import log_ndtr
from jaxtyping import Array, ArrayLike, Float
from numpyro.distributions import constraints

from .._types import Key


class Polyline(dist.Distribution):
    """The law of f(U) + scale e: f linear between its knots at 0, 1 / (K - 1), ..., 1, U uniform, e standard normal.

    A segment from a of length L and direction v, with p = v . (x - a) and r the distance of x from its line, adds to the density

        exp(-r^2 / 2 s^2) / (2 pi s^2)^((D - 1) / 2) (Phi((L - p) / s) - Phi(-p / s)) / (L (K - 1)),   s = scale,

    exactly, as small as the scale may be. `ppl.perturb` knows its sum with normal noise, so that a curve, whose points have no
    density, can be fitted by maximum likelihood.

    Args:
        knots: [knots, D], two or more; the first one again at the end for a closed curve.
        scale: of the noise, positive.

    Raises:
        ValueError: knots of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from lapilli import ppl
        >>> law = ppl.distributions.Polyline(jnp.array([[0.0, 0.0], [2.0, 0.0]]), 1e-3)
        >>> round(float(law.log_prob(jnp.array([1.0, 0.0]))), 3)  # -log(2) - log(1e-3 sqrt(2 pi))
        5.296

    Reference: Chae, Kim, Kim and Lin 2023, arXiv:2105.04046 (likelihood of laws on curves); the formula: by integration.
    """  # fmt: skip

    arg_constraints = {
        "knots": constraints.independent(constraints.real, 2),
        "scale": constraints.positive,
    }
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    reparametrized_params = ["knots", "scale"]

    def __init__(
        self, knots: Float[ArrayLike, "knots size"], scale: ArrayLike, *, validate_args: bool | None = None
    ) -> None:  # fmt: skip
        self.knots, self.scale = knots, scale
        shape = jnp.shape(knots)
        if len(shape) != 2 or shape[0] < 2:
            raise ValueError(
                f"Polyline: knots have shape {shape}. Give two or more points of one curve, [knots, size]."
            )
        super().__init__((), shape[1:], validate_args=validate_args)

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*shape"]:
        """Points of the curve at even draws, with noise."""
        keys, knots = jax.random.split(key), jnp.asarray(self.knots)
        at = jax.random.uniform(keys[0], sample_shape) * (len(knots) - 1)
        index = jnp.minimum(at.astype(int), len(knots) - 2)
        share = (at - index)[..., None]
        points = (1 - share) * knots[index] + share * knots[index + 1]
        return points + self.scale * jax.random.normal(keys[1], points.shape)

    def log_prob(self, value: Float[Array, "*shape"]) -> Float[Array, "*batch"]:
        """Log density in nats."""
        knots, scale = jnp.asarray(self.knots), jnp.asarray(self.scale)
        along = knots[1:] - knots[:-1]
        length = jnp.sqrt(jnp.maximum(jnp.sum(along**2, 1), jnp.finfo(along.dtype).tiny))
        direction = along / length[:, None]
        away = jnp.asarray(value)[..., None, :] - knots[:-1]
        place = jnp.sum(away * direction, -1)
        # The rest itself, and not |away|^2 - place^2, which has no digits close to the curve.
        rest = away - place[..., None] * direction
        logs = -0.5 * jnp.sum(rest**2, -1) / scale**2
        logs = logs + _log_between(-place / scale, length / scale) - jnp.log(length)
        size = knots.shape[1] - 1
        constant = 0.5 * size * jnp.log(2 * jnp.pi * scale**2) + jnp.log(len(along))
        return jax.nn.logsumexp(logs, -1) - constant

    def moved(self, loc: ArrayLike, scale: ArrayLike) -> Polyline:
        """The law of x + loc + scale e."""
        return Polyline(jnp.asarray(self.knots) + loc, jnp.hypot(self.scale, scale))


def _log_between(low: Array, width: Array) -> Array:
    """log(Phi(low + width) - Phi(low)) for width > 0.

    On the side where both tails are small, so that neither is 1; for narrow ones the density in the middle times the width, whose
    error is width^4 / 1000, since the difference has no digits.
    """
    low = jnp.where(low + 0.5 * width > 0, -low - width, low)
    middle = low + 0.5 * width
    is_narrow = width < 0.1
    narrow = -0.5 * middle**2 - 0.5 * np.log(2 * np.pi) + jnp.log(width)
    narrow = narrow + jnp.log1p(jnp.maximum((middle**2 - 1) * width**2 / 24, -0.5))
    wide = jnp.where(is_narrow, 1.0, width)  # derivatives of what is not taken stay finite
    high = log_ndtr(low + wide)
    # A tail less the other one, beyond rounding of the two logarithms; log_ndtr itself holds far out.
    return jnp.where(
        is_narrow, narrow, high + jnp.log1p(-jnp.exp(jnp.minimum(log_ndtr(low) - high, -1e-7)))
    )
