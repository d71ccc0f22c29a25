"""Paths from noise to data of least kinetic energy, fitted to the data before any training."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ...ppl._checks import check_counts
from ...ppl._precision import full_precision
from ...ppl._types import Key
from ._path import Interpolant


class Separation(NamedTuple):
    """How well data are told from noise, by angle; what the kinetic energy of a path depends on.

    Attributes:
        angles: theta from 0 to pi / 2, [angles].
        values: lambda(tan theta) = E |E[x_1 | s x_1 + z]|^2 / d, [angles], between sin(theta)^2, of normal data, and 1.
    """

    angles: Float[np.ndarray, " angles"]
    values: Float[np.ndarray, " angles"]

    @property
    def metric(self) -> Float[np.ndarray, " angles"]:
        """The factor c(theta) = (lambda - sin(theta)^2) / cos(theta)^2 of theta'^2 in the energy, continued at its end, 0 / 0."""
        squares = np.sin(self.angles) ** 2
        c = (self.values - squares) / np.maximum(1 - squares, 1e-12)
        return np.clip(np.append(c[:-1], c[-2]), 0, 1)

    @property
    def lengths(self) -> Float[np.ndarray, " angles"]:
        """The angle phi(theta), the integral of sqrt(c), in which the energy is that of the flat plane."""
        speed = np.sqrt(self.metric)
        steps = 0.5 * (speed[1:] + speed[:-1]) * np.diff(self.angles)
        return np.concatenate([[0.0], np.cumsum(steps)])

    def chord(self) -> Interpolant:
        """The path alpha(t) x_0 + beta(t) x_1 from standard normal x_0 to data x_1 of least kinetic energy int E |b|^2 dt.

        With r^2 = alpha^2 + beta^2 and theta = arctan(beta / alpha) the energy is int r'^2 + r^2 c(theta) theta'^2 dt, flat in
        the angle phi = int sqrt(c): the best path is a straight chord of opening Phi = phi(pi / 2), with the energy
        4 sin(Phi / 2)^2 for each coordinate.

        Reference: Shaul et al. 2023, arXiv:2306.06626, section 4; the chord in place of its differential equation: the formula.
        """
        angles, opening = jnp.asarray(self.angles, float), self.lengths[-1]
        # Where c is 0 the length does not grow, and the angle is passed in no time: for its inverse the grid has to rise, by more
        # than single precision rounds away, and to end where the chord does.
        shares = self.lengths / opening + 1e-4 * self.angles
        rising = jnp.asarray(opening * shares / shares[-1], float)

        def place(t: Array) -> tuple[Array, Array]:
            x, y = 1 - t + t * jnp.cos(opening), t * jnp.sin(opening)
            return jnp.sqrt(x**2 + y**2), jnp.interp(jnp.arctan2(y, x), rising, angles)

        def alpha(t: Array) -> Array:
            radius, angle = place(t)
            return radius * jnp.cos(angle)

        def beta(t: Array) -> Array:
            radius, angle = place(t)
            return radius * jnp.sin(angle)

        return Interpolant(alpha, beta)

    def energy(self, path: Interpolant, *, num_times: int = 2000) -> float:
        """The kinetic energy int E |b|^2 dt of a path from noise to data, for each coordinate, by differences along it.

        Args:
            path: an interpolant without noise.
            num_times: steps.
        """
        times = jnp.linspace(0, 1, num_times + 1)
        a, b = (np.asarray(jax.vmap(part)(times), float) for part in (path.alpha, path.beta))
        radius, angle = np.hypot(a, b), np.arctan2(b, a)
        metric = np.interp(0.5 * (angle[1:] + angle[:-1]), self.angles, self.metric)
        middle = 0.5 * (radius[1:] + radius[:-1])
        squares = np.diff(radius) ** 2 + middle**2 * metric * np.diff(angle) ** 2
        return float(squares.sum() * num_times)


def separation(
    data: Float[ArrayLike, " rows *shape"],
    key: Key,
    *,
    num_angles: int = 120,
    num_draws: int = 2000,
) -> Separation:
    """The separation of rows of data from normal noise, by draws of both.

    Args:
        data: rows, scaled to a mean square of 1 over all rows and coordinates.
        key: PRNG key.
        num_angles: of the grid.
        num_draws: rows with noise at each angle.

    Raises:
        ValueError: a mean square that is not 1, to 1 %: lambda would be another number than the one that angles belong to.

    Validity: of the law of these rows; a mean over `num_draws` of them. The energy adds up coordinates in their units, as the
    noise has them: of columns on unlike scales the widest one decides. Standardise each where they should count alike.
    """
    check_counts("separation", 2, num_angles=num_angles)
    check_counts("separation", num_draws=num_draws)
    square = float(np.mean(np.square(np.asarray(data, float))))
    if not abs(square - 1) <= 0.01:
        raise ValueError(
            f"separation: argument 'data' (shape {np.shape(data)}) has a mean square of {square:.4g}, and the angles between "
            "data and noise are those of data of mean square 1. Give data / np.sqrt(np.mean(data**2)), or standardised columns."
        )
    data = jnp.asarray(data, float)
    rows = data.reshape(len(data), -1)
    angles = np.linspace(0, np.pi / 2, num_angles)

    @full_precision
    def one(given: tuple[Array, Array]) -> Array:
        (chosen, noise), s = jax.random.split(given[0]), given[1]
        x = rows[jax.random.randint(chosen, (num_draws,), 0, len(rows))]
        x = s * x + jax.random.normal(noise, x.shape)
        logits = s * x @ rows.T - 0.5 * s**2 * jnp.sum(rows**2, 1)
        return jnp.mean((jax.nn.softmax(logits, -1) @ rows) ** 2)

    tangents = jnp.asarray(np.tan(angles[:-1]), float)
    keys = jax.random.split(key, num_angles - 1)
    found = jax.jit(lambda given: jax.lax.map(one, given))((keys, tangents))
    return Separation(angles, np.clip(np.append(np.asarray(found), 1.0), np.sin(angles) ** 2, 1.0))
