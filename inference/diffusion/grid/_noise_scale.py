"""The noise scale zeta of a corrected diffusion: its value on a grid, and its choice.

For Gaussian data with marginal variances v_i let Lambda = sum_i w_i / v_i be the precision of the target, and
c = (sum_i w_i / v_i^2) / Lambda^2. The mean of the weight that is still to come from x is exp(A + P x^2), and p = P / Lambda
obeys, forward in the noising time,

    dp/dt = 2 zeta^2 g2 Lambda (p - p*) (p - 1/2),   p* = (1 - c) / (2 zeta^2),   p = 0 at the data.

With frequent resampling the variance of the weights is finite if and only if p < 1/4 throughout, for which zeta^2 > 2 (1 - c)
suffices. Where models with negative exponents are no narrower than those with positive ones are on average, c >= 1 / W+, with
W+ the sum of the positive exponents, hence the bound

    zeta^2 > 2 (1 - 1 / W+).

It is 2 (1 - 1 / beta) for annealing, and 2 (1 - 1 / b) for guidance by b. The variance that p* leaves in a dimension is
(1 - 2 p*) / sqrt(1 - 4 p*) - 1, for negative p* as well: with W < 1 it is finite, but grows with c - 1, where c = 1 / W for
models of one width. The effective sample size of a run shows none of this: the particles that would carry the weight are never
drawn.

Proof of c >= 1 / W+, with precisions y_i = 1 / v_i: let A_k and B_k be the sums of |w_i| y_i^k over positive and over negative
exponents, and m = A_1 / W+. If no y of a negative exponent exceeds m, then B_2 <= m B_1, and A_2 >= m A_1 by Cauchy and Schwarz,
so that A_2 - B_2 >= m Lambda >= Lambda^2 / W+, as Lambda = A_1 - B_1 <= A_1 = m W+.

On the other side a step is stable only while its contraction g2 (1 + zeta^2) W+ dt / (2 variance) stays below 1; the smallest
variance that data can leave is that of the noise. The automatic choice is as large as that allows, up to |p*| = 1/20, at W > 1
five times the bound: for four modes in the plane annealed to 1.5, 2, 3 and 10 in 300 to 1000 steps, this had a fourth of the
spread of log Z of a zeta just above the bound (1.25 of it), and 16 in place of 10 gained nothing more. Steps that remain too long
for their noise are told by `_finite_variance`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ....ppl._compat import is_concrete

NoiseScale = float | Array | Callable[[Array], Array] | Literal["auto"]
Numbers = Float[np.ndarray, " steps"]
LEAST = 2.1  # in place of 2
WANTED, WANTED_EULER = 10.0, 2.5  # the bias of Euler weights grows with zeta^2
CONTRACTION = 0.7  # most of a step's contraction of the narrowest law that data can have, in place of 1 for stability
RELAXATION = 1.0  # the same for exponential steps, which are stable at any: the law relaxes by exp(-1) at most


def positive_sum(exponents: np.ndarray) -> np.ndarray:
    """W+, the sum of the positive exponents; [..., models] -> [...]."""
    return np.maximum(exponents, 0.0).sum(-1)


def bound(exponents: np.ndarray) -> np.ndarray:
    """2 (1 - 1 / W+), above which zeta^2 has to be; [..., models] -> [...]."""
    return 2 * (1 - 1 / np.maximum(positive_sum(exponents), 1.0))


def automatic(
    exponents: np.ndarray, contraction: Numbers, *, is_exact: bool, is_euler: bool
) -> Numbers:
    """Zeta before each step, see `fkc`.

    Args:
        exponents: [steps, models], where each step starts.
        contraction: of each step at zeta = 1 and exponents of sum 1, at most.
        is_exact: whether steps solve the linear part exactly.
        is_euler: whether weights are Euler's.
    """
    positive, total = positive_sum(exponents), np.maximum(exponents.sum(-1), 1e-6)
    excess = 0.5 * bound(exponents)
    wanted = np.maximum(excess, 1 / total - 1) * (WANTED_EULER if is_euler else WANTED)
    limit = RELAXATION if is_exact else CONTRACTION
    with np.errstate(divide="ignore"):
        stable = 2 * limit / (contraction * np.maximum(positive, 1e-6)) - 1
    least = np.maximum(1.0, LEAST * excess)
    return np.sqrt(np.clip(stable, least, np.maximum(least, wanted)))


def given(zeta: object, times: Array) -> Array:
    """The values of a number or function at times, each of which starts a step."""
    if isinstance(zeta, str):
        raise ValueError(f"fkc: zeta must be a number, a function or 'auto', got {zeta!r}.")
    at = zeta if callable(zeta) else lambda _: zeta
    values = jax.vmap(lambda t: jnp.asarray(at(t), float))(times)
    if values.shape != times.shape:
        raise ValueError(
            f"fkc: zeta must be one number for one time, got shape {values.shape[1:]}."
        )
    if is_concrete(values) and not bool(jnp.all((values >= 0) & jnp.isfinite(values))):
        wrong = values[jnp.argmin((values >= 0) & jnp.isfinite(values))]
        raise ValueError(
            f"fkc: zeta is a scale and must be >= 0 and finite, got {float(wrong):g}. Use zeta='auto', or a number of about 1."
        )
    return values
