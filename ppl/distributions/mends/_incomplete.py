"""Incomplete gamma and beta functions in logarithms, both tails, at parameters where the textbook's prefactor cancels.

The logarithm of a density with respect to log y, or to the logit of x, is concave. Its tail from a point on is

    density times integral_0^inf e^(-drop(t)) dt,    drop(t) = slope t + curvature t^2 / 2 + ...,

by Gauss's nodes up to where `drop` is all that the precision sees. The density is `log_gamma_kernel` or `log_beta_kernel`,
which do not cancel, and of the two tails the one on the point's own side of the mean is integrated: the other is the rest.
Where parameters are small JAX's gamma functions serve, and a series. Derivatives: in the point by the density, in parameters
through the integral.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammainc, gammaincc
from jaxtyping import ArrayLike

from ..._compat import SymbolicZero
from ._special import continuous, log1mexp, log_beta_kernel, log_gamma_kernel

Array = jax.Array
Point = tuple[Array, ...]
Logs = tuple[Array, Array]  # of the probabilities below and beyond a value
_FROM = 20.0  # parameters from which the prefactor counts
_TERMS = 256  # of the series of a beta law whose first parameter is small
_NEAR = 0.9  # up to where a series converges
_MOST = 0.9  # up to which probability that series is taken
_RULES = {size: np.polynomial.legendre.leggauss(num) for size, num in ((4, 40), (8, 80))}
stop = jax.lax.stop_gradient


def _nodes(dtype: np.dtype) -> tuple[Array, Array, float]:
    """Nodes and weights on [0, 1], and how many nats of a tail the precision sees."""
    size = 8 if dtype.itemsize == 8 else 4
    nodes, weights = _RULES[size]
    nats = 38.0 if size == 8 else 18.0
    return jnp.asarray((nodes + 1) / 2, dtype), jnp.asarray(weights / 2, dtype), nats


def _length(slope: Array, curvature: Array, nats: float) -> Array:
    """Where slope t + curvature t^2 / 2 has so many nats."""
    return 2 * nats / (slope + jnp.sqrt(slope**2 + 2 * nats * curvature))


def _series(x: Array, coefficients: tuple[ArrayLike, ...]) -> Array:
    total: Any = 0.0
    for c in reversed(coefficients):
        total = total * x + c
    return total


_EXPONENTIAL = tuple(1 / float(np.prod(np.arange(3.0, k + 4))) for k in range(12))


def _excess(t: Array) -> Array:
    """The value e^t - 1 - t."""
    is_small = jnp.abs(t) < 0.5
    small, large = jnp.where(is_small, t, 0), jnp.where(is_small, 1, t)
    near = small**2 * (0.5 + small * _series(small, tuple(0.5 * c for c in _EXPONENTIAL)))
    return jnp.where(is_small, near, jnp.expm1(large) - large)


def _log_gamma_tail(y: Array, a: Array, sign: Array) -> Array:
    """Of Gamma(a, 1) beyond y (sign 1) or below it (-1), for y on that side of a."""
    nodes, weights, nats = _nodes(y.dtype)
    slope = stop(jnp.abs(a - y))
    length = _length(slope, stop(y), nats)
    # Downwards the curvature falls, upwards the tail ends where y e^t is some nats.
    down = _length(slope, stop(y) / (1 + length / 2), nats)
    length = jnp.where(
        sign < 0, down, jnp.minimum(length, jnp.log1p(2 * (nats + stop(a)) / stop(y)))
    )
    t = sign[..., None] * length[..., None] * nodes
    drop = (y - a)[..., None] * t + y[..., None] * _excess(t)
    return jnp.log((weights * jnp.exp(-drop)).sum(-1) * length)


def _gammas(y: Array, a: Array) -> tuple[Logs, Logs]:
    """The logarithms of both tails, and those of the density over each."""
    floor = 1e3 * float(jnp.finfo(y.dtype).tiny)
    is_large = a >= _FROM
    below, beyond = (f(jnp.where(is_large, 1, a), y) for f in (gammainc, gammaincc))
    is_up = y > a
    sign = jnp.where(is_up, 1.0, -1.0).astype(y.dtype)
    is_far = is_large | (jnp.where(is_up, beyond, below) <= floor)
    kernel = log_gamma_kernel(y, jnp.log(y), a)
    integral = _log_gamma_tail(
        jnp.where(is_far, y, 2.0), jnp.where(is_far, a, 1.0), jnp.where(is_far, sign, 1)
    )
    tail = jnp.where(is_far, kernel + integral, -1.0)
    rest = _log_rest(tail)
    near = (jnp.log(jnp.where(is_far | (p <= floor), 1, p)) for p in (below, beyond))
    far = jnp.where(is_up, rest, tail), jnp.where(is_up, tail, rest)
    below, beyond = (jnp.where(is_far, f, n) for f, n in zip(far, near, strict=True))
    return (below, beyond), _ratios(kernel, below, beyond, ~is_up, is_far, integral)


def _ratios(
    kernel: Array, below: Array, beyond: Array, is_below: Array, is_far: Array, integral: Array
) -> Logs:
    """Of the density over each tail: of one that is integrated by the integral, and no difference of large logarithms."""
    ratios = kernel - below, kernel - beyond
    by = is_far & is_below, is_far & ~is_below
    return jnp.where(by[0], -integral, ratios[0]), jnp.where(by[1], -integral, ratios[1])


def bernoulli_excess(p: Array, t: Array) -> Array:
    """The value log(1 + p (e^t - 1)) - p t, by Bernoulli's cumulants where t is small."""
    q = p * (1 - p)
    skew = 1 - 2 * p
    is_small = jnp.abs(t) < 0.25
    small, large = jnp.where(is_small, t, 0), jnp.where(is_small, 1, t)
    cumulants = (
        1 / 2, skew / 6, (1 - 6 * q) / 24, skew * (1 - 12 * q) / 120, (1 - 30 * q + 120 * q**2) / 720,
        skew * (1 - 60 * q + 360 * q**2) / 5040,
    )  # fmt: skip
    near = q * small**2 * _series(small, cumulants)
    return jnp.where(is_small, near, jnp.log1p(p * jnp.expm1(large)) - p * large)


def _log_beta_tail(x: Array, rest: Array, a: Array, b: Array) -> Array:
    """The logarithm of the share of Beta(a, b) below x = 1 - rest, over x^a rest^b / Beta(a, b).

    For x below the mean, or a large a.
    """
    nodes, weights, nats = _nodes(x.dtype)
    total, off = a + b, rest * a - x * b
    slope, curvature = jnp.maximum(stop(off), 0), stop(total * x * rest)
    length = _length(slope, curvature, nats)
    # The curvature falls where x is small; where `rest` is, it grows by e^t, up to a slope of a.
    length = _length(slope, curvature / (1 + length / 2), nats)
    most = 2 * stop(nats + b) / total
    grown = jnp.where(most < 0.5, jnp.log1p(most / stop(rest)), jnp.inf)
    ends = 1.5 * (nats / stop(a) + jnp.sqrt(2 * nats / stop(a))) - jnp.log(stop(rest))
    length = jnp.minimum(length, jnp.minimum(grown, ends))
    t = length[..., None] * nodes
    is_low = (x < rest)[..., None]
    p = jnp.where(is_low, x[..., None], rest[..., None])
    drop = off[..., None] * t + total[..., None] * bernoulli_excess(p, jnp.where(is_low, -t, t))
    return jnp.log((weights * jnp.exp(-drop)).sum(-1) * length)


def _log_beta_series(x: Array, a: Array, b: Array) -> Array:
    """The logarithm of what `_log_beta_tail` integrates, for a small a, by its series.

    The share of Beta(a, b) below x, over x^a (1 - x)^b / Beta(a, b), is (1 + sum_k c_k x^(k + 1)) / a with
    c_k = (a + b) ... (a + b + k) / ((a + 1) ... (a + 1 + k)).
    """

    def term(i: Array, total: Array) -> Array:
        k = (_TERMS - 1 - i).astype(x.dtype)
        return x * (a + b + k) / (a + 1 + k) * (1 + total)

    return jnp.log1p(jax.lax.fori_loop(0, _TERMS, term, jnp.zeros_like(x * a * b))) - jnp.log(a)


def _last(a: Array, b: Array) -> Array:
    """Up to where the series is taken: it converges, and nearly all of Beta(a, b) is below."""
    return stop(jnp.minimum((a + 4 * jnp.sqrt(a) + 5) / (a + b), _NEAR))


def _log_rest(log_p: Array) -> Array:
    return log1mexp(-jnp.minimum(log_p, -jnp.finfo(log_p.dtype).tiny))


def _betas(x: Array, rest: Array, a: Array, b: Array) -> tuple[Logs, Logs]:
    # The smaller parameter first.
    is_turned = a > b
    a, b = jnp.where(is_turned, b, a), jnp.where(is_turned, a, b)
    x, rest = jnp.where(is_turned, rest, x), jnp.where(is_turned, x, rest)
    kernel, most = log_beta_kernel(x, rest, a, b), np.log(_MOST)
    low = _by_series(kernel, x, a, b, a < _FROM)
    high = _by_series(kernel, rest, b, a, a + b < _FROM)
    # Which of the two is known, the one below by the first parameter or the other.
    is_low = jnp.where(
        a < _FROM, (low < most) | (low < 0) & (high == 0) & (a + b < _FROM), rest * a > x * b
    )
    is_far = jnp.where(is_low, low, high) == 0
    is_first = is_low | ~is_far
    point = jnp.where(is_first, x, rest), jnp.where(is_first, rest, x)
    first, second = jnp.where(is_first, a, b), jnp.where(is_first, b, a)
    safe = (
        jnp.where(is_far, v, w)
        for v, w in zip((*point, first, second), (0.4, 0.6, _FROM, _FROM), strict=True)
    )
    integral = _log_beta_tail(*safe)
    tail = jnp.where(is_far, kernel + integral, jnp.where(is_low, low, high))
    is_below, more = is_low ^ is_turned, _log_rest(tail)
    below, beyond = jnp.where(is_below, tail, more), jnp.where(is_below, more, tail)
    return (below, beyond), _ratios(kernel, below, beyond, is_below, is_far, integral)


def _by_series(kernel: Array, x: Array, a: Array, b: Array, is_asked: Array) -> Array:
    """The logarithm of what is below x, 0 where the series is not asked for or x is too large for it."""
    last = _last(a, b)
    has = is_asked & (x < last)
    found = kernel + _log_beta_series(
        jnp.minimum(x, last), jnp.where(has, a, 1), jnp.where(has, b, 1)
    )
    return jnp.where(has, jnp.minimum(found, -jnp.finfo(x.dtype).tiny), 0)


def _by_density(
    logs: Callable[..., tuple[Logs, Logs]], move: Callable[[Point, Point], Array]
) -> Callable[[Point, Point], Logs]:
    """Logarithms of two tails, with derivatives in the point by the density, and in parameters through `logs`.

    `move`: (point, its tangents) -> how far it moves where the density is with respect to that.
    """

    @jax.custom_jvp
    def tails(point: tuple[Array, ...], parameters: tuple[Array, ...]) -> Logs:
        return logs(*point, *parameters)[0]

    def jvp(primals: tuple[Point, Point], tangents: tuple[Point, Point]) -> tuple[Logs, Logs]:
        (point, parameters), (of_point, of_parameters) = primals, tangents
        (below, beyond), ratios = logs(*point, *parameters)
        moved: Logs = (jnp.zeros_like(below), jnp.zeros_like(beyond))
        if not all(isinstance(t, SymbolicZero) for t in of_point):
            step = move(point, of_point)
            moved = (step * jnp.exp(ratios[0]), -step * jnp.exp(ratios[1]))
        if not all(isinstance(t, SymbolicZero) for t in of_parameters):
            given = tuple(
                jnp.zeros_like(p) if isinstance(t, SymbolicZero) else t
                for p, t in zip(parameters, of_parameters, strict=True)
            )
            by = jax.jvp(lambda *p: logs(*point, *p)[0], parameters, given)[1]
            moved = tuple(a + b for a, b in zip(moved, by, strict=True))
        return (below, beyond), moved

    tails.defjvp(jvp, symbolic_zeros=True)
    return tails


def _of(tangent: Array | SymbolicZero, like: Array) -> Array:
    return jnp.zeros_like(like) if isinstance(tangent, SymbolicZero) else tangent


_gamma_tails = _by_density(_gammas, lambda point, of: of[0] / point[0])
_beta_tails = _by_density(
    _betas,
    lambda point, of: _of(of[0], point[0]) / point[0] - _of(of[1], point[1]) / point[1],
)  # fmt: skip


def _with_ends(found: Logs, is_inside: Array, is_beyond: Array) -> Logs:
    at_end = jnp.where(is_beyond, 0.0, -jnp.inf), jnp.where(is_beyond, -jnp.inf, 0.0)
    return tuple(jnp.where(is_inside, f, e) for f, e in zip(found, at_end, strict=True))  # pyright: ignore[reportReturnType]


@continuous
def log_gammas(y: Array, a: Array) -> Logs:
    """Logarithms of the probabilities of Gamma(a, 1) below and beyond y."""
    is_inside = (y > 0) & jnp.isfinite(y)
    found = _gamma_tails((jnp.where(is_inside, y, 1.0),), (a,))
    return _with_ends(found, is_inside, y > 0)


@continuous
def log_betas(x: Array, rest: Array, a: Array, b: Array) -> Logs:
    """Logarithms of the probabilities of Beta(a, b) below and beyond x = 1 - rest."""
    is_inside = (x > 0) & (rest > 0)
    ends = jnp.where(is_inside, x, 0.5), jnp.where(is_inside, rest, 0.5)
    return _with_ends(_beta_tails(ends, (a, b)), is_inside, x > 0)
