"""How steps of a corrected diffusion are made: their coordinate, and the coefficients of moves and of the backward kernels.

A step goes from z = x / unit_n to z' = x' / unit_{n+1}. With c = (zeta^2 + 1)/2, e = (zeta^2 - 1)/2, S the score of the target
without its reward h, and gradients in z,

    M(z' | z) = Normal(z - drift z  + forward  (c S(z)  + zeta^2/2 grad h(z)),  zeta^2 noise)
    B(z | z') = Normal(z' + drift z' + backward (e S(z') + zeta^2/2 grad h(z')), zeta^2 noise).

"euler": unit = 1; drift, and forward = backward = noise, are the integrals A of a and V of g2 over the step.

"exponential": unit = alpha, in which the noising process is z = data + sqrt(u) eps, u = variance / alpha^2, without a drift.
There S = -W (z - m) / u with m a mean of denoised points. A step from u to u' = u e^-L freezes m and solves the rest: over it
z - m falls by e^(-c W L), and back by e^(-e W L). So with r(u, k) = u (1 - e^(-k L)) / k

    forward = r(u, c W),  backward = r(u', e W),  noise^2 = r(u', 2 c W - 1) r(u, 2 e W + 1),

the last the geometric mean of the variances of the two solutions: they agree for points without width only, and where B is much
wider than M weights have no variance. Such weights must be "exact": path ratios and rates take a step for a short one.

Reference: Lu et al. 2022, arXiv:2206.00927 (exponential integrators in log-SNR).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

Integrator = Literal["euler", "exponential"]
Times = Float[np.ndarray, " steps+1"]
Numbers = Float[np.ndarray, " steps"]


class Steps(NamedTuple):
    """See the module's text; all [steps] but `unit`, [steps + 1]."""

    unit: Times
    drift: Numbers
    forward: Numbers
    backward: Numbers
    noise: Numbers


class Coefficients(NamedTuple):
    """What is known of a grid, in double precision: the fields of `_grid.Grid`, and `log_alpha`, [steps + 1]."""

    times: Times
    exponents: Float[np.ndarray, "steps+1 models"]
    log_alpha: Times
    variance: Times
    drift: Numbers
    noise: Numbers
    zeta: Numbers
    steps: Steps


def euler(drift: Numbers, noise: Numbers) -> Steps:
    """Steps of Euler and Maruyama."""
    return Steps(np.ones(len(drift) + 1), drift, noise, noise, noise)


def exponential(log_alpha: Times, variance: Times, zeta: Numbers, totals: Numbers) -> Steps:
    """Exponential steps; the variance must not vanish."""
    u = variance * np.exp(-2 * log_alpha)
    before, after, length = u[:-1], u[1:], lengths(log_alpha, variance)
    c, e = 0.5 * (zeta**2 + 1), 0.5 * (zeta**2 - 1)
    r = lambda u, k: u * _relaxed(k, length)
    squared = r(after, 2 * c * totals - 1) * r(before, 2 * e * totals + 1)
    return Steps(
        np.exp(log_alpha),
        np.zeros(len(zeta)),
        r(before, c * totals),
        r(after, e * totals),
        np.sqrt(squared),
    )


def lengths(log_alpha: Times, variance: Times) -> Numbers:
    """L, the growth of the log signal-to-noise ratio over each step."""
    return np.diff(2 * log_alpha - np.log(variance))


def _relaxed(k: np.ndarray, length: np.ndarray) -> np.ndarray:
    """(1 - exp(-k L)) / k, L where k is 0."""
    is_flat = np.abs(k * length) < 1e-8
    safe = np.where(is_flat, 1.0, k)
    return np.where(is_flat, length, -np.expm1(-safe * length) / safe)
