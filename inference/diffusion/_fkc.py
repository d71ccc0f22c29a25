"""Feynman-Kac correctors: weighted particles of powers, products and tilts of diffusion models.

Target, t a noising time that falls from noise to data, W = sum_i w_i, S = sum_i w_i s_i with s_i = grad log q_i:

    p_t(x) proportional to exp(h_t(x)) prod_i q_i,t(x)^w_i(t).

Simulation, for every noise scale zeta >= 0, over a time step dt towards the data (f = a x the drift of the noising process,
g2 its squared diffusion coefficient):

    dx = [-f + (1 + zeta^2)/2 g2 S + zeta^2/2 g2 grad h] dt + zeta sqrt(g2) dB
    d log weight = [(W - 1) div f + g2/2 (|S|^2 - sum_i w_i |s_i|^2) + dh/dt - f . grad h + g2/2 S . grad h
                    + sum_i dw_i/dt log q_i] dt.

The rate of the weights does not depend on zeta, and no divergence of a score occurs: this drift is the one for which it cancels.
All correctors of the paper are settings of w, h and zeta. Steps and their weights are in `_corrector`.

Reference: Skreta et al. 2025, arXiv:2503.02819 (correctors); He et al. 2025, arXiv:2506.05668 (path ratios, here with kernels
that carry the noise of the simulation: with those of zeta = 1 the limit is wrong at any other zeta); Del Moral, Doucet and
Jasra 2006 (backward kernels).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, PyTree

from ...ppl._compat import is_concrete
from ...ppl._show import shown
from ..particles.engine import FeynmanKac
from ..tilts._tilt import TiltedProgram
from ._composition import Composition, Exponent, Reward, as_composition, product
from ._corrector import Corrector
from ._diffusion import Diffusion, check_noise, check_times, is_one_process
from ._drift_control import DriftControl, fitted, planned
from ._langevin import Langevin
from ._rewards import as_number, refuse_jumps, reward_of_tilt
from .grid import (
    Integrator,
    NoiseScale,
    Ratios,
    Weighting,
    as_exponents,
    as_grid,
    check_exponents,
    check_known,
    check_target,
    choose_ratios,
    coefficients,
    start_law,
    warn_of_infinite_variance,
)


@shown
@dataclasses.dataclass(frozen=True)
class CorrectedDiffusion(FeynmanKac):
    """A Feynman-Kac model over noised points; a particle's state has its place `.x`, and the scores there. Made by `fkc`.

    Attributes:
        composition: the models, exponents and reward of the target.
        times: the noising times of the grid, [steps + 1].
        zeta: the noise scale before each step, [steps].
        weights: how each model's density ratio enters: "euler" for all, or "exact" or "rne" for each.
        control: coefficients of the control's drift, [steps, bases]; None without.
        corrector: the steps.
    """

    composition: Composition = dataclasses.field(kw_only=True)
    times: Float[Array, " steps+1"] = dataclasses.field(kw_only=True)
    zeta: Float[Array, " steps"] = dataclasses.field(kw_only=True)
    weights: Ratios = dataclasses.field(kw_only=True)
    corrector: Corrector = dataclasses.field(kw_only=True, repr=False)

    @property
    def control(self) -> Float[Array, "steps bases"] | None:
        """See above."""
        return None if self.corrector.control is None else self.corrector.control.coefficients

    def _facts(self) -> dict[str, PyTree]:
        parts = self.composition
        return {
            "models": len(parts.models),
            "exponents": parts.exponents,
            "reward": parts.reward,
            "steps": self.num_steps,
            "times": self.times,
            "zeta": self.zeta,
            "weights": self.weights,
            "control": self.control,
        }


def fkc(
    diffusions: Diffusion | CorrectedDiffusion | Sequence[Diffusion | CorrectedDiffusion],
    times: Float[Array, " steps+1"],
    *,
    exponents: Exponent | Sequence[Exponent] | Array = 1.0,
    reward: Reward | TiltedProgram | None = None,
    zeta: NoiseScale = "auto",
    weights: Weighting = "auto",
    start: dist.Distribution | None = None,
    langevin: Langevin | None = None,
    integrator: Integrator = "euler",
    control: DriftControl | None = None,
) -> CorrectedDiffusion:
    """Sample p(x) proportional to exp(h(x)) prod_i q_i(x)^w_i from diffusion models q_i, by weighted particles.

    The result is a `FeynmanKac`: `smc(fkc(...), key, num_particles=...)` returns particles `.x` with weights, and
    `log_evidence`, the log of the integral of exp(h) prod q_i^w_i in nats. Some targets:

        annealing to temperature 1 / beta         fkc(q, times, exponents=beta)
        geometric average (guidance)              fkc([unconditional, conditional], times, exponents=[1 - beta, beta])
        product of experts                        fkc([q1, q2], times, exponents=[1, 1])
        reward                                    fkc(q, times, reward=lambda x, t: (1 - t / noising.end) * r(x))
        tilt of a program that draws x from q     fkc(q, times, reward=inference.tilt(program, r, temperature))
        annealed product of guided models         fkc([guided, other], times, exponents=[beta, beta])

    In the last one `guided` is itself the result of `fkc`: exponents multiply, and one corrector runs for all. Only its models,
    exponents and reward are taken over.

    Args:
        diffusions: one or several models of one noising process.
        times: noising times, descending: `noising.times(num_steps)`, or `noising.log_snr_times(num_steps)` where those are
            too few for the noise at its start (`Cosine`). Known numbers, as are exponents and zeta.
        exponents: w, one for all models or one for each; numbers, functions of the noising time (right at its end), or arrays
            [steps + 1] with a value at each of the times, linear in between. An array [models] has a number for each model, one
            of shape [steps + 1, models] a table for each, [steps + 1, 1] one table for all.
        reward: `(x, t) -> h_t(x)` for one point, in nats, differentiable in both; h at the last time is the reward of the result.
            It must vanish at the first time, where particles are drawn without it, to a hundredth of its size at the last. Or a
            tilt of a program that draws one point of the one model by `models.diffusion.reverse_chain`: its reward over its
            temperature, brought in with alpha^2 / (alpha^2 + variance); the corrected law is then that tilt, of the model's
            marginal at the last time.
        zeta: scale of the noise, 1 for that of the reverse process; a number, a function of the noising time, or "auto":
            zeta^2 = max(1, c (1 - 1/W+), c (1/W - 1)) with W+ the sum of the positive exponents and c = 10, less where the
            steps are too long for that, but at least 1 and 2.1 (1 - 1/W+) (with "euler" weights 2.5 in place of 10).
        weights: "exact" (needs `log_density` of all models), "rne" (scores at both ends of a step), "euler"; "auto" takes
            "euler" where zeta may be 0, else for each model "exact" if its density is known and "rne" if it is not.
        start: law of x at the first time, a distribution or a tree of them as the models' `shape` says; Normal(0, variance / W)
            by default. Weights correct for it.
        langevin: moves after each step that leave its target as it is (predictor-corrector), none by default.
        integrator: "euler", or "exponential": steps in log-SNR that solve the linear part of target and process exactly (see
            `grid/_steps.py`), for few and long steps. It needs "exact" weights, and times that end above noise 0.
        control: a drift beyond that of the target, fitted by a pilot run so that weights vary less; see `DriftControl`. Costs the
            pilot, and no evaluation of a model more in the run (with "euler" weights as many derivatives as a point has
            coordinates).

    Returns:
        A `CorrectedDiffusion`.

    Raises:
        ValueError: models of several processes or shapes, or whose noise is not Normal; times that do not descend; W <= 0 at
            any time (without a reward and `start`); a reward that does not vanish at the first time, without `start`, is NaN or
            infinite there, has another shape than (), is -inf halfway (a constraint: particles that break it there may keep it
            at the end; later on the weights are NaN), or jumps where "euler" weights follow its derivatives; a tilt of another
            law than that of the model; a target of known densities that grows far out (where values are traced by jax.jit the
            evidence is NaN in this case and where a reward does not vanish); times, exponents or zeta that are traced, so that
            nothing of this could be checked; densities that "exact" needs, that exponents vary with at zeta = 0, or that times
            which do not begin at the end of the process need; zeta = 0 with "rne" or "exact"; arrays of exponents of another
            shape, or that are not finite; scores at noise 0 where they are not known to exist; a score whose structure is not
            that of the points; Langevin moves with exponents that vary where log q is not known; a control with "euler" weights
            in more than 64 coordinates, or whose pilot run broke down.

    Warns:
        UserWarning: zeta^2 <= 2 (1 - 1/W+), steps too long for their noise, or first points too narrow for the target at a time
            inside the process: the weights have infinite variance for Gaussian data of variance 0.1 or 1, which their ESS does
            not show. A control counts by its scores' coefficients, where these are known (not where jax.jit traces the pilot).

    Validity: with "exact" weights E[exp(log_evidence)] is the integral for every grid, score and clipping. With "rne" and
    "euler" this holds as dt -> 0 (Euler's bias grows with zeta^2 dt) for true scores and marginals at the first time that are
    Normal(0, variance) where their density is not known. The target must be integrable at all times: negative exponents
    of models narrower than the others violate it, which is seen where densities are known. The choice of zeta and its warning do
    not cover such models. Learned scores and clipping make "rne" and "euler" approximate.

    Example:
        >>> import jax
        >>> from lapilli import inference
        >>> from lapilli.models import diffusion
        >>> noising = diffusion.VP(0.1, 8.0)
        >>> q = diffusion.gaussian_mixture(noising, [1.0], [0.5], 0.2)
        >>> cold = inference.diffusion.fkc(q, noising.times(100), exponents=2.0)
        >>> result = inference.smc(cold, jax.random.key(0), num_particles=200, history="none")
        >>> result.particles.x.shape
        (200,)

    Reference: Skreta et al. 2025, arXiv:2503.02819, propositions 3.1 to 3.4 and D.1 to D.6; weights as in the module's text.
    """
    given: Reward | None = None
    if reward is not None and not isinstance(reward, TiltedProgram):
        given = as_number(reward, "fkc")
    composition = _compose(diffusions, exponents, given, times)
    times = check_times("fkc", composition.models[0].noising, times)
    _check_ends(diffusions, times)
    if isinstance(reward, TiltedProgram):
        given = reward_of_tilt(reward, composition, np.asarray(times))
        composition = dataclasses.replace(composition, reward=given)
    known = coefficients(composition, np.asarray(times), zeta, weights, integrator)
    is_positive = bool(np.all(known.zeta > 0))
    ratios = choose_ratios(weights, composition, is_positive, integrator)
    check_known(composition, known, ratios)
    check_exponents(composition, known, start is not None)
    law = start_law(composition, known, start)
    unseen = check_target(composition, known, law, start is not None)
    if given is not None and ratios == "euler":
        refuse_jumps(given, float(known.times[-1]), composition.models[0].shape)
    grid = as_grid(known)
    corrector = Corrector(composition, grid, ratios, law, langevin, known, unseen)
    if control is not None:
        corrector = _controlled(corrector, control)
    is_auto, is_exact = isinstance(zeta, str), integrator == "exponential"
    warn_of_infinite_variance(
        known, ratios, is_auto=is_auto, is_exact=is_exact, has_law=start is not None, control=_of_scores(corrector)
    )  # fmt: skip
    if langevin is not None:
        _check_langevin(langevin, corrector)
    has_density = langevin is None and not corrector.is_followed and is_positive
    return CorrectedDiffusion(
        corrector.init,
        corrector.move,
        corrector.log_potential,
        len(times) - 1,
        corrector.log_transition if has_density else None,
        has_memory=True,
        composition=composition,
        times=times,
        zeta=grid.zeta,
        weights=ratios,
        corrector=corrector,
    )


def _controlled(corrector: Corrector, control: DriftControl) -> Corrector:
    if not isinstance(control, DriftControl):
        raise TypeError(
            f"fkc: control must be a DriftControl, got {type(control).__name__}. Use "
            "control=inference.diffusion.DriftControl(key)."
        )
    num_steps, is_euler = len(corrector.known.zeta), corrector.ratios == "euler"
    with jax.ensure_compile_time_eval():  # what is known stays so within jit
        plan = planned(control, corrector.composition, num_steps, is_euler)
        return fitted(dataclasses.replace(corrector, control=plan), control)


def _of_scores(corrector: Corrector) -> np.ndarray | None:
    """The control's coefficients of the models' scores, [steps, models], where they are known."""
    control = corrector.control
    if control is None or not is_concrete(control.coefficients):
        return None
    table = np.asarray(control.coefficients, np.float64)[:, : control.num_scores]
    return (
        table if control.num_scores else np.zeros((len(table), len(corrector.composition.models)))
    )


def _check_langevin(langevin: Langevin, corrector: Corrector) -> None:
    langevin.is_metropolis(corrector.composition)
    if corrector.is_followed:
        raise ValueError(
            "fkc: exponents that vary with time weigh log q, which is followed along the path where it is not known, and not "
            "along Langevin moves. Give the log_density of every model, or leave out langevin=."
        )


def _check_ends(diffusions: object, times: Array) -> None:
    """Refuse a factor whose reward is whole at another time than the last of these."""
    for m in diffusions if isinstance(diffusions, Sequence) else [diffusions]:
        if not isinstance(m, CorrectedDiffusion) or m.composition.reward is None:
            continue
        own, last = (float(np.asarray(x)[-1]) for x in (m.times, times))
        if abs(own - last) > 1e-5 * max(own, last):
            raise ValueError(
                f"fkc: the reward of a factor that fkc has made is that of its own last time {own:g}, and these times end at "
                f"{last:g}, where it has another value. End both grids at one time."
            )


def _compose(
    diffusions: Any, exponents: Any, reward: Reward | None, times: ArrayLike
) -> Composition:
    several = diffusions if isinstance(diffusions, Sequence) else [diffusions]
    if not several or not all(isinstance(m, Diffusion | CorrectedDiffusion) for m in several):
        kinds = [type(m).__name__ for m in several]
        raise TypeError(f"fkc: diffusions must be Diffusion or results of fkc, got {kinds}.")
    powers = as_exponents(exponents, times, len(several))
    factors = [
        m.composition if isinstance(m, CorrectedDiffusion) else as_composition(m) for m in several
    ]
    composition = product(factors, powers, reward)
    for model in composition.models:
        check_noise("fkc", model)
    first, *others = composition.models
    for other in others:
        if not is_one_process(other.noising, first.noising):
            raise ValueError(
                f"fkc: all models need one noising process, got {first.noising} and {other.noising}: the weights are those of "
                "marginals of one process. Train them with one, or change the time of one of them."
            )
        if other.shape != first.shape:
            raise ValueError(
                f"fkc: all models need points of one shape, got {first.shape} and {other.shape}."
            )
    return composition
