"""Markov kernels that move particles at one temperature, tuned from the particles themselves.

A kernel acts on one particle, a point u of R^d, and leaves exp(log_density) invariant for every tuning. The tuning is a
pytree: a scale that learns from acceptance rates, and the spread of the particles.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
LogDensity = Callable[[Array], Array]


class Kernel(abc.ABC):
    """Abstract: a tuned Markov kernel.

    Attributes:
        target_accept: acceptance rate that the scale is adapted to.
    """

    target_accept: float

    @abc.abstractmethod
    def spread(self, points: Array) -> Array:
        """What the kernel uses of equally weighted points [particles, d]."""

    @abc.abstractmethod
    def init_scale(self, dimension: int) -> float:
        """The scale to start with."""

    @abc.abstractmethod
    def step(
        self, key: Array, point: Array, log_density: LogDensity, scale: Array, spread: Array
    ) -> tuple[Array, Array]:
        """One move; returns the new point and the acceptance probability."""


@dataclasses.dataclass(frozen=True)
class RandomWalk(Kernel):
    """Random-walk Metropolis: u' = u + scale * L eps, L L' the particles' covariance.

    Reference: Haario, Saksman and Tamminen 2001; scale 2.38 / sqrt(d) to start with, Roberts and Rosenthal 2001.
    """

    target_accept: float = 0.3

    def spread(self, points: Array) -> Array:
        centred = points - points.mean(0)
        covariance = centred.T @ centred / len(points)
        return cholesky(covariance)

    def init_scale(self, dimension: int) -> float:
        return 2.38 / dimension**0.5

    def step(
        self, key: Array, point: Array, log_density: LogDensity, scale: Array, spread: Array
    ) -> tuple[Array, Array]:
        noise_key, accept_key = jax.random.split(key)
        proposed = point + scale * spread @ jax.random.normal(noise_key, point.shape)
        return accept(accept_key, point, proposed, log_density(proposed) - log_density(point))


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

    def step(
        self, key: Array, point: Array, log_density: LogDensity, scale: Array, spread: Array
    ) -> tuple[Array, Array]:
        momentum_key, accept_key = jax.random.split(key)
        momentum = jax.random.normal(momentum_key, point.shape)
        energy = jax.value_and_grad(log_density)
        start, slope = energy(point)

        def leapfrog(state: Any, _: Any) -> tuple[Any, None]:
            u, p, _, slope = state
            p = p + 0.5 * scale * spread * slope
            u = u + scale * spread * p
            value, slope = energy(u)
            return (u, p + 0.5 * scale * spread * slope, value, slope), None

        state = (point, momentum, start, slope)
        (new, end, value, _), _ = jax.lax.scan(leapfrog, state, length=self.num_leapfrog)
        kinetic = 0.5 * (jnp.vdot(momentum, momentum) - jnp.vdot(end, end))
        return accept(accept_key, point, new, value - start + kinetic)


def MALA(target_accept: float = 0.57) -> HMC:
    """Metropolis-adjusted Langevin: `HMC` with one leapfrog step."""
    return HMC(1, target_accept)


def cholesky(covariance: Array) -> Array:
    """Lower factor of a covariance estimate, which may be singular."""
    jitter = 1e-6 * (jnp.trace(covariance) / len(covariance) + 1e-6)
    return jnp.linalg.cholesky(covariance + jitter * jnp.eye(len(covariance)))


def acceptance(log_ratio: Array) -> Array:
    """Metropolis' probability min(1, ratio); a NaN ratio rejects."""
    return jnp.exp(jnp.minimum(jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio), 0.0))


def accept(key: Array, old: Array, new: Array, log_ratio: Array) -> tuple[Array, Array]:
    """Metropolis' choice between two points; a NaN ratio rejects."""
    probability = acceptance(log_ratio)
    return jnp.where(jax.random.uniform(key) < probability, new, old), probability
