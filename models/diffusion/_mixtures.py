"""Gaussian mixtures as diffusion models whose scores and densities are exact at every time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float

from ...inference.diffusion import Diffusion, Noising
from ...ppl._compat import is_concrete


def gaussian_mixture(
    noising: Noising,
    weights: Float[Array, " components"],
    means: Float[Array, " components *shape"],
    variances: Float[Array, " components *shape"] | float,
) -> Diffusion:
    """The diffusion model of data from a Gaussian mixture with diagonal covariances.

        q_t(x) = sum_k weights_k Normal(x; alpha(t) means_k, alpha(t)^2 variances_k + std(t)^2).

    Args:
        noising: the noising process.
        weights: positive; they are normalised.
        means: one for each component.
        variances: broadcast against `means`.

    Returns:
        A `Diffusion` with its log-density; points have the shape of one mean.

    Raises:
        ValueError: shapes that do not fit; weights of which one is negative or none positive, or a negative variance.

    Example:
        >>> from lapilli.models import diffusion
        >>> model = diffusion.gaussian_mixture(diffusion.VP(), [0.3, 0.7], [-1.5, 1.0], [0.2, 0.3])
        >>> round(float(model.score(1.0, 0.0)), 3)
        -0.0
    """
    _refuse_signs(weights, variances)
    weights, means = jnp.asarray(weights, float), jnp.asarray(means, float)
    if means.ndim < 1 or weights.shape != means.shape[:1]:
        raise ValueError(
            f"gaussian_mixture: weights {weights.shape} and means {means.shape} must agree in their leading axis, the components."
        )
    variances = jnp.asarray(variances, float)
    try:
        variances = jnp.broadcast_to(variances, means.shape)
    except ValueError as err:
        raise ValueError(
            f"gaussian_mixture: variances {variances.shape} do not broadcast to the means {means.shape}. Give "
            "one variance, or one for each entry of the means."
        ) from err
    log_weights = jnp.log(weights / weights.sum())

    def log_density(x: Array, t: Array) -> Array:
        alpha, variance = noising.alpha(t), noising.variance(t)
        scales = jnp.sqrt(alpha**2 * variances + variance)
        log_probs = dist.Normal(alpha * means, scales).log_prob(x)
        return jax.nn.logsumexp(log_weights + log_probs.reshape(len(means), -1).sum(1))

    def score(x: Array, t: Array) -> Array:
        return jax.grad(log_density)(jnp.asarray(x, float), t)

    return Diffusion(noising, score, means.shape[1:], log_density)


def _refuse_signs(weights: ArrayLike, variances: ArrayLike) -> None:
    """Refuse numbers of no mixture, where they are known: noise added to a negative variance would hide it."""
    if not is_concrete((weights, variances)):
        return
    w, v = np.asarray(weights, float), np.asarray(variances, float)
    if not (np.all(w >= 0) and w.sum() > 0 and np.all(v >= 0)):
        raise ValueError(
            f"gaussian_mixture: weights {w} and variances between {v.min():g} and {v.max():g} are those of no mixture. Give "
            "weights of at least 0, one of them positive, and variances (no logarithms) of at least 0."
        )
