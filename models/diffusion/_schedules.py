"""Noise schedules: variance preserving (linear, cosine), variance exploding, and that of EDM."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...inference.diffusion import Noising
from ...inference.diffusion._diffusion import Time
from ...ppl._checks import check_counts
from ...ppl._compat import is_concrete


def even(first: float, last: float, num_steps: int, power: float = 1.0) -> Float[Array, " steps+1"]:
    """Evenly spaced numbers to a power, known also within jax.jit: checks of a grid need its values."""
    check_counts("times", num_steps=num_steps)
    with jax.ensure_compile_time_eval():
        spaced = jnp.linspace(first, last, num_steps + 1)
        return spaced if power == 1 else spaced**power


def _check(process: Noising, wanted: str, holds: Callable[[], bool]) -> None:
    """Refuse numbers that make no noising process; those that are traced pass."""
    fields = list(vars(process).values())
    if is_concrete(fields) and not (all(np.isfinite(x).all() for x in fields) and holds()):
        raise ValueError(
            f"{process!r}: wanted are finite numbers, {wanted}. With others no noise grows from 0, or no times lie between."
        )


@dataclasses.dataclass(frozen=True)
class VP(Noising):
    """Variance preserving: alpha(t)^2 = exp(-beta_min t - (beta_max - beta_min) t^2 / 2), std^2 = 1 - alpha^2, t in [0, 1].

    g2(t) = beta_min + (beta_max - beta_min) t, and drift = -g2 / 2.

    Args:
        beta_min: rate of noise at t = 0.
        beta_max: rate of noise at t = 1.
        first: smallest time of `times`, where a network is last asked.

    Reference: Song et al. 2021, arXiv:2011.13456, equation 32; Ho, Jain and Abbeel 2020, arXiv:2006.11239.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    first: float = 1e-3

    def __post_init__(self) -> None:
        rates = lambda: self.beta_min >= 0 <= self.beta_max and 0 < self.beta_min + self.beta_max
        wanted = "beta_min, beta_max >= 0, not both 0, and 0 < first < 1"
        _check(self, wanted, lambda: rates() and 0 < self.first < 1)

    @property
    def end(self) -> float:
        """1."""
        return 1.0

    def log_alpha(self, t: Time) -> Float[Array, ""]:
        """-beta_min t / 2 - (beta_max - beta_min) t^2 / 4."""
        t = jnp.asarray(t, float)
        return -0.5 * t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def variance(self, t: Time) -> Float[Array, ""]:
        """1 - alpha^2."""
        return -jnp.expm1(2 * self.log_alpha(t))

    def times(self, num_steps: int) -> Float[Array, " steps+1"]:
        """Evenly spaced from 1 to `first`."""
        return even(1.0, self.first, num_steps)


@dataclasses.dataclass(frozen=True)
class Cosine(Noising):
    """Variance preserving with alpha(t) = cos(u(t)) / cos(u(0)), u(t) = (pi / 2) (t + offset) / (1 + offset).

    Args:
        offset: keeps the first steps from being too small.
        first: smallest time of `times`.
        last: largest time, short of 1, where alpha would vanish and the rate of noise be infinite.

    Reference: Nichol and Dhariwal 2021, arXiv:2102.09672, equation 17; `last` as in Lu et al. 2022, arXiv:2206.00927.
    """

    offset: float = 0.008
    first: float = 1e-3
    last: float = 0.9946

    def __post_init__(self) -> None:
        holds = lambda: self.offset >= 0 < self.first < self.last < 1
        _check(self, "offset >= 0 and 0 < first < last < 1", holds)

    @property
    def end(self) -> float:
        """`last`."""
        return self.last

    def log_alpha(self, t: Time) -> Float[Array, ""]:
        """Log cos(u(t)) - log cos(u(0)), as the logarithm of cos(d) - tan(u(0)) sin(d), d = u(t) - u(0).

        It is 0 at t = 0, and loses no digits beside it, where two logarithms would differ by their rounding.
        """
        scale = 0.5 * math.pi / (1 + self.offset)
        d = scale * jnp.asarray(t, float)
        lost = 2 * jnp.square(jnp.sin(0.5 * d)) + math.tan(scale * self.offset) * jnp.sin(d)
        return jnp.log1p(-lost)

    def variance(self, t: Time) -> Float[Array, ""]:
        """1 - alpha^2."""
        return -jnp.expm1(2 * self.log_alpha(t))

    def times(self, num_steps: int) -> Float[Array, " steps+1"]:
        """Evenly spaced from `last` to `first`."""
        return even(self.last, self.first, num_steps)


@dataclasses.dataclass(frozen=True)
class VE(Noising):
    """Variance exploding: alpha = 1, std(t)^2 = sigma_min^2 ((sigma_max / sigma_min)^(2 t) - 1), t in [0, 1].

    Args:
        sigma_min: scale of the noise at its start.
        sigma_max: about the standard deviation of the noise at t = 1; several times that of the data.
        first: smallest time of `times`.

    Reference: Song et al. 2021, arXiv:2011.13456, equation 30.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    first: float = 1e-3

    def __post_init__(self) -> None:
        holds = lambda: 0 < self.sigma_min < self.sigma_max and 0 < self.first < 1
        _check(self, "0 < sigma_min < sigma_max and 0 < first < 1", holds)

    @property
    def end(self) -> float:
        """1."""
        return 1.0

    def log_alpha(self, t: Time) -> Float[Array, ""]:
        """Zero."""
        return 0.0 * jnp.asarray(t, float)

    def variance(self, t: Time) -> Float[Array, ""]:
        """sigma_min^2 ((sigma_max / sigma_min)^(2 t) - 1)."""
        return self.sigma_min**2 * jnp.expm1(2 * t * math.log(self.sigma_max / self.sigma_min))

    def times(self, num_steps: int) -> Float[Array, " steps+1"]:
        """Evenly spaced from 1 to `first`."""
        return even(1.0, self.first, num_steps)


@dataclasses.dataclass(frozen=True)
class EDM(Noising):
    """The time is the noise: alpha = 1, std(t) = t, t in [0, sigma_max].

    Args:
        sigma_min: smallest time of `times`.
        sigma_max: largest time.
        rho: how much the steps shorten towards the data.

    Reference: Karras et al. 2022, arXiv:2206.00364, table 1 and equation 5.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        holds = lambda: 0 < self.sigma_min < self.sigma_max and self.rho > 0
        _check(self, "0 < sigma_min < sigma_max and rho > 0", holds)

    @property
    def end(self) -> float:
        """sigma_max."""
        return self.sigma_max

    def log_alpha(self, t: Time) -> Float[Array, ""]:
        """Zero."""
        return 0.0 * jnp.asarray(t, float)

    def variance(self, t: Time) -> Float[Array, ""]:
        """t^2."""
        return jnp.square(jnp.asarray(t, float))

    def times(self, num_steps: int) -> Float[Array, " steps+1"]:
        """(sigma_max^(1/rho) + n / N (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, n = 0, ..., N."""
        first, last = (sigma ** (1 / self.rho) for sigma in (self.sigma_max, self.sigma_min))
        return even(first, last, num_steps, self.rho)
