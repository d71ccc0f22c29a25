"""Moves of a program's parameters given its states, for Gibbs sampling.

A kernel moves the parameters in unconstrained coordinates u, with density

    log p(theta(u), states, data) + log |d theta / d u|.

During warmup its scale follows its acceptance rate and its spread the chain's covariance; then both are fixed.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .... import ppl
from ..moves import Kernel, Standing, cholesky
from ._parameters import Parameters

Array = jax.Array


class Tuned(NamedTuple):
    """The parameters' place [d], and what their kernel has learnt.

    Attributes:
        point: unconstrained coordinates.
        log_scale: of the kernel.
        mean: of the chain.
        covariance: of the chain.
    """

    point: Array
    log_scale: Array
    mean: Array
    covariance: Array


@dataclasses.dataclass(frozen=True)
class ParameterMoves:
    """Parameters given states.

    Attributes:
        program: the model.
        args: its arguments.
        space: its parameters.
        kernel: moves of u.
        num_moves: number of moves in a row.
    """

    program: ppl.Program
    args: tuple[PyTree, ...]
    space: Parameters
    kernel: Kernel
    num_moves: int

    def start(self, key: Array, choices: dict[str, Array]) -> Tuned:
        """At the values of `choices`, the spread from the prior."""
        point, dimension = self.space.coordinates(choices), self.space.dimension
        log_scale = jnp.log(jnp.asarray(self.kernel.init_scale(dimension)))
        return Tuned(point, log_scale, point, self.space.prior_covariance(key))

    def __call__(self, key: Array, tuned: Tuned, states: dict[str, Array], gain: Array) -> Tuned:
        """New parameters; `gain` is the size of adaptation's step, 0 after warmup."""
        spread = self.kernel.spread(_points(tuned))

        def log_density(point: Array) -> Array:
            choices = {**self.space.values(point), **states}
            joint = self.program.log_density(choices, *self.args)
            return joint + self.space.log_jacobian(point)

        def move(at: Standing, key: Array) -> tuple[Standing, Array]:
            return self.kernel.step(key, at, log_density, jnp.exp(tuned.log_scale), spread)

        start = self.kernel.start(tuned.point, log_density)
        last, rates = jax.lax.scan(move, start, jax.random.split(key, self.num_moves))
        point = last.point
        centred = point - tuned.mean
        return Tuned(
            point,
            tuned.log_scale + 4 * gain * (rates.mean() - self.kernel.target_accept),
            tuned.mean + gain * centred,
            tuned.covariance + gain * (jnp.outer(centred, centred) - tuned.covariance),
        )


def _points(tuned: Tuned) -> Array:
    """10 d points with the chain's mean and covariance, so many that kernels take it as it is."""
    size = len(tuned.mean)
    root = cholesky(tuned.covariance).T * size**0.5
    return tuned.mean + jnp.tile(jnp.concatenate([root, -root]), (5, 1))
