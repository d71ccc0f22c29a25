"""Draws without chains: of a fitted guide by their Pareto-smoothed weights, and particles that are tempered."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .... import ppl
from ....ppl._quiet import quiet
from ....ppl._shared_jit import shared_jit
from ....ppl._types import Key
from ..._arguments import simulated
from ..._digits import unknown_digits
from ...diagnostics._weights import (
    ImportanceDiagnostics,
    importance_diagnostics,
    resampling_indices,
)
from ...fitting import AutoWhitenedNormal, Fit, fit
from ...fitting._judgement import NEED_WEIGHTS, WRONG_FAMILY, by_coordinate
from ...particles.samplers import tempered_smc
from .._certificate import Attempt
from .._clock import Clock
from .._judged import LEAST_ESS, Verdict
from ..chains import DENSE_UP_TO, Frame
from ..forms import Target
from ._flow import NUM_STEPS, flow_draws

_DRAWS = 4  # for each that is kept, so that few of these are copies
_EVEN = 0.7  # nats between the largest and the mean weight
_WIDER = 1.5  # than the draws that chains begin at
_OF_GUIDE = 1000  # draws among which chains find places
_STEPS = 500  # of a fit between looks at the clock


class GuideNormal(NamedTuple):
    """A Normal on unconstrained values of sites: their sizes in its order, its mean [d], a factor of its covariance [d, d]."""

    sizes: dict[str, int]
    mean: np.ndarray
    factor: np.ndarray

    def frame(self, sites: Sequence[str], *, is_dense: bool) -> Frame:
        """Coordinates in which it is the standard one, those of u being in the order of `sites`."""
        ends = dict(zip(self.sizes, np.cumsum(list(self.sizes.values())), strict=True))
        rows = np.concatenate([np.arange(ends[n] - self.sizes[n], ends[n]) for n in sites])
        factor = self.factor[rows] if is_dense else np.linalg.norm(self.factor[rows], axis=1)
        return Frame(np.float32(self.mean[rows]), np.float32(factor))


class FoundDraws(NamedTuple):
    """What such a rung found.

    Attributes:
        choices: draws of the program's sites [S, ...], equally weighted; None if there are none.
        verdict: on them.
        attempt: in words.
        guide: of a fit, draws of its guide without their weights.
        normal: its Normal on unconstrained coordinates, where it is one.
        is_elsewhere: whether the fit itself knows of places that its guide has not met, or did not come to an end.
    """

    choices: dict[str, np.ndarray] | None
    verdict: Verdict
    attempt: Attempt
    guide: dict[str, np.ndarray] | None = None
    is_elsewhere: bool = False
    normal: GuideNormal | None = None


def run_fit(
    program: ppl.Program, args: tuple, key: Key, num_samples: int, clock: Clock
) -> FoundDraws:
    """Draws of a fit's guide, resampled by their weights."""
    began = time.perf_counter()
    fit_key, draw_key, keep_key = jax.random.split(key, 3)
    try:
        with quiet():  # what it finds is told here
            fitted = fit(
                program, args=args, key=fit_key, progress=False, callback_every=_STEPS,
                callbacks=[lambda info: _watched(clock, info.step)],
            )  # fmt: skip
            drawn = fitted.posterior(draw_key, _DRAWS * num_samples, batch_size=500)
    except (ValueError, ArithmeticError, RuntimeError, NotImplementedError) as err:
        verdict = Verdict({}, (f"a fit is not for this program: {err}",))
        attempt = Attempt("fit", time.perf_counter() - began, verdict.outcome, {})
        return FoundDraws(None, verdict, attempt)
    sites = simulated(program, args).choices
    plain = {n: x for n, x in drawn.choices.items() if n in sites}
    verdict, smoothed = smoothed_and_judged(drawn.log_weights, plain)
    if (text := _against(fitted, clock)) is not None:
        verdict = verdict._replace(problems=(text, *verdict.problems))
    attempt = Attempt("fit", time.perf_counter() - began, verdict.outcome, verdict.seen)
    if smoothed is None:
        return FoundDraws(None, verdict, attempt)
    rows = _resampled(keep_key, smoothed)
    is_elsewhere = fitted.worth is None or fitted.worth.verdict not in (
        "",
        NEED_WEIGHTS,
        WRONG_FAMILY,
    )
    choices = {n: x[rows] for n, x in plain.items()}
    return FoundDraws(choices, verdict, attempt, plain, is_elsewhere, _normal_of(fitted))


def _resampled(key: Key, smoothed: np.ndarray) -> np.ndarray:
    """Rows of draws in proportion to their smoothed weights, one for each `_DRAWS` of them."""
    return np.asarray(resampling_indices(key, smoothed)[::_DRAWS])


def _normal_of(fitted: Fit) -> GuideNormal | None:
    guide = getattr(fitted.objective.guide, "fn", None)
    if not isinstance(guide, AutoWhitenedNormal):
        return None
    sizes = {name: math.prod(shape) for name, shape in guide.space.shapes.items()}
    return GuideNormal(sizes, *guide.normal(fitted.params))


def _watched(clock: Clock, step: int) -> bool:
    clock.tell(f"step {step}")
    return clock.is_over()


def _against(fitted: Fit, clock: Clock) -> str | None:
    """What a fit itself has against its guide."""
    if fitted.interrupted:
        clock.interrupt()
    if fitted.stop_reason != "settled":
        return f"the fit ended after {fitted.steps} steps and had not settled"
    if fitted.worth is not None and fitted.worth.verdict not in (
        "",
        NEED_WEIGHTS,
    ):  # which they get
        return f"the fit says: {fitted.worth}"
    return None


def run_flow(
    target: Target, frame: Frame, key: Key, num_samples: int, clock: Clock
) -> tuple[np.ndarray | None, Verdict, Attempt]:
    """Draws [S, d] of a flow that is trained from a fitted guide, resampled by their weights."""
    began = time.perf_counter()
    run_key, keep_key = jax.random.split(key)
    drawn = flow_draws(target, frame, run_key, _DRAWS * num_samples, clock)
    choices = shared_jit(jax.vmap(target.choices))(jnp.asarray(drawn.u, jnp.result_type(float)))
    verdict, smoothed = smoothed_and_judged(drawn.log_weights, jax.tree.map(np.asarray, choices))
    if drawn.num_steps < NUM_STEPS:
        text = f"the flow was trained for {drawn.num_steps} of {NUM_STEPS} steps"
        verdict = verdict._replace(problems=(text, *verdict.problems))
    attempt = Attempt("flow", time.perf_counter() - began, verdict.outcome, verdict.seen)
    if smoothed is None:
        return None, verdict, attempt
    return drawn.u[_resampled(keep_key, smoothed)], verdict, attempt


def near_guide(
    target: Target, found: FoundDraws, num_chains: int
) -> tuple[np.ndarray | None, Frame | None]:
    """Where chains begin after a fit [chains, d], and the coordinates in which its guide is round; None where it is of no use.

    They begin at weighted draws, moved apart so that R-hat can tell. Points far from the guide would need most of the warm-up's
    steps to come near in its coordinates; of places that the guide has not met the fit's own search for modes tells, and where it
    does, its guide is not used, nor one for which there was no search.
    """
    normal = found.normal
    if found.choices is None or found.guide is None or normal is None or found.is_elsewhere:
        return None, None
    if set(normal.sizes) != set(target.sites):
        return None, None
    points = shared_jit(lambda values: jax.vmap(target.point)(values))
    of = lambda draws: {n: jnp.asarray(draws[n][:_OF_GUIDE]) for n in target.sites}
    weighted, guide = (np.asarray(points(of(x)), float) for x in (found.choices, found.guide))
    places = np.unique(weighted, axis=0)  # copies would tell nothing
    places = np.concatenate([places, guide])[: max(len(places), num_chains)]
    places = places[(np.arange(num_chains) * len(places)) // num_chains]
    frame = normal.frame(target.sites, is_dense=target.dimension <= DENSE_UP_TO)
    return places + (_WIDER - 1) * (places - frame.location), frame


def smoothed_and_judged(
    log_weights: np.ndarray, choices: Mapping[str, np.ndarray] | None = None
) -> tuple[Verdict, np.ndarray | None]:
    """The verdict on draws by their weights, and by those times squares of the sites' numbers, on which widths depend.

    Beside it the Pareto-smoothed log-weights; None, and nothing seen, where weights are no numbers.
    """
    if not np.isfinite(log_weights).any() or not (log_weights < np.inf).all():
        return Verdict({}, ("the weights of a fitted guide's draws are no numbers",)), None
    if (lost := unknown_digits(log_weights)) is not None:
        return Verdict({}, (lost.rstrip("."),)), None
    worth = importance_diagnostics(log_weights)
    seen = {"k_hat": worth.k_hat, "ess": worth.ess}
    problems = []
    # The tail of weights that are all but equal may have any shape.
    is_even = log_weights.max() - log_weights.mean() < _EVEN
    if not (worth.k_hat <= worth.k_threshold or is_even):
        problems.append(
            f"k-hat is {worth.k_hat:.2f}, above {worth.k_threshold:.2f}: the fitted guide is no stand-in for the posterior"
        )
    if not worth.ess >= LEAST_ESS:
        problems.append(f"the effective sample size is {worth.ess:.0f}, below {LEAST_ESS}")
    if not problems and choices and (text := _unknown_width(worth, log_weights, choices)):
        problems.append(text)
    return Verdict(seen, tuple(problems)), worth.smoothed_log_weights


def _unknown_width(
    worth: ImportanceDiagnostics, log_weights: np.ndarray, choices: Mapping[str, np.ndarray]
) -> str | None:
    """The number whose width weighted draws do not tell, in words: where the tail is that they do not reach.

    Of a law whose draws do not tell it either, weighted or not, `heavy_tails` speaks.
    """
    weights, worst, where = np.exp(worth.smoothed_log_weights), worth.k_threshold, None
    for name, x in by_coordinate(choices).items():
        with np.errstate(divide="ignore"):
            squares = 2 * np.log(np.abs(x - (weights * x).sum()))
        k_hat = importance_diagnostics(log_weights + squares).k_hat
        if k_hat > worst and importance_diagnostics(squares).k_hat <= worth.k_threshold:
            worst, where = k_hat, name
    if where is None:
        return None
    return (
        f"k-hat is {worst:.2f}, above {worth.k_threshold:.2f}, of weights times squares of {where}: its tail is heavier than the "
        "draws', and its width is not known"
    )


def run_tempered(
    program: ppl.Program, args: tuple, key: Key, num_samples: int, clock: Clock,
    start: Mapping[str, np.ndarray] | None = None,
) -> FoundDraws:  # fmt: skip
    """Particles from the prior to the posterior, judged by the run itself: independent islands, moves that carry one way.

    `start`: draws around which they begin, in place of the prior.
    """
    began = time.perf_counter()
    run_key, keep_key = jax.random.split(key)
    choices, name = None, "tempered" if start is None else "tempered from the fit"
    try:
        with quiet():  # what it finds is told here
            run = tempered_smc(
                program, run_key, *args, start=start, num_particles=num_samples,
                max_seconds=None if np.isinf(clock.left) else clock.left,
            )  # fmt: skip
    except (ValueError, RuntimeError, NotImplementedError) as err:
        text = (
            "tempering is not finished" if clock.is_over() else "tempering is not for this program"
        )
        verdict = Verdict({}, (f"{text}: {err}",))
    else:
        worst = [float(np.max(x)) for x in run.r_hat.values() if x.size]
        evidence = np.asarray(run.island_log_evidence, float)
        seen = {
            "r_hat": max(worst, default=1.0),
            "log_evidence_spread": float(np.ptp(evidence)),
            "drift": float(run.drift),
        }
        verdict = Verdict(seen, run.problems)
        choices = {n: np.asarray(x) for n, x in run.sample(keep_key, num_samples).items()}
    attempt = Attempt(name, time.perf_counter() - began, verdict.outcome, verdict.seen)
    return FoundDraws(choices, verdict, attempt)
