"""What is known of the noising process on a grid: gamma, variances of reverse steps, what is left of the start; checks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from ...inference.diffusion import Diffusion, Noising
from ...inference.diffusion._diffusion import check_array, check_noise, check_times, reverse_step
from ...ppl._calls import checked_call
from ...ppl._compat import is_concrete


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


def check_data_variance(name: str, data_variance: Any, shape: tuple[int, ...]) -> None:
    """Refuse what is no variance for each coordinate of a point: points and densities would be spread over more of them."""
    found = np.shape(data_variance)
    try:
        fits = jnp.broadcast_shapes(found, shape) == shape
    except ValueError:
        fits = False
    is_known = is_concrete(data_variance)
    if not fits or (is_known and not np.all(np.asarray(data_variance) >= 0)):
        least = f", the least being {np.min(np.asarray(data_variance)):g}" if is_known else ""
        raise ValueError(
            f"{name}: data_variance has shape {found}{least}, and a point {shape}. Give one variance of at least 0, or one for "
            "each coordinate."
        )


def point_shape(name: str, diffusion: Diffusion) -> tuple[int, ...]:
    """The shape of a point that is one array; refuses trees and noise that is not Normal."""
    check_noise(name, diffusion)
    return check_array(name, diffusion)


@checked_call
def memory(
    noising: Noising, times: Float[Array, " steps+1"], *, eta: float | None = None, data_variance: float = 1.0
) -> float:  # fmt: skip
    """The correlation rho of the first and the last point of a sampler's path, for Normal data and their exact score.

    Near 0 the sampler is memoryless. Elsewhere training it along its path towards a reward, with a fixed law of the start, does
    not reach the tilt: x_1 then has the law in proportion to the mean of p(x_1 | x_0) exp(r(x_1)) / E[exp(r) | x_0]. For r = a x
    (and data of variance 1) the mean is off by a rho^2, and the log-weights keep a variance of a^2 rho^2.

    Args:
        noising: the process.
        times: the sampler's grid, descending.
        eta: None for `reverse_chain`, 1 for `ancestral`, else that of `ddim` (0: no noise on the way, rho = 1).
        data_variance: variance of the data in each coordinate.

    Returns:
        rho, between 0 and 1.

    Raises:
        ValueError: times that do not descend; a variance that is not positive.

    Validity: exact for Normal data with this variance. For others it tells the order: the correlation of a coarse coordinate of
    large variance is larger than that of a detail.

    Example:
        >>> from lapilli.models import diffusion
        >>> noising = diffusion.VP()
        >>> diffusion.memory(noising, noising.times(100)) < 0.01, round(diffusion.memory(noising, noising.times(100), eta=0.0), 3)
        (True, 1.0)

    Reference: Domingo-Enrich et al. 2024, arXiv:2409.08861, definition 1.
    """
    if not data_variance > 0:
        raise ValueError(
            f"memory: data_variance must be positive, got {data_variance}. Give the variance of a coordinate of the data, e.g. "
            "1.0."
        )
    times = check_times("memory", noising, times)
    return chain_memory(noising, np.asarray(times), data_variance, eta)


def chain_memory(
    noising: Noising, times: np.ndarray, data_variance: ArrayLike, eta: float | None = None
) -> float:
    """`memory`, of known times."""

    def step(t: Array, s: Array) -> tuple[Array, Array]:
        slope = -1 / (noising.alpha(t) ** 2 * data_variance + noising.variance(t))
        of_step = 1.0 if eta is None else eta
        scale, variance = reverse_step(noising, jnp.ones(()), slope, t, s, of_step)
        if eta is None:
            variance = reverse_variance(noising, t, s, data_variance)[2]
        return scale, variance

    with jax.ensure_compile_time_eval():
        grid = jnp.asarray(times)
        steps = jax.vmap(step)(grid[:-1], grid[1:])
        scales, variances = (np.asarray(x, float) for x in steps)
        start = float(noising.variance(grid[0]))
    # The linear recursion of variance and of covariance with the start.
    total, shared = start, start
    for scale, variance in zip(scales, variances, strict=True):
        total, shared = scale**2 * total + variance, scale * shared
    return float(min(abs(shared) / np.sqrt(start * total), 1.0))


def known_memory(noising: Noising, times: Array, data_variance: PyTree) -> float | None:
    """`memory` of a chain whose grid is known, else None; of the largest variance of its coordinates, 1 where that is traced."""
    if not is_concrete(times):
        return None
    known = is_concrete(data_variance)
    largest = float(np.max(np.asarray(data_variance))) if known else 1.0
    return chain_memory(noising, np.asarray(times), max(largest, 1e-6))
