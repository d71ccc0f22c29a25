"""Censored laws: the logarithm of a probability beyond a value, below it, or between two, in the tail that is small."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import log_ndtr
from jaxtyping import ArrayLike, PyTree
from numpyro.distributions import censored

from ..._compat import asymmetric_laplace, validate_sample
from ._continuous import arrays
from ._incomplete import Logs, log_betas, log_gammas
from ._special import continuous, log1mexp
from ._tails import STANDARD, ratio
from ._truncated import Window

Array = jax.Array
_POINTS, _SHARES = np.polynomial.legendre.leggauss(16)
_NARROW = 0.5
type OneSided = dist.LeftCensoredDistribution | dist.RightCensoredDistribution


def _safe_log(p: Array, floor: float = 0.0) -> Array:
    return jnp.log(jnp.where(p > floor, p, 1))


@continuous
def log_halves(z: Array) -> Logs:
    """Log F and log(1 - F) of the standard HalfNormal law."""
    beyond = log_ndtr(-z) + np.log(2)
    below = jax.lax.erf(z / np.sqrt(2))
    is_far = z > 2
    log_below = jnp.where(is_far, log1mexp(jnp.where(is_far, -beyond, 1)), _safe_log(below))
    return jnp.where(z > 0, log_below, -jnp.inf), beyond


def _standard(base: dist.Normal, x: Array) -> Logs:
    law = STANDARD[type(base)]
    shape = [getattr(base, name) for name in law.names]
    z, *shape = arrays(ratio(x, base.loc, base.scale), *shape)
    return law.log_cdf(z, *shape), law.log_cdf(-z, *shape)


def _of_hazard[L](total: Callable[[L, Array], Array]) -> Callable[[L, Array], Logs]:
    """A function for log F and log(1 - F) of a law whose cumulative hazard is known."""

    def logs(base: L, x: Array) -> Logs:
        hazard = total(base, x)
        return log1mexp(hazard), -hazard

    return logs


def _gumbel(base: Any, x: Array) -> Logs:
    falling = jnp.exp((base.loc - x) / base.scale)
    return -falling, log1mexp(falling)


def _half_cauchy(base: dist.HalfCauchy, x: Array) -> Logs:
    z = x / base.scale
    half = 0.5 * np.pi
    return jnp.log(jnp.arctan(z) / half), jnp.log(jnp.arctan2(jnp.ones_like(z), z) / half)


def _gamma(base: dist.Gamma, x: Array) -> Logs:
    return log_gammas(*arrays(base.rate * x, base.concentration))


def _inverse_gamma(base: dist.InverseGamma, x: Array) -> Logs:
    return log_gammas(*arrays(base.rate / x, base.concentration))[::-1]


def _poisson(base: dist.Poisson, x: Array) -> Logs:
    return log_gammas(*arrays(base.rate, jnp.floor(x) + 1))[::-1]


def _uniform(base: Any, x: Array) -> Logs:
    width, inside = base.high - base.low, jnp.clip(x, base.low, base.high)
    return jnp.log((inside - base.low) / width), jnp.log((base.high - inside) / width)


def _beta(base: dist.Beta, x: Array) -> Logs:
    x, a, b = arrays(x, base.concentration1, base.concentration0)
    return log_betas(x, 1 - x, a, b)


def _gamma_poisson(base: dist.GammaPoisson, x: Array) -> Logs:
    k, c, rate = arrays(jnp.floor(x) + 1, base.concentration, base.rate)
    return log_betas(1 / (1 + 1 / rate), 1 / (1 + rate), c, k)


def _levy(base: Any, x: Array) -> Logs:
    return log_halves(jnp.sqrt(base.scale / (x - base.loc)))[::-1]


def _dagum(base: Any, x: Array) -> Logs:
    rise = base.sharpness * (jnp.log(base.scale) - jnp.log(x))
    below = -base.concentration * jax.nn.softplus(rise)
    return below, log1mexp(-below)


def _asymmetric_laplace(base: Any, x: Array) -> Logs:
    base = asymmetric_laplace(base)
    left, right = base.left_scale, base.right_scale
    z = x - base.loc
    low = jnp.log(left / (left + right)) + jnp.minimum(z, 0) / left
    high = jnp.log(right / (left + right)) - jnp.maximum(z, 0) / right
    is_low = z < 0
    return (
        jnp.where(is_low, low, log1mexp(-jnp.where(is_low, -1, high))),
        jnp.where(is_low, log1mexp(-jnp.where(is_low, low, -1)), high),
    )


def _mixture(base: Any, x: Array) -> Logs:
    log_weights = jax.nn.log_softmax(base.mixing_distribution.logits)
    parts = base.component_distribution
    below, beyond = log_probabilities(parts, x[..., None])
    return (
        jax.nn.logsumexp(log_weights + below, -1),
        jax.nn.logsumexp(log_weights + beyond, -1),
    )


def _from_cdf(base: dist.Distribution, x: Array) -> Logs:
    """Log F and log(1 - F) of a law of which F alone is known: no number where it leaves no digits."""
    below = base.cdf(x)
    beyond = 1 - below
    return jnp.log(below), jnp.where(
        beyond < 64 * jnp.finfo(beyond.dtype).eps, jnp.nan, jnp.log(beyond)
    )


KNOWN: Mapping[type, Callable[[Any, Array], Logs]] = {
    **dict.fromkeys(STANDARD, _standard),
    dist.Exponential: _of_hazard(lambda base, x: base.rate * x),
    dist.Weibull: _of_hazard(lambda base, x: (x / base.scale) ** base.concentration),
    dist.Gompertz: _of_hazard(lambda base, x: base.concentration * jnp.expm1(base.rate * x)),
    dist.Gumbel: _gumbel,
    dist.HalfNormal: lambda base, x: log_halves(x / base.scale),
    dist.HalfCauchy: _half_cauchy,
    dist.Gamma: _gamma,
    dist.Chi2: _gamma,
    dist.InverseGamma: _inverse_gamma,
    dist.Poisson: _poisson,
    dist.GammaPoisson: _gamma_poisson,
    dist.NegativeBinomial2: _gamma_poisson,
    dist.NegativeBinomialProbs: _gamma_poisson,
    dist.NegativeBinomialLogits: _gamma_poisson,
    dist.Uniform: _uniform,
    dist.Beta: _beta,
    dist.BetaProportion: _beta,
    dist.Levy: _levy,
    dist.Dagum: _dagum,
    dist.AsymmetricLaplace: _asymmetric_laplace,
    dist.AsymmetricLaplaceQuantile: _asymmetric_laplace,
    dist.MixtureSameFamily: _mixture,
}
# Without a smooth density between two values.
_ROUGH = (dist.AsymmetricLaplace, dist.AsymmetricLaplaceQuantile, dist.Uniform)


def _unwrapped(base: dist.Distribution, x: PyTree) -> tuple[dist.Distribution, PyTree, PyTree]:
    """The law behind monotone transforms, the value there, and the sign of their slope."""
    sign: PyTree = 1
    while type(base) is dist.ExpandedDistribution or (
        isinstance(base, dist.TransformedDistribution) and type(base) not in KNOWN
    ):
        if isinstance(base, dist.TransformedDistribution):
            for transform in reversed(base.transforms):
                sign = sign * transform.sign
                x = transform.inv(x)
        base = base.base_dist
    return base, x, sign


def _ordered(sign: int | Array, first: Array, second: Array) -> tuple[Array, Array]:
    """The two, in the other order where a sign is negative."""
    if isinstance(sign, int):
        return (second, first) if sign < 0 else (first, second)
    return jnp.where(sign < 0, second, first), jnp.where(sign < 0, first, second)


def _is_discrete(base: dist.Distribution) -> bool:
    return base.support is not None and base.support.is_discrete


def _feasible(base: dist.Distribution, value: Array) -> Array:
    """A value of a law's support; the value itself where NumPyro has lost the support."""
    return (
        value
        if base.support is None
        else jnp.asarray(base.support.feasible_like(value), value.dtype)
    )


def log_probabilities(base: dist.Distribution, value: ArrayLike) -> Logs:
    """Log F(x) and log(1 - F(x)) of a law at any value, infinite ones too."""
    value = jnp.asarray(value, jnp.result_type(float, value))
    is_finite = jnp.isfinite(value)
    inside = jnp.where(is_finite, value, _feasible(base, value))
    core, x, sign = _unwrapped(base, inside)
    below, beyond = _ordered(sign, *KNOWN.get(type(core), _from_cdf)(core, x))
    return (
        jnp.where(is_finite, below, jnp.where(value > 0, 0.0, -jnp.inf)),
        jnp.where(is_finite, beyond, jnp.where(value > 0, -jnp.inf, 0.0)),
    )


def log_between(base: dist.Distribution, low: Array, high: Array) -> Array:
    """log(F(high) - F(low)), low < high."""
    core, x, sign = _unwrapped(base, low)
    if type(core) in STANDARD:
        return Window(core, *_ordered(sign, x, _unwrapped(base, high)[1])).log_mass()
    (below_low, beyond_low), (below, beyond) = (log_probabilities(base, x) for x in (low, high))
    is_low = below < beyond_low
    larger, smaller = jnp.where(is_low, below, beyond_low), jnp.where(is_low, below_low, beyond)
    gap = larger - smaller
    is_narrow = gap < _NARROW
    if isinstance(core, _ROUGH) or _is_discrete(base):
        return larger + log1mexp(gap)
    wide = larger + log1mexp(jnp.where(is_narrow, 1, gap))
    width = jnp.where(is_narrow, high - low, 0)
    start = jnp.where(is_narrow, low, _feasible(base, low))
    points = [start + width * 0.5 * (1 + t) for t in _POINTS]
    heights = jnp.stack([base.log_prob(x) for x in points])
    shares = (_SHARES / 2).astype(heights.dtype).reshape(-1, *[1] * (heights.ndim - 1))
    narrow = jax.nn.logsumexp(heights, 0, b=shares) + jnp.log(jnp.where(is_narrow, high - low, 1))
    return jnp.where(is_narrow, narrow, wide)


def _two_inside(base: dist.Distribution, value: Array) -> tuple[Array, Array]:
    """Two values of a law's support, the first below the second."""
    first = _feasible(base, value)
    if base.support is None or _is_discrete(base):
        return first, first + 1
    ends = [dist.biject_to(base.support)(jnp.full_like(value, t)) for t in (0.0, 1.0)]
    return jnp.minimum(*ends), jnp.maximum(*ends)


def _one_sided(index: int) -> Callable[..., Array]:
    @validate_sample
    def log_prob(self: OneSided, value: ArrayLike) -> Array:
        value = jnp.asarray(value)
        inside = _feasible(self.base_dist, value)
        censored = log_probabilities(self.base_dist, jnp.where(self.censored, value, inside))
        seen = self.base_dist.log_prob(jnp.where(self.censored, inside, value))
        return jnp.where(self.censored, censored[index], seen)

    return log_prob


left, right = _one_sided(0), _one_sided(1)


@validate_sample
def interval(self: dist.IntervalCensoredDistribution, value: ArrayLike) -> Array:
    value = jnp.asarray(value, jnp.result_type(float, value))
    base, (low, high) = self.base_dist, (value[..., 0], value[..., 1])
    is_left, is_right = (
        self.left_censored & ~self.right_censored,
        self.right_censored & ~self.left_censored,
    )
    is_outside = self.left_censored & self.right_censored
    # Relatively: NumPyro takes all intervals below 1e-8 for points.
    is_point = ~self.left_censored & ~self.right_censored & jnp.isclose(low, high, atol=0)
    is_between = ~(self.left_censored | self.right_censored | is_point)
    inside, more = _two_inside(base, low)
    log_between_them = log_between(
        base, jnp.where(is_between, low, inside), jnp.where(is_between, high, more)
    )
    below_low, beyond_low = log_probabilities(base, jnp.where(is_right | is_outside, low, inside))
    below_high, beyond_high = log_probabilities(base, jnp.where(is_left | is_outside, high, more))
    at_point = base.log_prob(jnp.where(is_point, low, inside))
    return jnp.select(
        [is_left, is_right, is_outside, is_point],
        [below_high, beyond_low, jnp.logaddexp(below_low, beyond_high), at_point],
        log_between_them,
    )


_PROMOTED = censored.promote_shapes


def promoted(*args: ArrayLike, shape: tuple[int, ...] = ()) -> list[PyTree]:
    """Arrays with more axes in front; one that has axes of events (of the Dirichlet law in a Beta one) stays as it is."""
    try:
        return _PROMOTED(*args, shape=shape)
    except ValueError:
        if len(args) != 1 or jnp.ndim(args[0]) < len(shape):
            raise
        return list(args)


OURS = (
    (dist.RightCensoredDistribution, "log_prob", right),
    (dist.LeftCensoredDistribution, "log_prob", left),
    (dist.IntervalCensoredDistribution, "log_prob", interval),
)
