"""Markov kernels that move particles at one temperature, tuned from the particles themselves.

A kernel acts on one particle, a point u of R^d, and leaves exp(log_density) invariant for every tuning. The tuning is a
pytree: a scale that learns from acceptance rates, and the spread of the particles.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ....ppl._checks import check_counts
from ....ppl._precision import full_precision

Array = jax.Array
LogDensity = Callable[[Array], Array]
MAX_DENSE = 128  # coordinates up to which moves follow correlations


class Standing(NamedTuple):
    """Where a chain stands, with what a move needs to know there, so that nothing is evaluated twice.

    Attributes:
        point: [d].
        log_density: at the point.
        slope: its gradient there, None for kernels that use none.
    """

    point: Array
    log_density: Array
    slope: Any


class Kernel(abc.ABC):
    """Abstract: a tuned Markov kernel on points u [d].

    A subclass says what it learns from particles (`spread`), its scale to start with (`init_scale`), and how it moves (`step`);
    one that moves along slopes puts them into `start`. Between moves the scale is adapted until moves are accepted at the rate
    `target_accept`.

    Attributes:
        target_accept: acceptance rate that the scale is adapted to.

    Example:
        >>> import jax
        >>> from lapilli.inference.particles import moves
        >>> class Cube(moves.RandomWalk):
        ...     "Uniform steps."
        ...     def step(self, key, at, log_density, scale, spread):
        ...         step_key, accept_key = jax.random.split(key)
        ...         leap = jax.random.uniform(step_key, at.point.shape, minval=-1.0, maxval=1.0)
        ...         new = self.start(at.point + scale * spread @ leap, log_density)
        ...         return moves.accept(accept_key, at, new, new.log_density - at.log_density)

    Validity: `step` must leave exp(log_density) invariant at every scale and spread; nothing checks that it does.
    """

    target_accept: float

    @abc.abstractmethod
    def spread(self, points: Array) -> Array:
        """What the kernel uses of the particles.

        Args:
            points: [particles, d], equally weighted.

        Returns:
            What `step` gets as its `spread`, an array.
        """

    @abc.abstractmethod
    def init_scale(self, dimension: int) -> float:
        """The scale to start with.

        Args:
            dimension: d.

        Returns:
            A positive number.
        """

    def start(self, point: Array, log_density: LogDensity) -> Standing:
        """A chain at a point; again whenever the density changes.

        Args:
            point: [d].
            log_density: of the target, up to a constant.

        Returns:
            A `Standing`.
        """
        return Standing(point, log_density(point), None)

    @abc.abstractmethod
    def step(
        self, key: Array, at: Standing, log_density: LogDensity, scale: Array, spread: Array
    ) -> tuple[Standing, Array]:
        """One move.

        Args:
            key: PRNG key.
            at: where the chain stands.
            log_density: of the target, up to a constant.
            scale: learnt from acceptance rates, a scalar.
            spread: what `spread` made of the particles.

        Returns:
            Where the chain stands then, and the probability with which the move was accepted.
        """


@dataclasses.dataclass(frozen=True)
class RandomWalk(Kernel):
    """Random-walk Metropolis: u' = u + scale * L eps, L L' the particles' covariance.

    Args:
        target_accept: rate of acceptance that `scale` is adapted to.

    Raises:
        ValueError: `target_accept` is outside of (0, 1).

    Reference: Haario, Saksman and Tamminen 2001; scale 2.38 / sqrt(d) to start with, Roberts and Rosenthal 2001.
    """

    target_accept: float = 0.3

    def __post_init__(self) -> None:
        _check_rate(self)

    def spread(self, points: Array) -> Array:
        return root_of(points)

    def init_scale(self, dimension: int) -> float:
        return 2.38 / dimension**0.5

    def step(
        self, key: Array, at: Standing, log_density: LogDensity, scale: Array, spread: Array
    ) -> tuple[Standing, Array]:
        noise_key, accept_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, at.point.shape)
        new = self.start(at.point + scale * along(spread, noise), log_density)
        return accept(accept_key, at, new, new.log_density - at.log_density)


@dataclasses.dataclass(frozen=True)
class HMC(Kernel):
    """Hamiltonian Monte Carlo with a fixed number of leapfrog steps and the particles' covariance as metric.

    With LL' that covariance a move is one of u = L v in the coordinates v: what is narrow or correlated is round there. One move
    in two has the step size `scale`, but for a draw of 0.6 to 1 without which a path might end where it began; the other's is
    log-uniform between 0.03 and 1 of it, for regions that are narrow beyond what one covariance tells (the neck of a funnel).
    With one leapfrog step it is MALA.

    Args:
        num_leapfrog: leapfrog steps of one move.
        target_accept: acceptance rate that the step size is adapted to.

    Raises:
        ValueError: no leapfrog step, or `target_accept` is outside of (0, 1).

    Reference: Neal 2011, arXiv:1206.1901, sections 3.2 and 4.1.
    """

    num_leapfrog: int = 8
    target_accept: float = 0.75

    def __post_init__(self) -> None:
        check_counts(type(self).__name__, num_leapfrog=self.num_leapfrog)
        _check_rate(self)

    def spread(self, points: Array) -> Array:
        return root_of(points)

    def init_scale(self, dimension: int) -> float:
        return 1.0 / dimension**0.25 / self.num_leapfrog**0.5

    def start(self, point: Array, log_density: LogDensity) -> Standing:
        return Standing(point, *jax.value_and_grad(log_density)(point))

    def step(
        self, key: Array, at: Standing, log_density: LogDensity, scale: Array, spread: Array
    ) -> tuple[Standing, Array]:
        momentum_key, size_key, accept_key = jax.random.split(key, 3)
        momentum = jax.random.normal(momentum_key, at.point.shape)
        size = scale * _step_size(size_key)

        # On the way slopes are enough; with values they would cost up to twice as much.
        slope_at = jax.grad(log_density)

        def leapfrog(state: PyTree, _: PyTree) -> tuple[PyTree, None]:
            u, p = state
            u = u + size * along(spread, p)
            return (u, p + size * across(spread, slope_at(u))), None

        state = (at.point, momentum + 0.5 * size * across(spread, at.slope))
        (u, p), _ = jax.lax.scan(leapfrog, state, length=self.num_leapfrog - 1)
        new = self.start(u + size * along(spread, p), log_density)
        end = p + 0.5 * size * across(spread, new.slope)
        kinetic = 0.5 * ((momentum**2).sum() - (end**2).sum())
        return accept(accept_key, at, new, new.log_density - at.log_density + kinetic)


def _step_size(key: Array) -> Array:
    """A draw of the step size, as a part of the largest one."""
    u = 2 * jax.random.uniform(key)
    return jnp.where(u < 1, jnp.exp(math.log(0.03) * u), 0.6 + 0.4 * (u - 1))


def MALA(target_accept: float = 0.57) -> HMC:
    """Metropolis-adjusted Langevin: `HMC` with one leapfrog step.

    Args:
        target_accept: rate of acceptance that the step size is adapted to.
    """
    return HMC(1, target_accept)


@dataclasses.dataclass(frozen=True)
class BlackJAX(Kernel):
    """A kernel of BlackJAX, tuned like the others: its step size from acceptance rates, its metric from the particles.

    Args:
        build: `(log_density, step_size, variances [d]) -> algorithm` with `init(point)` and `step(key, state) -> (state, info)`,
            where the state has `position` and `logdensity` and info has `acceptance_rate`. Anything else that it uses has to be
            fixed: it must leave exp(log_density) invariant at every step size.
        target_accept: acceptance rate that the step size is adapted to.
        first_step_size: step size at the first temperature.

    Raises:
        ValueError: `target_accept` is outside of (0, 1), or `first_step_size` is not positive.

    Example:
        >>> import blackjax
        >>> from lapilli.inference.particles import moves
        >>> nuts = moves.BlackJAX(lambda f, step, variances: blackjax.nuts(f, step, variances))
        >>> fixed = moves.BlackJAX(lambda f, step, variances: blackjax.hmc(f, step, variances, num_integration_steps=5))

    Reference: Cabezas et al. 2024, BlackJAX, arXiv:2402.10797.
    """

    build: Callable[[LogDensity, Array, Array], PyTree]
    target_accept: float = 0.8
    first_step_size: float = 0.5

    def __post_init__(self) -> None:
        _check_rate(self)
        if not self.first_step_size > 0:
            raise ValueError(
                f"BlackJAX: first_step_size must be positive, got {self.first_step_size}. Give the step size to begin with."
            )

    def spread(self, points: Array) -> Array:
        return points.var(0) + 1e-12

    def init_scale(self, dimension: int) -> float:
        return self.first_step_size

    def step(
        self, key: Array, at: Standing, log_density: LogDensity, scale: Array, spread: Array
    ) -> tuple[Standing, Array]:
        algorithm = self.build(log_density, scale, spread)
        state, info = algorithm.step(key, algorithm.init(at.point))
        return Standing(state.position, state.logdensity, None), info.acceptance_rate


def _check_rate(kernel: Kernel) -> None:
    """Refuse a rate that no scale has: adapted to it, the scale would go to zero, or without bound."""
    if not 0 < kernel.target_accept < 1:
        raise ValueError(
            f"{type(kernel).__name__}: target_accept must lie in (0, 1), got {kernel.target_accept}. Give the share of moves "
            "that are to be accepted, e.g. 0.3."
        )


@full_precision
def root_of(points: Array) -> Array:
    """L [d, d] with LL' the covariance of points [particles, d]; beyond `MAX_DENSE` coordinates their standard deviations, [d].

    A QR factor of the points themselves: a covariance of condition 1e8 has lost its digits in single precision, its root has
    not. While there are ten points for each coordinate it is the covariance as it is, which fits any linear map of the
    coordinates. With fewer its correlations shrink towards 0, at two for each by the share
    sum (1 - r^2)^2 / (n sum r^2) of Schaefer and Strimmer 2005.
    """
    num, dimension = points.shape
    centred = points - points.mean(0)
    largest = jnp.maximum(jnp.abs(centred).max(0), jnp.finfo(points.dtype).tiny)
    scales = largest * jnp.sqrt(
        ((centred / largest) ** 2).mean(0)
    )  # squares of 1e20 would overflow
    # Points that are all alike still get a step, of what their last digits can tell.
    scales = jnp.maximum(scales, jnp.finfo(points.dtype).eps * (jnp.abs(points[0]) + 1e-6))
    if dimension > MAX_DENSE:
        return scales
    unit = centred / scales / math.sqrt(num)
    squares = (unit.T @ unit) ** 2
    off = ~jnp.eye(dimension, dtype=bool)
    noise = jnp.where(off, (1 - squares) ** 2, 0.0).sum() / num
    share = jnp.minimum(noise / jnp.maximum(jnp.where(off, squares, 0.0).sum(), noise + 1e-30), 1.0)
    share = share * min(max(dimension / num - 0.1, 0.0) / 0.4, 1.0)
    share = jnp.maximum(share, 1e-10)
    stacked = jnp.concatenate([jnp.sqrt(1 - share) * unit, jnp.sqrt(share) * jnp.eye(dimension)])
    return scales[:, None] * jnp.linalg.qr(stacked, mode="r").T


@full_precision
def along(spread: Array, v: Array) -> Array:
    """L v, for a factor L or the diagonal of one."""
    return spread @ v if spread.ndim == 2 else spread * v


@full_precision
def across(spread: Array, v: Array) -> Array:
    """L' v."""
    return v @ spread if spread.ndim == 2 else spread * v


def cholesky(covariance: Array) -> Array:
    """Lower factor of a covariance estimate, which may be singular."""
    jitter = 1e-6 * (jnp.trace(covariance) / len(covariance) + 1e-6)
    return jnp.linalg.cholesky(covariance + jitter * jnp.eye(len(covariance)))


def acceptance(log_ratio: Array) -> Array:
    """Metropolis' probability min(1, ratio); a NaN ratio rejects."""
    return jnp.exp(jnp.minimum(jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio), 0.0))


def accept(key: Array, old: object, new: object, log_ratio: Array) -> tuple[PyTree, Array]:
    """Metropolis' choice between two points, or pytrees of one structure.

    Args:
        key: PRNG key, used for nothing else.
        old: where the chain stands.
        new: what is proposed.
        log_ratio: log of p(new) q(new, old) / (p(old) q(old, new)), for a proposal law q(from, to); NaN rejects.

    Returns:
        One of both, and the probability min(1, ratio) of the new one.

    Validity: p is left invariant if `log_ratio` is that of the law which `new` was drawn from.
    """
    probability = acceptance(log_ratio)
    is_taken = jax.random.uniform(key) < probability
    return jax.tree.map(lambda a, b: jnp.where(is_taken, a, b), new, old), probability
