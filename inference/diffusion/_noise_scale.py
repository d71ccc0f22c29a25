"""The noise scale zeta of a corrected diffusion: its value on a grid, its choice, and when weights have no variance.

With W = sum of the exponents, the drift of a corrector aims at a law narrower than the target where W > 1. For Gaussian
data and frequent resampling the asymptotic variance of the weights is finite if and only if

    zeta^2 > 2 (1 - 1 / W),

from the stable root of the Riccati equation of E[weight^2 | x]. The effective sample size of a run does not show it: the
particles that would carry the weight are never drawn. On the other side an Euler step is stable only while its contraction
g2 (1 + zeta^2) W dt / (2 variance) stays below 1; the smallest variance that data can leave is that of the noise.

The automatic choice is as large as that allows, up to five times the bound: for four modes in the plane annealed to 1.5, 2, 3 and
10 in 300 to 1000 steps, this had a fourth of the spread of log Z of a zeta just above the bound (1.25 of it), and 16 in place of
10 gained nothing more.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...ppl._compat import is_concrete

NoiseScale = float | Array | Callable[[Array], Array] | Literal["auto"]
LEAST = 2.1  # in place of 2
WANTED, WANTED_EULER = 10.0, 2.5  # the bias of Euler weights grows with zeta^2
CONTRACTION = 0.7  # most of a step's contraction of the narrowest law that data can have, in place of 1 for stability
TOLERATED = (
    0.25  # share of steps below the bound that is not worth a warning: near data zeta may shrink
)


def on_grid(
    zeta: NoiseScale, times: Array, totals: Array, noise: Array, variances: Array, is_euler: bool
) -> Float[Array, " steps"]:
    """Zeta before each step, see `fkc` for "auto".

    Args:
        zeta: a number, a function of the noising time, or "auto".
        times: [steps], where each step starts.
        totals: W at these times.
        noise: the integral of g2 over each step.
        variances: std^2 of the noise at the steps' ends.
        is_euler: whether weights are Euler's.
    """
    if isinstance(zeta, str):
        if zeta != "auto":
            raise ValueError(f"fkc: zeta must be a number, a function or 'auto', got {zeta!r}.")
        excess = 1 - 1 / jnp.maximum(totals, 1.0)
        factors = LEAST, WANTED_EULER if is_euler else WANTED
        least, wanted = (jnp.maximum(1.0, factor * excess) for factor in factors)
        stable = 2 * CONTRACTION * variances / (noise * jnp.maximum(totals, 1e-6)) - 1
        return jnp.sqrt(jnp.clip(stable, least, wanted))
    at = zeta if callable(zeta) else lambda _: zeta
    values = jax.vmap(lambda t: jnp.asarray(at(t), float))(times)
    if values.shape != times.shape:
        raise ValueError(
            f"fkc: zeta must be one number for one time, got shape {values.shape[1:]}."
        )
    if is_concrete(values) and not bool(jnp.all(values >= 0)):
        raise ValueError(f"fkc: zeta is a scale and must be >= 0, got {float(values.min()):g}.")
    return values


def warn_of_infinite_variance(zeta: Array, totals: Array) -> None:
    """Warn where zeta^2 <= 2 (1 - 1 / W) on more than a quarter of the steps."""
    if not is_concrete((zeta, totals)):
        return
    scales, sums = np.asarray(zeta), np.asarray(totals)
    bound = 2 * (1 - 1 / np.maximum(sums, 1.0))
    is_below = (sums > 1) & (scales**2 <= bound)
    if is_below.mean() <= TOLERATED:
        return
    worst = int(np.argmax(np.where(is_below, bound - scales**2, -np.inf)))
    warnings.warn(
        f"fkc: at {is_below.sum()} of {len(scales)} steps zeta^2 <= 2 (1 - 1 / W), e.g. zeta = {scales[worst]:.3g} where the "
        f"exponents' sum is W = {sums[worst]:.3g}. The weights then have infinite variance already for Gaussian data, which the "
        f"effective sample size does not show. Use zeta='auto', or a zeta above {np.sqrt(bound[worst]):.3g}.",
        UserWarning,
        stacklevel=4,
    )
