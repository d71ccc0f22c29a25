"""The tilt nearest to a program that has given moments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from ... import ppl
from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._compat import typed_key
from ...ppl._shared_jit import shared_jit
from ...ppl._show import shown
from ...ppl._types import Key, ModelFn
from ..diagnostics._weights import importance_diagnostics
from ._rewards import as_reals, refuse_evidence
from ._tilt import TiltedProgram, tilt

TOLERANCE = 1e-6  # of the moments of the weighted draws, in standard deviations of the features


@shown
@dataclasses.dataclass(frozen=True)
class MatchedMoments:
    """A tilt with given moments; made by `match_moments`. Nats.

    Attributes:
        tilt: p(x) exp(gamma' features(x)) / Z.
        weights: gamma, [features].
        kl: KL(tilt || base) = gamma' moments - log E_base[exp(gamma' features)], the least of all laws with these moments.
        ess: effective number of the draws that it was found from.
        k_hat: Pareto shape of their weights.
        num_draws: draws.
    """

    tilt: TiltedProgram
    weights: np.ndarray
    kl: float
    ess: float
    k_hat: float
    num_draws: int

    def _facts(self) -> dict[str, PyTree]:
        return {
            "weights": self.weights,
            "KL to the base": f"{self.kl:.4g} nats",
            "draws": f"{self.ess:.0f} of {self.num_draws} count, k-hat {self.k_hat:.2f}",
        }


@checked_call
def match_moments(
    model: ModelFn, features: Callable[..., PyTree], moments: ArrayLike, key: Key, *args: PyTree,
    num_draws: int = 4000,
) -> MatchedMoments:  # fmt: skip
    """The law nearest to a program, by KL(law || program), under which features have given means: a tilt by a sum of them.

        gamma = argmin log E_p[exp(gamma' (features - moments))],

    convex, solved over fixed draws of the program. To take the bias out of a generator: features the probabilities of classes by
    a classifier, moments equal shares.

    Args:
        model: the program, with its parameters bound; without observations and factors.
        features: of what it returns, to a vector [d]. Of features that sum to a constant (probabilities) one is redundant: among
            the equal solutions that of least norm is taken.
        moments: their means under the law, [d].
        key: PRNG key of either kind.
        args: the program's arguments.
        num_draws: draws of the program.

    Returns:
        A `MatchedMoments`.

    Raises:
        ValueError: the program has observations or factors, which its draws would not see; features are not finite, or have
            another shape than the moments; moments that no weights of the draws have, e.g. outside of the range of a feature.

    Validity: exact for the draws, consistent in their number: the tilt's own moments are off by about the weighted standard
    deviation of the features over sqrt(ess).

    Reference: Csiszar 1975; Khalifa, Elsahar and Dymetman 2021, arXiv:2012.11635; Wu et al. 2022, arXiv:2209.06970.
    """
    check_counts("match_moments", 2, num_draws=num_draws)
    base = ppl.as_program(model)
    goal = np.atleast_1d(np.asarray(moments, float))

    def read(x: PyTree) -> Array:
        found = as_reals(features, x, what="match_moments: features")
        return jnp.atleast_1d(found).astype(float)

    def one(key: Array) -> Float[Array, " d"]:
        found = base.simulate(key, *args)
        refuse_evidence("match_moments", base, found, "match the moments of that")
        return read(found.retval)

    run = shared_jit(jax.vmap(one))
    phi = np.asarray(run(jax.random.split(typed_key(key), num_draws)), np.float64)
    gamma, log_weights = solve_dual(phi, goal)
    found = importance_diagnostics(log_weights - log_weights.max())
    # log_weights are gamma' (phi - goal)
    kl = -float(np.logaddexp.reduce(log_weights) - np.log(len(phi)))
    weights = jnp.asarray(gamma, float)
    made = tilt(base, lambda x: (weights * read(x)).sum())
    return MatchedMoments(made, gamma, kl, found.ess, found.k_hat, num_draws)


def solve_dual(
    phi: Float[np.ndarray, "draws d"], goal: Float[np.ndarray, " d"]
) -> tuple[np.ndarray, np.ndarray]:
    """Gamma [d], and gamma' (phi - goal) [draws], of the least log mean exp(gamma' (phi - goal)).

    Raises:
        ValueError: see `match_moments`.
    """
    from scipy.optimize import minimize

    if phi.ndim != 2 or phi.shape[1:] != goal.shape or not np.isfinite(phi).all():
        is_bad = phi.ndim == 2 and phi.shape[1:] == goal.shape
        what = "are not finite at some draws" if is_bad else f"have shape {phi.shape[1:]} a draw"
        raise ValueError(
            f"match_moments: the features {what}, and the moments shape {goal.shape}. Let features return one vector of finite "
            "numbers, as many as there are moments."
        )
    low, high = phi.min(0), phi.max(0)
    out = ~((low < goal) & (goal < high)) & ~((low == goal) & (goal == high))
    if out.any():
        i = int(out.argmax())
        raise ValueError(
            f"match_moments: moment {i} is to be {goal[i]:.6g}, and feature {i} of {len(phi)} draws lies between {low[i]:.6g} "
            f"and {high[i]:.6g}. Give moments that the program can have, or take more draws (num_draws=)."
        )
    scale = np.where(high > low, phi.std(0), 1.0)
    centred = (phi - goal) / scale

    def dual(g: np.ndarray) -> tuple[float, np.ndarray]:
        u = (centred * g).sum(1)
        total = np.logaddexp.reduce(u)
        return total - np.log(len(u)), (np.exp(u - total)[:, None] * centred).sum(0)

    # From 0 the steps stay in the span of the features, so that the solution is the one of least norm.
    found = minimize(
        dual, np.zeros(goal.size), jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 0.0, "gtol": TOLERANCE / 10}
    )  # fmt: skip
    residual = np.abs(dual(found.x)[1]).max()
    spread = np.ptp((centred * found.x).sum(1))
    if not residual < TOLERANCE or not np.isfinite(spread):
        raise ValueError(
            f"match_moments: no weights of {len(phi)} draws have all the moments together: the nearest miss one by "
            f"{residual:.2g} of its standard deviations. Move the moments towards those of the program, or take more draws "
            "(num_draws=)."
        )
    gamma = found.x / scale
    return gamma, ((phi - goal) * gamma).sum(1)
