"""Masses of windows of a law, and draws inside of them, to all digits however far out in a tail or narrow the window is.

A difference of distribution functions has no digits left where both are near 1, is 0 where both underflow, and has few where they
are near each other. Here it is taken in logarithms and in the tail that is small (all laws are symmetric), by the
law's addition theorem where it has one, and by quadrature of the density where the window is narrow. Values are standardised:
z = (x - loc) / scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import log_ndtr, ndtri

from ..._compat import SymbolicZero
from ._special import HALF_LOG_2PI, continuous, log1mexp, log1p_square, log_gamma_ratio

Array = jax.Array


def _on_unit(num: int) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(num)
    return (nodes + 1) / 2, weights / 2


_BEYOND = 1e18  # of the scale: stands for infinite ends, its square is a number
_NARROW = 0.5  # difference of log-probabilities below which a window is integrated by quadrature
_NODES, _WEIGHTS = _on_unit(16)
_MORE_NODES, _MORE_WEIGHTS = _on_unit(24)
_FAR_NODES, _FAR_WEIGHTS = np.polynomial.laguerre.laggauss(24)
_LOG_2_PI = float(np.log(2 / np.pi))


class Standard(NamedTuple):
    """A symmetric law at location 0 and scale 1; `shape` are its other parameters.

    Attributes:
        names: of its other parameters.
        log_density: (z, *shape).
        log_cdf: (z, *shape), with the relative precision of the probability where that is small.
        log_window: (low, high, high - low, *shape) -> log(F(high) - F(low)).
        quantile: log F(z) -> z; None where there is no formula.
    """

    names: tuple[str, ...]
    log_density: Callable[..., Array]
    log_cdf: Callable[..., Array]
    log_window: Callable[..., Array]
    quantile: Callable[[Array], Array] | None


def mirrored(low: Array, high: Array) -> tuple[Array, Array]:
    """The window or its mirror image, the one that reaches further down."""
    is_up = low + high > 0
    ends = jnp.where(is_up, -high, low), jnp.where(is_up, -low, high)
    return ends


def _by_tails_or_quadrature(
    log_density: Callable[..., Array], log_cdf: Callable[..., Array]
) -> Callable[..., Array]:
    @continuous
    def log_window(low: Array, high: Array, width: Array, *shape: Array) -> Array:
        low, high = mirrored(low, high)
        below, before = log_cdf(jnp.stack([high, low]), *shape)
        gap = below - before
        is_narrow = gap < _NARROW
        wide = below + log1mexp(jnp.where(is_narrow, 1, gap))
        start, step = jnp.where(is_narrow, low, 0), jnp.where(is_narrow, width, 1)
        points = start[..., None] + step[..., None] * _NODES.astype(step.dtype)
        heights = log_density(points, *(s[..., None] for s in shape))
        weights = _WEIGHTS.astype(step.dtype)
        return jnp.where(is_narrow, jnp.log(step) + jax.nn.logsumexp(heights, -1, b=weights), wide)

    return log_window


def _inverse(
    log_density: Callable[..., Array], log_cdf: Callable[..., Array]
) -> Callable[..., Callable[[Array], Array]]:
    """Gives a function that inverts `log_cdf` the derivative of an inverse."""

    def decorate(solve: Callable[[Array], Array]) -> Callable[[Array], Array]:
        inner = jax.custom_jvp(solve)

        @inner.defjvp
        def inner_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
            z = inner(primals[0])
            # In a mirrored tail log F is flat: its inverse is steep there.
            return z, tangents[0] * jnp.exp(log_cdf(z) - log_density(z))

        @continuous
        def quantile(log_p: Array) -> Array:
            return inner(log_p)

        return quantile

    return decorate


@continuous
def ratio(x: Array, start: Array, scale: Array) -> Array:
    """(x - start) / scale, with numbers for infinite ones that are large enough, and have derivatives."""
    is_finite = jnp.isfinite(x) & jnp.isfinite(start)
    apart = jnp.where(is_finite, x, 0) - jnp.where(is_finite, start, 0)
    direction = jnp.where(jnp.isfinite(start), jnp.sign(x), -jnp.sign(start))
    inside = jnp.clip(apart / scale, -_BEYOND, _BEYOND)
    return jnp.where(is_finite, inside, direction * _BEYOND)


@continuous
def log_normal_density(z: Array) -> Array:
    """Log-density of the standard Normal law."""
    return -0.5 * z**2 - HALF_LOG_2PI


@_inverse(log_normal_density, log_ndtr)
def _normal_quantile(log_p: Array) -> Array:
    is_far = log_p < -60
    near = jnp.where(is_far, -1, log_p)
    z = jnp.where(near < -np.log(2), ndtri(jnp.exp(near)), -ndtri(-jnp.expm1(near)))
    far = jnp.where(is_far, log_p, -100.0)
    out = -jnp.sqrt(-2 * far - jnp.log(-4 * np.pi * far))
    for _ in range(4):  # Newton: log F is nearly a parabola here
        log_cdf = log_ndtr(out)
        out = out - (log_cdf - far) * jnp.exp(log_cdf - log_normal_density(out))
    return jnp.where(is_far, out, z)


@continuous
def log_logistic_density(z: Array) -> Array:
    """Log-density of the standard Logistic law."""
    return jax.nn.log_sigmoid(z) + jax.nn.log_sigmoid(-z)


@continuous
def log_logistic_window(low: Array, high: Array, width: Array) -> Array:
    """F(h) - F(l) = F(h) F(-l) (1 - e^(l - h))."""
    return jax.nn.log_sigmoid(high) + jax.nn.log_sigmoid(-low) + log1mexp(width)


@_inverse(log_logistic_density, jax.nn.log_sigmoid)
def _logistic_quantile(log_p: Array) -> Array:
    return log_p - log1mexp(-log_p)


@continuous
def log_laplace_cdf(z: Array) -> Array:
    """Logarithm of the distribution function of the standard Laplace law."""
    is_low = z < 0
    high = jnp.log1p(-0.5 * jnp.exp(-jnp.where(is_low, 0, z)))
    return jnp.where(is_low, jnp.where(is_low, z, 0) - np.log(2), high)


def _laplace_density(z: Array) -> Array:
    return -jnp.abs(z) - np.log(2)


@continuous
def log_laplace_window(low: Array, high: Array, width: Array) -> Array:
    """On one side of 0 the larger end's tail times what of it is inside, around 0 all but two tails."""
    low, high = mirrored(low, high)
    is_around = high > 0
    below = jnp.where(is_around, 0, high) + log1mexp(jnp.where(is_around, 1, width))
    ends = jnp.where(is_around, -high, -1.0), jnp.where(is_around, low, -1.0)
    around = jnp.log(-jnp.expm1(ends[0]) - jnp.expm1(ends[1]))
    return jnp.where(is_around, around, below) - np.log(2)


@_inverse(_laplace_density, log_laplace_cdf)
def _laplace_quantile(log_p: Array) -> Array:
    is_low = log_p < -np.log(2)
    high = -log1mexp(jnp.where(is_low, 1, -log_p)) - np.log(2)
    return jnp.where(is_low, log_p + np.log(2), high)


@continuous
def log_cauchy_cdf(z: Array) -> Array:
    """Logarithm of the distribution function of the standard Cauchy law."""
    return jnp.log(jnp.arctan2(jnp.ones_like(z), -z) / np.pi)


def _cauchy_density(z: Array) -> Array:
    return -log1p_square(z) - np.log(np.pi)


@continuous
def log_cauchy_window(low: Array, high: Array, width: Array) -> Array:
    """By tan(x - y) = (tan x - tan y) / (1 + tan x tan y)."""
    size = jax.lax.stop_gradient(jnp.maximum(1, jnp.maximum(jnp.abs(low), jnp.abs(high))))
    return jnp.log(jnp.arctan2(width / size, 1 / size + (low / size) * high) / np.pi)


@_inverse(_cauchy_density, log_cauchy_cdf)
def _cauchy_quantile(log_p: Array) -> Array:
    # sin of pi (1 - p) is that of pi p, and 1 - p is known better near 1.
    return -jnp.cos(np.pi * jnp.exp(log_p)) / jnp.sin(
        np.pi * jnp.where(log_p < -1, jnp.exp(log_p), -jnp.expm1(log_p))
    )


@continuous
def log_atan_exp(x: Array) -> Array:
    """log(arctan(e^x))."""
    is_low = x < -20
    high = jnp.arctan(jnp.exp(jnp.clip(jnp.where(is_low, 0, x), None, 40)))
    return jnp.where(is_low, x, jnp.log(high))


@continuous
def log_soft_laplace_cdf(z: Array) -> Array:
    """Logarithm of the distribution function of the standard SoftLaplace law."""
    return log_atan_exp(z) + _LOG_2_PI


def _soft_laplace_density(z: Array) -> Array:
    return _LOG_2_PI - jnp.logaddexp(z, -z)


@continuous
def log_soft_laplace_window(low: Array, high: Array, width: Array) -> Array:
    """By tan(x - y) = (tan x - tan y) / (1 + tan x tan y)."""
    low, high = mirrored(low, high)
    tangent = high + log1mexp(width) - jnp.log1p(jnp.exp(low + high))
    return log_atan_exp(tangent) + _LOG_2_PI


@_inverse(_soft_laplace_density, log_soft_laplace_cdf)
def _soft_laplace_quantile(log_p: Array) -> Array:
    # log tan of an angle in (0, pi / 2), measured from the nearer end.
    is_low = log_p < -np.log(2)
    angle = 0.5 * np.pi * jnp.where(is_low, jnp.exp(log_p), -jnp.expm1(log_p))
    far = log_p - _LOG_2_PI
    near = jnp.where(is_low, 1.0, -1.0) * jnp.log(jnp.tan(angle))
    return jnp.where(log_p < -20, far, near)


@continuous
def log_student_density(z: Array, df: Array) -> Array:
    """Log-density of Student's t law with location 0 and scale 1."""
    half = 0.5 * df
    # log Gamma(h + 1/2) - log Gamma(h) - log(h) / 2
    peak = log_gamma_ratio(half, 0.5) - 0.5 * jnp.log(half)
    return peak - 0.5 * np.log(2 * np.pi) - (half + 0.5) * log1p_square(z / jnp.sqrt(df))


def _log_student_tail(far: Array, df: Array) -> Array:
    """Probability beyond `far`, some 5 or more: with t = far e^s, the log of density times t falls at a known rate from s = 0."""
    rate = df * (1 - 1 / far**2) / (1 + df / far**2)
    nodes = _FAR_NODES.astype(rate.dtype)
    steps = nodes / rate[..., None]
    heights = log_student_density(far[..., None] * jnp.exp(steps), df[..., None]) + steps + nodes
    weights = _FAR_WEIGHTS.astype(rate.dtype)
    return jax.nn.logsumexp(heights, -1, b=weights) + jnp.log(far / rate)


@jax.custom_jvp
def _log_student_cdf(z: Array, df: Array) -> Array:
    end, size = 5.0 * jnp.ones_like(z), jnp.abs(z)
    is_far = size > 4.9
    beyond = _log_student_tail(jnp.where(is_far, size, end), df)
    root = jnp.sqrt(df)[..., None]
    start = jnp.arcsinh(jnp.where(is_far, 0, size)[..., None] / root)
    length = jnp.arcsinh(end[..., None] / root) - start
    angles = start + length * _MORE_NODES.astype(z.dtype)
    heights = log_student_density(root * jnp.sinh(angles), df[..., None])
    heights = heights + jnp.log(root * jnp.cosh(angles) * length)
    between = jax.nn.logsumexp(heights, -1, b=_MORE_WEIGHTS.astype(z.dtype))
    tail = jnp.where(is_far, beyond, jnp.logaddexp(between, beyond))
    is_high = z > 0
    return jnp.where(is_high, jnp.log1p(-jnp.exp(jnp.where(is_high, tail, -1))), tail)


def _log_student_cdf_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array | SymbolicZero, Array | SymbolicZero]
) -> tuple[Array, Array]:
    (z, df), (of_z, of_df) = primals, tangents
    value = _log_student_cdf(z, df)
    total = jnp.zeros_like(value)
    if not isinstance(of_z, SymbolicZero):
        total = total + of_z * jnp.exp(log_student_density(z, df) - value)
    if not isinstance(of_df, SymbolicZero):
        by_df = lambda df: _log_student_cdf.fun(z, df)
        total = total + jax.jvp(by_df, (df,), (of_df,))[1]
    return value, total


_log_student_cdf.defjvp(_log_student_cdf_jvp, symbolic_zeros=True)


@continuous
def log_student_cdf(z: Array, df: Array) -> Array:
    """Log F of Student's t law: what is beyond 5, and up to there a quadrature in theta, z = sqrt(df) sinh(theta)."""
    return _log_student_cdf(z, df)


STANDARD: Mapping[type, Standard] = {
    dist.Normal: Standard(
        (), log_normal_density, log_ndtr,
        _by_tails_or_quadrature(log_normal_density, log_ndtr), _normal_quantile,
    ),
    dist.Logistic: Standard(
        (), log_logistic_density, jax.nn.log_sigmoid, log_logistic_window, _logistic_quantile,
    ),
    dist.Laplace: Standard(
        (), _laplace_density, log_laplace_cdf, log_laplace_window, _laplace_quantile,
    ),
    dist.Cauchy: Standard(
        (), _cauchy_density, log_cauchy_cdf, log_cauchy_window, _cauchy_quantile,
    ),
    dist.SoftLaplace: Standard(
        (), _soft_laplace_density, log_soft_laplace_cdf, log_soft_laplace_window,
        _soft_laplace_quantile,
    ),
    dist.StudentT: Standard(
        ("df",), log_student_density, log_student_cdf,
        _by_tails_or_quadrature(log_student_density, log_student_cdf), None,
    ),
}  # fmt: skip
