"""Samplers of one diffusion model: from noise to data along a grid of noising times.

All take the same arguments and return points at the last time. Times may end at 0: the last step then needs the score at the
time before only, and `ddim`, `ancestral` and `heun` end with the denoised mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...inference.diffusion import Diffusion, Noising
from ...inference.diffusion._diffusion import check_array, check_noise, check_times, reverse_step
from ...ppl._checks import check_counts
from ...ppl._compat import typed_key

Step = Callable[[Array, Array, Array, Array], Array]  # (key, points, from time, to time) -> points


def euler_maruyama(
    diffusion: Diffusion,
    key: Array,
    times: Float[Array, " steps+1"],
    *,
    num_samples: int,
    zeta: float = 1.0,
    start: Float[Array, " samples *shape"] | None = None,
) -> Float[Array, " samples *shape"]:
    """Euler steps of the reverse process, dx = [-a x + (1 + zeta^2)/2 g2 score] dt + zeta sqrt(g2) dB, dt > 0 towards the data.

    Args:
        diffusion: the model.
        key: PRNG key.
        times: descending noising times, e.g. `noising.times(num_steps)`.
        num_samples: number of points.
        zeta: 1 for the reverse process, 0 for the probability flow; any other value has the same marginals.
        start: points at the first time; draws from `diffusion.prior()` by default.

    Validity: as dt -> 0, for a true score.

    Reference: Song et al. 2021, arXiv:2011.13456; Karras et al. 2022, arXiv:2206.00364, equation 6 (zeta).
    """
    noising = diffusion.noising
    if zeta != 0:
        check_noise("euler_maruyama", diffusion)

    def step(key: Array, x: Array, t: Array, s: Array) -> Array:
        g2, dt = noising.g2(t), t - s
        drift = 0.5 * (1 + zeta**2) * g2 * _scores(diffusion, x, t) - noising.drift(t) * x
        return x + drift * dt + zeta * jnp.sqrt(g2 * dt) * jax.random.normal(key, x.shape)

    return _run("euler_maruyama", diffusion, key, times, num_samples, start, step)


def ddim(
    diffusion: Diffusion,
    key: Array,
    times: Float[Array, " steps+1"],
    *,
    num_samples: int,
    eta: float = 0.0,
    start: Float[Array, " samples *shape"] | None = None,
) -> Float[Array, " samples *shape"]:
    """Steps from the denoised point: x_s = alpha_s x_0 + sqrt(std_s^2 - eta^2 v) eps + eta sqrt(v) xi, xi ~ Normal(0, I).

    x_0 is the denoised point, eps = (x_t - alpha_t x_0) / std_t, and v the variance of x_s given x_t and x_0 under the noising
    process.

    Args:
        diffusion: the model.
        key: PRNG key.
        times: descending noising times.
        num_samples: number of points.
        eta: 0 for no noise after the start, 1 for `ancestral`.
        start: points at the first time; draws from `diffusion.prior()` by default.

    Validity: as dt -> 0, for a true score; for data that are one point exact at any dt.

    Reference: Song, Meng and Ermon 2021, arXiv:2010.02502, equations 12 and 16.
    """
    noising = diffusion.noising
    if eta != 0:
        check_noise("ddim", diffusion)

    def step(key: Array, x: Array, t: Array, s: Array) -> Array:
        mean, variance = reverse_step(noising, x, _scores(diffusion, x, t), t, s, eta)
        return mean + jnp.sqrt(variance) * jax.random.normal(key, x.shape)

    return _run("ddim", diffusion, key, times, num_samples, start, step)


def ancestral(
    diffusion: Diffusion,
    key: Array,
    times: Float[Array, " steps+1"],
    *,
    num_samples: int,
    start: Float[Array, " samples *shape"] | None = None,
) -> Float[Array, " samples *shape"]:
    """DDPM's sampler: x_s drawn from the noising process given x_t and the denoised x_0; `ddim` with eta = 1.

    Args:
        diffusion: the model.
        key: PRNG key.
        times: descending noising times.
        num_samples: number of points.
        start: points at the first time; draws from `diffusion.prior()` by default.

    Reference: Ho, Jain and Abbeel 2020, arXiv:2006.11239, equations 6 and 7, with the smaller of its two variances.
    """
    return ddim(diffusion, key, times, num_samples=num_samples, eta=1.0, start=start)


def heun(
    diffusion: Diffusion,
    key: Array,
    times: Float[Array, " steps+1"],
    *,
    num_samples: int,
    churn: float = 0.0,
    churn_range: tuple[float, float] = (0.0, math.inf),
    churn_noise: float = 1.0,
    start: Float[Array, " samples *shape"] | None = None,
) -> Float[Array, " samples *shape"]:
    """Second-order steps of the probability flow, with noise added before each step and removed by it (EDM, algorithm 2).

    In y = x / alpha and sigma = std / alpha the flow is dy / d sigma = (y - denoise) / sigma for every noising process.

    Args:
        diffusion: the model.
        key: PRNG key.
        times: descending noising times.
        num_samples: number of points.
        churn: S_churn; sigma grows by the factor 1 + min(churn / steps, sqrt(2) - 1) before a step.
        churn_range: sigmas for which it does, (S_min, S_max).
        churn_noise: S_noise, factor of the added noise.
        start: points at the first time; draws from `diffusion.prior()` by default.

    Validity: as dt -> 0, for a true score and churn_noise = 1. The noise never goes beyond that of the process's end.

    Reference: Karras et al. 2022, arXiv:2206.00364, algorithm 2.
    """
    noising = diffusion.noising
    if churn != 0:
        check_noise("heun", diffusion)
    sigma_of = lambda t: noising.std(t) / noising.alpha(t)
    times = check_times("heun", noising, times)
    growth = 1 + min(churn / (len(times) - 1), math.sqrt(2) - 1)
    low, high = churn_range

    def slope(y: Array, t: Array) -> Array:
        # (y - denoise) / sigma = -std score
        return -noising.std(t) * _scores(diffusion, noising.alpha(t) * y, t)

    def step(key: Array, x: Array, t: Array, s: Array) -> Array:
        y, sigma = x / noising.alpha(t), sigma_of(t)
        if churn > 0:
            is_inside = (sigma >= low) & (sigma <= high)
            grown = jnp.where(is_inside, jnp.minimum(growth * sigma, sigma_of(noising.end)), sigma)
            added = jnp.sqrt(jnp.maximum(grown**2 - sigma**2, 0.0))
            y = y + churn_noise * added * jax.random.normal(key, y.shape)
            t, sigma = jnp.where(grown > sigma, time_of(noising, grown), t), grown
        here, change = slope(y, t), sigma_of(s) - sigma
        ahead = y + change * here
        corrected = lambda: y + 0.5 * change * (here + slope(ahead, s))
        return noising.alpha(s) * jax.lax.cond(s > 0, corrected, lambda: ahead)

    return _run("heun", diffusion, key, times, num_samples, start, step)


def time_of(noising: Noising, sigma: Array) -> Array:
    """The time at which std / alpha is sigma, by bisection (it grows with time)."""

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        is_low = noising.std(middle) < sigma * noising.alpha(middle)
        return jnp.where(is_low, middle, low), jnp.where(is_low, high, middle)

    start = (jnp.zeros_like(sigma), jnp.full_like(sigma, noising.end))
    low, high = jax.lax.fori_loop(0, 60, halve, start)
    return 0.5 * (low + high)


def _scores(diffusion: Diffusion, x: Array, t: Array) -> Array:
    return jax.vmap(diffusion.score_at, (0, None))(x, t)


def _run(
    name: str,
    diffusion: Diffusion,
    key: Array,
    times: Array,
    num_samples: int,
    start: Array | None,
    step: Step,
) -> Array:
    key = typed_key(key)
    check_counts(name, num_samples=num_samples)
    times = check_times(name, diffusion.noising, times)
    start_key, loop_key = jax.random.split(key)
    shape = (num_samples, *check_array(name, diffusion))
    x = jnp.asarray(diffusion.prior().sample(start_key, (num_samples,)) if start is None else start)
    x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)
    if x.shape != shape:
        raise ValueError(f"{name}: start has shape {x.shape}, and {shape} are wanted.")

    def body(x: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, None]:
        n, t, s = inputs
        return step(jax.random.fold_in(loop_key, n), x, t, s), None

    return jax.lax.scan(body, x, (jnp.arange(len(times) - 1), times[:-1], times[1:]))[0]
