"""Markov kernels that move particles at one temperature, tuned from the particles themselves.

A kernel acts on one particle, a point u of R^d, and leaves exp(log_density) invariant for every tuning. The tuning is a
pytree: a scale that learns from acceptance rates, and the spread of the particles.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ....ppl._precision import full_precision

Array = jax.Array
LogDensity = Callable[[Array], Array]


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

    Reference: Haario, Saksman and Tamminen 2001; scale 2.38 / sqrt(d) to start with, Roberts and Rosenthal 2001.
    """

    target_accept: float = 0.3

    @full_precision
    def spread(self, points: Array) -> Array:
        centred = points - points.mean(0, keepdims=True)
        covariance = centred.T @ centred / len(points)
        return cholesky(covariance)

    def init_scale(self, dimension: int) -> float:
        return 2.38 / dimension**0.5

    def step(
        self, key: Array, at: Standing, log_density: LogDensity, scale: Array, spread: Array
    ) -> tuple[Standing, Array]:
        noise_key, accept_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, at.point.shape)
        with full_precision():
            proposed = at.point + scale * spread @ noise
        new = self.start(proposed, log_density)
        return accept(accept_key, at, new, new.log_density - at.log_density)


@dataclasses.dataclass(frozen=True)
class HMC(Kernel):
    """Hamiltonian Monte Carlo with a fixed number of leapfrog steps and the particles' standard deviations as metric.

    With one leapfrog step it is MALA.

    Args:
        num_leapfrog: leapfrog steps of one move.
        target_accept: acceptance rate that the step size is adapted to.

    Reference: Neal 2011, arXiv:1206.1901.
    """

    num_leapfrog: int = 8
    target_accept: float = 0.75

    def spread(self, points: Array) -> Array:
        return points.std(0) + 1e-6

    def init_scale(self, dimension: int) -> float:
        return 1.0 / dimension**0.25 / self.num_leapfrog**0.5

    def start(self, point: Array, log_density: LogDensity) -> Standing:
        return Standing(point, *jax.value_and_grad(log_density)(point))

    def step(
        self, key: Array, at: Standing, log_density: LogDensity, scale: Array, spread: Array
    ) -> tuple[Standing, Array]:
        momentum_key, accept_key = jax.random.split(key)
        momentum = jax.random.normal(momentum_key, at.point.shape)

        # On the way slopes are enough; with values they would cost up to twice as much.
        slope_at = jax.grad(log_density)

        def leapfrog(state: Any, _: Any) -> tuple[Any, None]:
            u, p = state
            u = u + scale * spread * p
            return (u, p + scale * spread * slope_at(u)), None

        state = (at.point, momentum + 0.5 * scale * spread * at.slope)
        (u, p), _ = jax.lax.scan(leapfrog, state, length=self.num_leapfrog - 1)
        new = self.start(u + scale * spread * p, log_density)
        end = p + 0.5 * scale * spread * new.slope
        kinetic = 0.5 * ((momentum**2).sum() - (end**2).sum())
        return accept(accept_key, at, new, new.log_density - at.log_density + kinetic)


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

    Example:
        >>> import blackjax
        >>> from lapilli.inference.particles import moves
        >>> nuts = moves.BlackJAX(lambda f, step, variances: blackjax.nuts(f, step, variances))
        >>> fixed = moves.BlackJAX(lambda f, step, variances: blackjax.hmc(f, step, variances, num_integration_steps=5))

    Reference: Cabezas et al. 2024, BlackJAX, arXiv:2402.10797.
    """

    build: Callable[[LogDensity, Array, Array], Any]
    target_accept: float = 0.8
    first_step_size: float = 0.5

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


def cholesky(covariance: Array) -> Array:
    """Lower factor of a covariance estimate, which may be singular."""
    jitter = 1e-6 * (jnp.trace(covariance) / len(covariance) + 1e-6)
    return jnp.linalg.cholesky(covariance + jitter * jnp.eye(len(covariance)))


def acceptance(log_ratio: Array) -> Array:
    """Metropolis' probability min(1, ratio); a NaN ratio rejects."""
    return jnp.exp(jnp.minimum(jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio), 0.0))


def accept(key: Array, old: Any, new: Any, log_ratio: Array) -> tuple[Any, Array]:
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
