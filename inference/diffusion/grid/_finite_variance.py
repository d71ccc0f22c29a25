"""Whether the weights of a corrected diffusion have a variance on its grid, for Gaussian data; if not, it is said.

With Gaussian data all laws are Gaussian: a step has the kernel M(y | x) of mean m x, and log G is a quadratic form. With
h_n(x) = E[G_n ... G_N | x_n = x] and r_n the law of the weighted particles before step n, the asymptotic variance of log Z under
resampling at each step is the sum over steps of the second moment of the weights of a step and of what they lead to,

    integral r_n(x) M(y | x) G_n(x, y)^2 h_{n+1}(y)^2 dx dy - 1     (r, G and h normalised).

Each is an integral of exp(-(x, y) K (x, y)' / 2), finite if and only if the 2 x 2 matrix K is positive definite; h and r follow
by integrating out one of the two, backward and forward. As steps shrink this is the bound of `_noise_scale`. With "exact"
weights r_n is the target itself, and h_n r_n the law of the kernels B run back from the data. A control that is a sum of scores
(`_drift_control`) is linear as well, and enters the means of M and B.

The data are not known. Long steps hurt narrow data first, so Gaussians of variance 0.1 and 1 are taken (models with a negative
exponent not narrower than the others), for data of about unit scale. Near the data steps may be too long for narrower ones;
that goes unsaid.

Reference: Chopin 2004, arXiv:math/0508594, and Del Moral 2004, chapter 9 (the variance); the matrices are worked out here.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import PyTree

from ._noise_scale import bound
from ._steps import Coefficients

TOLERATED = (
    0.25  # share of steps below the bound that is not worth a warning: near data zeta may shrink
)
WIDTHS = ((0.1, 0.1), (0.1, 1.0), (1.0, 1.0))  # of models with positive and with negative exponents


def infinite_steps(
    grid: Coefficients, ratios: str | Sequence[str], variances: np.ndarray, *, has_law: bool = False,
    control: np.ndarray | None = None,
) -> tuple[np.ndarray, bool]:  # fmt: skip
    """Whether each step's term is infinite, [steps], and whether that of the first points is.

    Args:
        grid: the grid.
        ratios: "euler", or "exact" or "rne" for each model.
        variances: of the data, one for each model.
        has_law: whether the law of the first points is the user's, and not known here.
        control: coefficients of the models' scores in the control's drift, [steps, models].
    """
    w, steps = grid.exponents, grid.steps
    alpha2 = np.exp(2 * grid.log_alpha)
    marginal = alpha2[:, None] * variances + grid.variance[:, None]
    v = marginal / np.square(steps.unit)[:, None]  # in the coordinate of the steps
    target = (w / v).sum(1)
    if not np.all(target > 0):
        return np.zeros(len(steps.drift), bool), False  # no law: nothing to say
    s = grid.zeta**2 * steps.noise
    c, e = 0.5 * (grid.zeta**2 + 1), 0.5 * (grid.zeta**2 - 1)
    m, b = 1 - steps.drift - steps.forward * c * target[:-1], 1 + steps.drift - steps.backward * e * target[1:]  # fmt: skip
    if control is not None:
        m = m - steps.forward * (control / v[:-1]).sum(1)
        b = b + steps.backward * (control / v[1:]).sum(1)
    if isinstance(ratios, str):
        rate = np.square((w / marginal).sum(1)) - (w / np.square(marginal)).sum(1)
        xx = -(0.5 * grid.noise * rate[:-1] * 2) * np.square(steps.unit[:-1])
        xx = xx + (np.diff(w, axis=0) / v[:-1]).sum(1)
        if control is not None:
            xx = xx - 2 * steps.noise * (control / v[:-1]).sum(1) * target[:-1]
        potential = [xx, 0 * xx, 0 * xx]
    else:
        potential = [1 / s - m**2 / s, (m - b) / s, b**2 / s - 1 / s]  # B / M
        for i, ratio in enumerate(ratios):
            before, after = w[:-1, i], w[1:, i]
            if ratio == "exact":
                parts = [-before / v[:-1, i], 0.0, after / v[1:, i]]
            else:
                mi = 1 - steps.drift - steps.forward * c / v[:-1, i]
                bi = 1 + steps.drift - steps.backward * e / v[1:, i]
                parts = [
                    after * (mi**2 - 1) / s + (after - before) / v[:-1, i],
                    after * (bi - mi) / s,
                    after * (1 - bi**2) / s,
                ]
            potential = [p + q for p, q in zip(potential, parts, strict=True)]
    move = [m**2 / s, -m / s, 1 / s]
    return _scan(np.stack(move), np.stack(potential), target, w, v, grid, has_law)


def _scan(
    move: np.ndarray, potential: np.ndarray, target: np.ndarray, w: np.ndarray, v: np.ndarray, grid: Coefficients, has_law: bool
) -> tuple[np.ndarray, bool]:  # fmt: skip
    """The recursions; matrices are rows xx, xy, yy, each [steps]."""
    num = move.shape[1]
    both = move + potential
    ahead, law = np.zeros(num + 1), np.zeros(num + 1)  # precisions of h and r
    law[0] = target[0]
    is_bad = np.zeros(num, bool)
    for n in reversed(range(num)):
        xx, xy, yy = both[0, n], both[1, n], both[2, n] + ahead[n + 1]
        is_bad[n] = not yy > 0
        ahead[n] = xx - xy**2 / yy if yy > 0 else 0.0
    for n in range(num):
        xx, xy, yy = both[0, n] + law[n], both[1, n], both[2, n]
        is_bad[n] |= not xx > 0
        law[n + 1] = yy - xy**2 / xx if xx > 0 else target[n + 1]
        twice = move[:, n] + 2 * potential[:, n]
        xx, xy, yy = twice[0] + law[n], twice[1], twice[2] + 2 * ahead[n + 1]
        is_bad[n] |= not (xx > 0 and xx * yy > xy**2)
    first = w[0].sum() / grid.variance[0] * np.square(grid.steps.unit[0])
    is_far = not has_law and not 2 * (target[0] + ahead[0]) > first
    return is_bad, is_far


def warn_of_infinite_variance(
    grid: Coefficients, ratios: PyTree, *, is_auto: bool, is_exact: bool, has_law: bool, control: np.ndarray | None = None
) -> None:  # fmt: skip
    """Warn where weights have infinite variance: by too little noise, by steps too long, or by the first points.

    The first of these is a bound for steps without a control; with one (coefficients of the scores, [steps, models]) the matrices
    decide alone.
    """
    w = grid.exponents[:-1]
    least = bound(w)
    is_below = (least > 0) & (grid.zeta**2 <= least)
    tell = lambda text: warnings.warn(f"fkc: {text}", UserWarning, stacklevel=4)
    unseen = "which the effective sample size does not show"
    if control is None and is_below.mean() > TOLERATED:
        worst = int(np.argmax(np.where(is_below, least - grid.zeta**2, -np.inf)))
        positive = np.maximum(w[worst], 0).sum()
        tell(
            f"at {is_below.sum()} of {len(w)} steps zeta^2 <= 2 (1 - 1 / W), e.g. zeta = {grid.zeta[worst]:.3g} where the "
            f"positive exponents' sum is W = {positive:.3g}. The weights then have infinite variance already for Gaussian data, "
            f"{unseen}. Use zeta='auto', or a zeta above {np.sqrt(least[worst]):.3g}."
        )
        return
    if not np.all(grid.zeta > 0):
        return  # the flow has no spread of its own, and no matrix
    worst_steps, is_far = np.zeros(len(w), bool), False
    for positive, negative in WIDTHS:
        widths = np.where(w[0] < 0, negative, positive)
        is_bad, far = infinite_steps(grid, ratios, widths, has_law=has_law, control=control)
        worst_steps = is_bad if is_bad.sum() > worst_steps.sum() else worst_steps
        is_far |= far
    if worst_steps.any():
        at = int(np.argmax(worst_steps))
        others = "times that are even in the log signal-to-noise ratio (noising.log_snr_times(num_steps))"
        cures = (
            ["zeta='auto'"] * (not is_auto)
            + ["integrator='exponential'"] * (not is_exact)
            + [others]
        )
        tell(
            f"{worst_steps.sum()} of {len(w)} steps are too long for their noise, the first of them step {at} with zeta = "
            f"{grid.zeta[at]:.3g}: their weights have infinite variance already for Gaussian data of variance 0.1 or 1, "
            f"{unseen}. Use {', '.join(cures)}, or more steps."
        )
    elif is_far:
        tell(
            "the weights of the first points have infinite variance already for Gaussian data of variance 1: "
            f"Normal(0, variance / W) is too narrow there, {unseen}. Begin at the end of the process, or give a "
            "wider law as start=."
        )
