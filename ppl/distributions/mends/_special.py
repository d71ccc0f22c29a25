"""Special functions with all their digits, and those of their derivatives, at sizes where the textbook's formula loses them.

A difference of log-gamma functions of a million has an error of one in single precision. Here each is Stirling's leading terms,
which are combined before anything is rounded, and a remainder that is small:

    log Gamma(a) = (a - 1/2) log a - a + log(2 pi) / 2 + stirling(a).

All are continuous, though they choose between two formulas, and traced as calls of their names: `CONTINUOUS` lists them for the
search for jumps, which need not look inside. Single and double precision alike.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, i0e, log_ndtr
from jaxtyping import PyTree
from scipy.special import roots_genlaguerre

Array = jax.Array
CONTINUOUS: set[tuple[str, str]] = set()  # name and file of each function
HALF_LOG_2PI = 0.5 * float(np.log(2 * np.pi))
_FROM = 8.0  # where Stirling's series takes over: to 1e-15 with these terms
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
_FROM_BESSEL = 50.0
_FROM_RAY = 2.0
_RAY = {n: (x, w / w.sum()) for n in (1, 2) for x, w in [roots_genlaguerre(40, n)]}
_BESSEL = tuple(
    float(np.prod((2 * np.arange(1, k + 1) - 1.0) ** 2 / (8 * np.arange(1, k + 1))))
    for k in range(1, 9)
)


def continuous(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The function as a call of its name that the search for jumps takes to be continuous."""
    CONTINUOUS.add((fn.__name__, fn.__code__.co_filename))
    return jax.jit(fn)


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    """Sum of c_k x^k, k = 0, 1, ..."""
    total = jnp.zeros_like(x)
    for c in reversed(coefficients):
        total = total * x + c
    return total


@continuous
def stirling(a: Array) -> Array:
    """What Stirling's formula leaves of log Gamma(a), a > 0: 1 / (12 a) - 1 / (360 a^3) + ..."""
    is_large = a >= _FROM
    small, large = jnp.where(is_large, 1.0, a), jnp.where(is_large, a, _FROM)
    rest = gammaln(small) - (small - 0.5) * jnp.log(small) + small - HALF_LOG_2PI
    return jnp.where(is_large, _polynomial(_STIRLING, 1 / large**2) / large, rest)


def stirlings(*a: Array) -> Array:
    """Those of several, along the first axis: one formula is traced and compiled for all."""
    return stirling(jnp.stack(jnp.broadcast_arrays(*a)))


def log_quotients(log_y: tuple[Array, Array], a: tuple[Array, Array], off: Array) -> Array:
    """The values log(y / a) of two numbers whose differences y - a are `off` and -off, along the first axis."""
    arrays = jnp.broadcast_arrays(*log_y, *a, off)
    return log_quotient(*(jnp.stack(x) for x in (arrays[:2], arrays[2:4], (arrays[4], -arrays[4]))))


@continuous
def log_quotient(log_y: Array, a: Array, off: Array) -> Array:
    """The value log(y / a), given log y and off = y - a: to the relative precision of `off` where that is small."""
    is_near = jnp.abs(off) < 0.5 * a
    near = jnp.log1p(jnp.where(is_near, off, 0) / a)
    return jnp.where(is_near, near, jnp.where(is_near, 0, log_y) - jnp.log(a))


@continuous
def times(k: Array, log_x: Array) -> Array:
    """The product k log x, 0 for k = 0."""
    is_none = k == 0
    return k * jnp.where(is_none, 0, log_x)


@continuous
def log_gamma_kernel(y: Array, log_y: Array, a: Array) -> Array:
    """The sum a log y - y - log Gamma(a): y times the density of Gamma(a, 1) at y, in logarithms."""
    scaled = a * log_quotient(log_y, a, y - a) - (y - a)
    return scaled + 0.5 * jnp.log(a) - HALF_LOG_2PI - stirling(a)


@continuous
def log_poisson(k: Array, rate: Array) -> Array:
    """The log-probability k log(rate) - rate - log k! of a count k."""
    next_k = k + 1
    scaled = times(k, log_quotient(jnp.log(jnp.where(k == 0, 1, rate)), next_k, rate - next_k))
    rest = (rate - next_k) + 0.5 * jnp.log(next_k) + HALF_LOG_2PI + stirling(next_k)
    return jnp.where(k == 0, -rate, scaled - rest)


@continuous
def log_beta_kernel(x: Array, rest: Array, a: Array, b: Array) -> Array:
    """Of x, 1 - x, a and b: a log x + b log(1 - x) - log Beta(a, b)."""
    total = a + b
    off = x * b - rest * a  # total * x - a, and minus that of the other
    is_low = x < rest
    small = jnp.where(is_low, x, rest)
    logs = jnp.log(small), jnp.log1p(-small)
    logs = jnp.where(is_low, *logs), jnp.where(is_low, *logs[::-1])
    log_total = jnp.log(total)
    of_a, of_b = log_quotients((logs[0] + log_total, logs[1] + log_total), (a, b), off)
    half = 0.5 * (jnp.log(a) + jnp.log(b) - log_total) - HALF_LOG_2PI
    first, second, both = stirlings(a, b, total)
    return a * of_a + b * of_b + half - first - second + both


@continuous
def log_binomial(k: Array, m: Array, x: Array, rest: Array, log_x: Array, log_rest: Array) -> Array:
    """Logarithm of (k + m)! / (k! m!) x^k (1 - x)^m, given x and 1 - x and their logarithms."""
    a, b = k + 1, m + 1
    total, off = a + b, x * b - rest * a
    log_total = jnp.log(total)
    of_a, of_b = log_quotients((log_x + log_total, log_rest + log_total), (a, b), off)
    half = 1.5 * log_total - 0.5 * (jnp.log(a) + jnp.log(b)) - jnp.log(total - 1)
    first, second, both = stirlings(a, b, total)
    inside = times(k, of_a) + times(m, of_b) + half - HALF_LOG_2PI - first - second + both
    is_end = (k == 0) | (m == 0)
    return jnp.where(is_end, times(k, log_x) + times(m, log_rest), inside)


@continuous
def log_negative_binomial(
    k: Array, c: Array, x: Array, rest: Array, log_x: Array, log_rest: Array
) -> Array:
    """Logarithm of Gamma(c + k) / (Gamma(c) k!) x^c (1 - x)^k, given x and 1 - x and their logarithms."""
    b = k + 1
    total, off = c + b, x * b - rest * c
    scaled = c * log_quotient(log_x + jnp.log(total), c, off)
    scaled = scaled + times(k, log_quotient(log_rest + jnp.log(total), b, -off))
    half = 0.5 * (jnp.log1p(b / c) - jnp.log(b)) - jnp.log1p(k / c)
    inside = scaled + half - HALF_LOG_2PI - stirling(c) - stirling(b) + stirling(total)
    return jnp.where(k == 0, c * log_x, inside)


@continuous
def log_gamma_ratio(a: Array, k: Array) -> Array:
    """The difference log Gamma(a + k) - log Gamma(a), k >= 0."""
    grown = (a - 0.5) * jnp.log1p(k / a) + k * jnp.log(a + k) - k
    after, before = stirlings(a + k, a)
    return grown + after - before


def log_dirichlet(x: Array, log_x: Array, a: Array) -> Array:
    """The sum of a_j log x_j - log Beta(a) of proportions x, over the last axis; gamma variables given their sum."""
    total = a.sum(-1, keepdims=True)
    parts = log_gamma_kernel(total * x, jnp.log(total) + log_x, a)
    return parts.sum(-1) - log_gamma_kernel(total, jnp.log(total), total)[..., 0]


def with_derivatives_of(value: Array, like: Array) -> Array:
    """The value, with the derivatives of another way to compute it."""
    return jax.lax.stop_gradient(value) + (like - jax.lax.stop_gradient(like))


@continuous
def log_dirichlet_multinomial(k: Array, a: Array) -> Array:
    """Logarithm of n! / prod k_j! Beta(a + k) / Beta(a), over the last axis.

    As Multinomial(k; x) Dirichlet(x; a) / Dirichlet(x; a + k), which is the same at every x: at the mean of a + k each factor is
    of the size of the result or smaller. The derivatives are those of ratios of gamma functions, none of which cancels.
    """
    total, num = a.sum(-1, keepdims=True), k.sum(-1, keepdims=True)
    x = (a + k) / (total + num)
    multinomial = log_poisson(k, num * x).sum(-1) - log_poisson(num, num)[..., 0]
    log_x = jnp.log(x)
    value = multinomial + log_dirichlet(x, log_x, a) - log_dirichlet(x, log_x, a + k)
    ways = gammaln(num + 1)[..., 0] - gammaln(k + 1).sum(-1)
    ratios = log_gamma_ratio(a, k).sum(-1) - log_gamma_ratio(total, num)[..., 0]
    return with_derivatives_of(value, ways + ratios)


@continuous
def log_beta_negative_binomial(k: Array, n: Array, a: Array, b: Array) -> Array:
    """Logarithm of Gamma(n + k) / (Gamma(n) k!) Beta(b + n, a + k) / Beta(b, a), as above by a negative binomial law."""
    shares = jnp.stack([b + n, a + k], -1)
    x = shares / shares.sum(-1, keepdims=True)
    log_x = -jnp.log1p(shares[..., ::-1] / shares)
    count = log_negative_binomial(k, n, x[..., 0], x[..., 1], log_x[..., 0], log_x[..., 1])
    before = log_dirichlet(x, log_x, jnp.stack([b, a], -1))
    value = count + before - log_dirichlet(x, log_x, shares)
    ratios = log_gamma_ratio(a, k) + log_gamma_ratio(b, n) - log_gamma_ratio(a + b, k + n)
    return with_derivatives_of(value, log_gamma_ratio(n, k) - gammaln(k + 1) + ratios)


def _log_ray(t: Array, order: int, across: Array, total: Array) -> Array:
    """The logarithm of integral_0^inf x^n e^(-(x - t)^2 / 2) dx, n = `order` of 1 or 2, less across / 2; total = t^2 + across.

    It neither under- nor overflows. Far below 0 by Laguerre's nodes, for n! / s^(n + 1) E[e^(-u^2 / 2 s^2)] e^(-t^2 / 2), s = -t
    and u ~ Gamma(n + 1); above by Phi.
    """
    is_far, is_high = t < -_FROM_RAY, t > 3
    nodes, weights = (jnp.asarray(x, t.dtype) for x in _RAY[order])
    s = jnp.where(is_far, -t, _FROM_RAY)
    mean = (weights * jnp.exp(-0.5 * (nodes / s[..., None]) ** 2)).sum(-1)
    far = jnp.log(mean) + np.log(order) - (order + 1) * jnp.log(s)
    low, high = jnp.where(is_far | is_high, 0.0, t), jnp.where(is_high, t, 3.0)
    mills = jnp.exp(0.5 * low**2 + HALF_LOG_2PI + log_ndtr(low))  # Phi / phi
    near = jnp.log(1 + low * mills if order == 1 else low + (1 + low**2) * mills)
    log_phi = log_ndtr(high)
    # phi / Phi beside t, or t / (1 + t^2) of it.
    more = jnp.exp(-0.5 * high**2 - HALF_LOG_2PI - log_phi)
    more = more / (high if order == 1 else high + 1 / high)
    above = (jnp.log(high) if order == 1 else jnp.log1p(high**2)) + jnp.log1p(more)
    above = above + HALF_LOG_2PI + log_phi - 0.5 * jnp.where(is_high, across, 0)
    below = jnp.where(is_far, far, near) - 0.5 * jnp.where(is_high, 0, total)
    return jnp.where(is_high, above, below)


@continuous
def log_ray_in_the_plane(t: Array, across: Array, total: Array) -> Array:
    """The logarithm of integral_0^inf x e^(-(x - t)^2 / 2) dx, less across / 2; total = t^2 + across."""
    return _log_ray(t, 1, across, total)


@continuous
def log_ray_in_space(t: Array, across: Array, total: Array) -> Array:
    """The logarithm of integral_0^inf x^2 e^(-(x - t)^2 / 2) dx, less across / 2; total = t^2 + across."""
    return _log_ray(t, 2, across, total)


@continuous
def log_i0e(x: Array) -> Array:
    """The value log(I_0(x) e^-x), x >= 0."""
    is_large = x >= _FROM_BESSEL
    small, large = jnp.where(is_large, 1.0, x), jnp.where(is_large, x, _FROM_BESSEL)
    series = jnp.log1p(_polynomial((0.0, *_BESSEL), 1 / large))
    far = series - 0.5 * jnp.log(large) - HALF_LOG_2PI
    return jnp.where(is_large, far, jnp.log(i0e(small)))


@continuous
def log1p_square(x: Array) -> Array:
    """The value log(1 + x^2), where the square overflows too."""
    size = jnp.abs(x)
    is_large = size > 1e9
    near = jnp.log1p(jnp.where(is_large, 0, x) ** 2)
    return jnp.where(is_large, 2 * jnp.log(jnp.where(is_large, size, 1)), near)


@continuous
def log1mexp(x: Array) -> Array:
    """The value log(1 - e^-x), x > 0."""
    is_small = x < np.log(2)
    near = jnp.log(-jnp.expm1(-jnp.where(is_small, x, 1)))
    return jnp.where(is_small, near, jnp.log1p(-jnp.exp(-jnp.where(is_small, 1, x))))


@continuous
def log_sinhc(x: Array) -> Array:
    """The value log(sinh(x) / x)."""
    size = jnp.abs(x)
    is_small = size < 0.5
    near = jnp.where(is_small, size, 0) ** 2
    far = jnp.where(is_small, 1, size)
    series = near * _polynomial(
        (1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775, -691 / 3831077250, 2 / 127702575), near
    )
    return jnp.where(is_small, series, far + log1mexp(2 * far) - jnp.log(2 * far))
