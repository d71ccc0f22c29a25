"""What bounds and chains need of the noising process: gamma, the variances of reverse steps, checks of grids and points."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ...inference.diffusion import Diffusion, Noising
from ...inference.diffusion._diffusion import check_noise, check_times
from ...inference.diffusion._points import is_shape


def gamma(noising: Noising, t: PyTree) -> Float[Array, ""]:
    """log(variance / alpha^2)."""
    return jnp.log(noising.variance(t)) - 2 * noising.log_alpha(t)


def reverse_variance(
    noising: Noising, t: Array, s: Any, data_variance: Any
) -> tuple[Array, Array, Array]:
    """v, c and u of the step from t to s < t."""
    kept = jnp.exp(2 * (noising.log_alpha(t) - noising.log_alpha(s)))
    before, after = noising.variance(t), noising.variance(s)
    narrow = after * (before - kept * after) / before
    slope = noising.alpha(s) * (1 - kept * after / before)
    rho = data_variance * before / (data_variance * noising.alpha(t) ** 2 + before)
    return narrow, slope, narrow + slope**2 * rho


def check_chain(name: str, noising: Noising, times: Array) -> Array:
    """Known descending times that end with some noise."""
    times = check_times(name, noising, times)
    if np.asarray(times)[-1] <= 0:
        raise ValueError(
            f"{name}: times end at 0, where no noise is left and the last step has no density. End at a small positive time, "
            "e.g. noising.times(num_steps)."
        )
    return times


def point_shape(name: str, diffusion: Diffusion) -> tuple[int, ...]:
    """The shape of a point that is one array; refuses trees and noise that is not Normal."""
    check_noise(name, diffusion)
    if not is_shape(diffusion.shape):
        raise ValueError(
            f"{name}: points are one array, and the model's are a tree of shapes {diffusion.shape}. Flatten them into one array, "
            "e.g. by jax.flatten_util.ravel_pytree."
        )
    return diffusion.shape
