"""The variational bound of a diffusion model on log p(x), in nats, and the denoising error, which is none.

With gamma = log(variance / alpha^2), which grows with the time, and x_t = alpha x + std eps,

    log p(x) >= -KL(Normal(alpha_T x, variance_T) || Normal(0, variance_T)) - d/2 log(2 pi e variance_s / alpha_s^2) - loss,
    loss = 1/2 int_s^T E|eps - eps^(x_t, t)|^2 d gamma        in continuous time,
    loss = sum_n E KL(q(x_{n+1} | x_n, x) || p(x_{n+1} | x_n))                          along t_0 = T > ... > t_N = s,

where eps^ = -std score is the predicted noise. The second line is the mean of log p(path, x) / q(path | x) of the chain that
`reverse_chain` and `law` are; the first its limit of many steps. The chain's kernels have the mean of `ancestral` and the
variance

    u = v + c^2 rho,   v = Var(x_{n+1} | x_n, x),   c = d E[x_{n+1} | x_n, x] / dx,   rho = Var(x | x_n),

the last under data of the law Normal(0, l), l variance / (l alpha^2 + variance) at t_n. With l the data variance the chain is
exact for such data at any step. The two choices of DDPM are l = 0, right for data at one point, and l = 1. A smooth density looks
even at small noise, where rho is the noise's own variance at any l > 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ...inference.diffusion import Diffusion, Noising
from ...ppl._checks import check_counts
from ...ppl._compat import ArrayLike, is_concrete, typed_key
from ._grid import check_chain, check_data_variance, gamma, point_shape, reverse_variance
from ._networks import level_values
from ._samplers import time_of


def bound(
    diffusion: Diffusion,
    x: Float[Array, "*shape"],
    key: Array,
    *,
    num_times: int | None = None,
    times: Float[Array, " steps+1"] | None = None,
    data_variance: Float[Array, "*shape"] | float = 1.0,
    at: float | None = None,
    importance: Float[Array, " bins"] | None = None,
    levels: Float[ArrayLike, " levels"] | None = None,
) -> Float[Array, "*batch"]:
    """An unbiased estimate of the variational lower bound on log p(x), in nats, with gradients in the network and in x.

    With `levels` x is discrete and p a probability: the last step draws one level of each coordinate,

        p(x_i = v | x_s)  in proportion to  Normal(x_si; alpha_s v, variance_s).

    Args:
        diffusion: the model.
        x: points, with any leading axes; each has its own noise. The same key gives the same noise and times to another model
            (paired differences).
        key: PRNG key.
        num_times: noise levels drawn for each point, stratified; 16 by default, or all steps of `times`.
        times: a descending grid of times: the bound of the chain along it. None: continuous time, with levels uniform in gamma,
            which is the bound's own weight.
        data_variance: l >= 0 of the chain's variances, a number or one for each coordinate; continuous time has none.
        at: the time s > 0 at which the noise ends, in continuous time; the last of `noising.times` by default.
        importance: weights > 0 of equal bins of gamma, from s to T, in proportion to which times are drawn instead; the estimate
            stays unbiased, and varies less where they follow the spread of its terms.
        levels: all values that a coordinate may have, e.g. the grey levels of pixels. The end s should leave their gap some
            standard deviations: with more noise the last step guesses, which is bounded too.

    Returns:
        One number for each point, nats.

    Raises:
        ValueError: noise that is not Normal; points that are trees or have another shape; times that do not descend or end
            without noise; a `data_variance` of another shape, or below 0; `times` together with `at` or `importance`; weights
            that are not positive numbers; levels that are not two or more different numbers, or a coordinate at none of them
            (under `jax.jit` the bound of that point is NaN).

    Validity: the mean over noise and times is the right side at any score, learned or not; it is a lower bound of the log
    density of x itself, for the chain along `times`, or for the reverse diffusion (`euler_maruyama` with short steps) followed
    by x ~ Normal(x_s / alpha_s, variance_s / alpha_s^2), or of its probability, followed by the draw of levels. It is tight for
    the true score and s near 0. Densities and probabilities do not compare: the former bounds the latter after uniform noise of
    a level's width is added to x. The exponential of an estimate is biased: for weights use `law` or `reverse_chain`. With
    times in single precision, log(variance / alpha^2) has to move visibly between them: s not below 1e-6.

    Example:
        >>> import jax, math
        >>> from lapilli.models import diffusion
        >>> model = diffusion.gaussian_mixture(diffusion.EDM(), [1.0], [[0.0]], 1.0)  # Normal(0, 1)
        >>> estimate = diffusion.bound(model, jax.numpy.array([0.0]), jax.random.key(0), num_times=1000)
        >>> print(f"{estimate:.2f} of {-0.5 * math.log(2 * math.pi):.2f}")
        -0.92 of -0.92

    Reference: Kingma, Salimans, Poole and Ho 2021, arXiv:2107.00630, equations 11 to 17; levels: section 3.3.
    """
    shape = _check("bound", diffusion, x)
    grid = None if levels is None else _level_grid(levels, x)
    noising = diffusion.noising
    if times is not None:
        if at is not None or importance is not None:
            raise ValueError(
                "bound: times are a grid, whose last time and steps say what at= and importance= do in continuous time. Give "
                "times alone, or leave them out."
            )
        placed, num, ends = _steps(noising, times, num_times, data_variance, shape)
    else:
        placed, num, ends = _continuous(noising, at, num_times, importance, shape)

    def one(x: Array, key: Array) -> Array:
        time_key, noise_key, level_key = jax.random.split(key, 3)
        t, weight, constant = placed(_strata(time_key, num))
        errors, noise = squared_errors(diffusion, x, noise_key, t)
        # Near the data nothing is predicted, and the error is that of the noise itself, whose mean is known: what is left of it
        # for normal data of unit variance is taken out.
        share = jax.vmap(lambda t: jnp.square(1 / (1 + jnp.exp(gamma(noising, t)))))(t)
        each = errors - share.reshape(-1, *(1 for _ in shape)) * (noise - 1)
        loss = jnp.sum(weight * each) / num + constant
        far = 0.5 * jnp.exp(-ends[0]) * jnp.sum(jnp.square(x))
        near = 0.5 * x.size * (math.log(2 * math.pi) + 1 + ends[1])
        if grid is not None:
            near = _level_surprise(x, grid, ends[1], level_key)
        return -far - near - loss

    return _over_points(one, x, typed_key(key), shape)


def denoising_errors(
    diffusion: Diffusion,
    x: Float[Array, "*shape"],
    key: Array,
    *,
    num_times: int = 16,
    at: float | None = None,
) -> tuple[Float[Array, " times"], Float[Array, "*batch times"]]:
    """Squared errors |eps - eps^(x_t, t)|^2 at times even in the process's own time, without weights. They bound nothing.

    Their mean is what a network is often trained on, and what classifies by "the least denoising error". For log p use `bound`.

    Args:
        diffusion: the model.
        x: points, with any leading axes.
        key: PRNG key; the same key gives the same noise to another model.
        num_times: number of times, the middles of as many equal parts of [s, T].
        at: the time s; the last of `noising.times` by default.

    Returns:
        gamma = log(variance / alpha^2) at the times, ascending, and the errors.

    Raises:
        ValueError: as `bound`.

    Reference: Ho, Jain and Abbeel 2020, arXiv:2006.11239, equation 14.
    """
    shape = _check("denoising_errors", diffusion, x)
    check_counts("denoising_errors", num_times=num_times)
    first = _last_time("denoising_errors", diffusion.noising, at)
    t = first + (jnp.arange(num_times) + 0.5) / num_times * (diffusion.noising.end - first)
    gammas = jax.vmap(lambda t: gamma(diffusion.noising, t))(t)
    axes = tuple(range(1, 1 + len(shape)))
    one = lambda x, key: squared_errors(diffusion, x, key, t)[0].sum(axes)
    return gammas, _over_points(one, x, typed_key(key), shape)


def _continuous(
    noising: Noising, at: PyTree, num_times: int | None, importance: PyTree, shape: tuple[int, ...]
) -> tuple[Callable[..., PyTree], int, Array]:
    """In continuous time: from places in [0, 1] to times, weights and a constant; the number of places; gamma at both ends."""
    num = 16 if num_times is None else num_times
    check_counts("bound", num_times=num)
    with jax.ensure_compile_time_eval():
        first = _last_time("bound", noising, at)
        ends = jnp.stack([gamma(noising, t) for t in (noising.end, first)])
    if not is_concrete(ends):
        raise ValueError(
            "bound: the noising process must be known numbers, and depends on a traced value here: the levels are even in gamma, "
            "and a derivative would miss how their times move. Make it outside of jax.jit and jax.grad, or learn it by a chain, "
            "times=."
        )
    log_bins = None if importance is None else _log_bins(importance)

    def placed(u: Array) -> tuple[Array, Array, float]:
        place, weight = (u, jnp.ones_like(u)) if log_bins is None else _placed(u, log_bins)
        at = ends[1] + place * (ends[0] - ends[1])
        found = jax.vmap(lambda g: time_of(noising, jnp.exp(0.5 * g)))(at)
        weight = 0.5 * (ends[0] - ends[1]) * weight
        return found, weight.reshape(-1, *(1 for _ in shape)), 0.0

    return placed, num, ends


def _steps(
    noising: Noising,
    times: Array,
    num_times: int | None,
    data_variance: object,
    shape: tuple[int, ...],
) -> tuple[PyTree, int, Array]:
    """In a chain, whose steps are drawn: from places in [0, 1] to steps, weights, a constant; their number; gamma at the ends."""
    times = check_chain("bound", noising, times)
    check_data_variance("bound", data_variance, shape)
    num_steps = len(times) - 1
    num = num_steps if num_times is None else num_times
    check_counts("bound", num_times=num)
    of_step = lambda t, s: _weight(noising, t, s, data_variance, shape)
    weights, constants = jax.vmap(of_step)(times[:-1], times[1:])

    def placed(u: Array) -> tuple[Array, Array, PyTree]:
        n = jnp.minimum(jnp.floor(u * num_steps).astype(int), num_steps - 1)
        return times[n], num_steps * weights[n], constants.sum()

    return placed, num, jnp.stack([gamma(noising, t) for t in (times[0], times[-1])])


def squared_errors(
    diffusion: Diffusion, x: Array, key: Array, t: Float[Array, " times"]
) -> tuple[Array, Array]:
    """(eps - eps^(x_t, t))^2 of one point, with noise of its own at each time, and eps^2; [times, *shape]."""
    noising = diffusion.noising
    eps = jax.random.normal(key, (len(t), *x.shape), x.dtype)

    def one(t: Array, eps: Array) -> Array:
        std = noising.std(t)
        return jnp.square(eps + std * diffusion.score_at(noising.alpha(t) * x + std * eps, t))

    return jax.vmap(one)(t, eps), jnp.square(eps)


def _weight(
    noising: Noising, t: Array, s: Array, data_variance: object, shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """The factor of each coordinate's squared error in a step's divergence, and what does not depend on the error."""
    narrow, slope, wide = reverse_variance(noising, t, s, data_variance)
    wide = jnp.broadcast_to(wide, shape)
    ratio = narrow / wide
    factor = 0.5 * slope**2 * jnp.exp(gamma(noising, t)) / wide
    return factor, 0.5 * jnp.sum(ratio - 1 - jnp.log(ratio))


def _check(name: str, diffusion: Diffusion, x: PyTree) -> tuple[int, ...]:
    shape = point_shape(name, diffusion)
    found = jnp.shape(x)
    if found[len(found) - len(shape) :] != shape:
        raise ValueError(
            f"{name}: x has shape {found}, and its last axes must be those of a point, {shape}. Reshape x."
        )
    return shape


def _last_time(name: str, noising: Noising, at: float | None) -> PyTree:
    if at is None:
        return noising.times(1)[-1]
    if not 0 < at < noising.end:
        raise ValueError(
            f"{name}: at={at:g} must lie between 0 and the end {noising.end:g} of the process, both excluded. Use a small time, "
            "e.g. 1e-4."
        )
    return at


def _level_grid(levels: PyTree, x: Array) -> Array:
    """The levels as a vector; refuses what is known to be no level."""
    found = level_values("bound", levels)
    grid = jnp.asarray(found)
    if is_concrete(x):
        with jax.ensure_compile_time_eval():  # what is known stays so within jit
            away = np.asarray(~_is_level(jnp.asarray(x, float), jnp.asarray(found))[0])
        if away.any():
            raise ValueError(
                f"bound: {away.sum()} of {away.size} coordinates of x lie at none of the {len(found)} levels, and have no "
                "probability. Round x to them, or leave levels= out for a density."
            )
    return grid


def _is_level(x: Array, grid: Array) -> tuple[Array, Array]:
    """Whether each coordinate is a level, up to rounding, and the number of the nearest."""
    gaps = jnp.abs(x[..., None] - grid)
    gap = jnp.min(jnp.diff(jnp.sort(grid)))
    return gaps.min(-1) < 1e-3 * gap, gaps.argmin(-1)


def _level_surprise(x: Array, grid: Array, last: Array, key: Array) -> Array:
    """-log p(x | x_s), with noise of its own; `last` is gamma at s. NaN for what is no level."""
    is_level, number = _is_level(x, grid)
    std = jnp.exp(0.5 * last)
    y = x + std * jax.random.normal(key, x.shape, x.dtype)
    log_probs = jax.nn.log_softmax(-0.5 * jnp.square((y[..., None] - grid) / std), -1)
    found = jnp.take_along_axis(log_probs, number[..., None], -1)
    return jnp.where(is_level.all(), -found.sum(), jnp.nan)


def _strata(key: Array, num: int) -> Float[Array, " num"]:
    """One uniform number in each of as many equal parts of [0, 1]."""
    return (jnp.arange(num) + jax.random.uniform(key, (num,))) / num


def _log_bins(importance: list[float]) -> Array:
    """Log probabilities of the bins; NaN where a weight that is known by the run only is not positive."""
    shape, known = np.shape(importance), is_concrete(importance)
    is_right = len(shape) == 1 and shape[0] > 0
    if is_right and known:
        weights = np.asarray(importance, float)
        is_right = bool(np.all(np.isfinite(weights)) and np.all(weights > 0))
    if not is_right:
        raise ValueError(
            f"bound: importance must be a vector of positive weights, one for each of equal bins of gamma, got shape {shape} or "
            "a weight that is not positive. Without weight a bin's part of the bound would be lost: add a small number."
        )
    weights = jnp.asarray(importance, float)
    return jnp.log(weights) - jnp.log(weights.sum()) + jnp.where(weights.min() > 0, 0.0, jnp.nan)


def _placed(u: Array, log_bins: Array) -> tuple[Array, Array]:
    """Places in [0, 1] by the piecewise even law of the bins, and one over their density."""
    num, probs = len(log_bins), jnp.exp(log_bins)
    ends = jnp.cumsum(probs)
    n = jnp.minimum(jnp.searchsorted(ends, u, side="right"), num - 1)
    inside = jnp.clip((u - (ends[n] - probs[n])) / probs[n], 0.0, 1.0)
    return (n + inside) / num, 1 / (num * probs[n])


def _over_points(
    one: Callable[..., PyTree], x: PyTree, key: Array, shape: tuple[int, ...]
) -> Array:
    x = jnp.asarray(x, float)
    batch = x.shape[: x.ndim - len(shape)]
    flat = x.reshape(math.prod(batch), *shape)
    found = jax.vmap(one)(flat, jax.random.split(key, len(flat)))
    return found.reshape(*batch, *found.shape[1:])
