"""Chains of NUTS on one target: started apart, run again in better coordinates where they do not suffice.

A second run begins where the chains of the first ended, in coordinates made of the first one's draws: chains that found different
places must find together, or stay apart for R-hat to see. Left out are only chains at a place whose share of the posterior is
nothing beside another chain's, by the evidence of each: the mean log-density of its draws and the entropy of a normal law of
their covariance. Chains of the better places are begun in their stead.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from ....ppl.language import told_of_not_finite, why_not_finite
from ...inputs import whole
from .._certificate import Attempt
from .._clock import Clock, TimeUpError
from .._judged import Verdict, of_chains
from ..forms import Target
from ._sampler import CHUNK, Frame, Run, Sampler, frame_of, is_finite

_TRIED = 100  # draws of a place to start for each chain
_STIFF = 500  # leapfrog steps of a trajectory, on average
_SMALLEST = 0.99  # acceptance of the smallest steps that are tried
_FEWEST = 10  # draws of a chain that can be judged
NEGLIGIBLE = 15.0  # nats of evidence below the best place: a share of 3e-7


class ChainSettings(NamedTuple):
    """What chains are run with.

    Attributes:
        num_chains: side by side.
        num_samples: draws of each that are kept.
        num_warmup: transitions that adapt and are dropped.
        accepts: target acceptance of each run, as many as may be tried.
        longer: how often the draws of a run may be doubled where nothing but their number is missing.
        is_dense: whether the mass matrix has correlations.
        learns_mass: whether the warm-up adapts it, and not the step size alone.
        clock: ends a run where its time does; draws until then are judged as they are.
        mesh: devices over which chains are split.
    """

    num_chains: int
    num_samples: int
    num_warmup: int
    accepts: tuple[float, ...]
    longer: int
    is_dense: bool
    learns_mass: bool = True
    clock: Clock | None = None
    mesh: Mesh | None = None


class Chains(NamedTuple):
    """What chains found: the best run's draws [chains, draws, ...], and the verdict on them."""

    run: Run
    verdict: Verdict


def run_chains(
    method: str, target: Target, key: jax.Array, settings: ChainSettings,
    starts: np.ndarray | None = None, frame: Frame | None = None,
    tell: Callable[[Attempt], None] = lambda attempt: None, label: str = "",
    is_hopeless: Callable[[Run, Verdict], bool] = lambda run, verdict: False,
) -> Chains:  # fmt: skip
    """The first run that is certified, or else the one with the fewest problems.

    Args:
        method: who asks.
        target: what is sampled.
        key: PRNG key.
        settings: of the chains.
        starts: points [chains, d]; those that are NaN, or without a finite density, are uniform on (-2, 2), as NumPyro's.
        frame: coordinates of the first run.
        tell: told of each run.
        label: of the form of the model, for what is told.
        is_hopeless: whether chains that do not suffice shall not be run again.

    Raises:
        ValueError: no place was found where the log-density and its gradient are finite.
        TimeUpError: the time is spent, and no run has draws.
    """
    clock = settings.clock or Clock()
    sampler = Sampler(
        target.log_density, target.arrays, target.dimension,
        num_chains=settings.num_chains, num_warmup=settings.num_warmup, is_dense=settings.is_dense,
        learns_mass=settings.learns_mass, clock=clock, mesh=settings.mesh,
    )  # fmt: skip
    frame = sampler.frame() if frame is None else frame
    best, accepts, again = None, list(settings.accepts), label
    while accepts and not (best is not None and clock.is_over()):
        accept, began, before = accepts.pop(0), time.perf_counter(), sampler.num_gradients
        words = ", ".join(filter(None, ["nuts", again, f"acceptance {accept:g}"]))
        clock.check(words)
        key, start_key = jax.random.split(key)
        state = _started(method, sampler, target, start_key, frame, accept, starts)
        run, verdict = _run(sampler, target, state, frame, accept, settings)
        seconds, gradients = time.perf_counter() - began, sampler.num_gradients - before
        tell(Attempt(words, seconds, verdict.outcome, verdict.seen, gradients))
        if clock.why and run.u.shape[1] < _FEWEST:
            break
        if best is None or verdict.rank < best[1].rank:
            best = run, verdict
        if verdict.is_certified or verdict.is_stiff or is_hopeless(run, verdict):
            break
        if settings.longer and not accepts and verdict.is_nearly and accept < _SMALLEST:
            accepts = [_SMALLEST]
        counts = np.arange(len(run.u))
        if verdict.is_apart:
            counts = _that_count(run)
            if len(counts) == len(run.u) or again != label:
                break
            again = f"{label} chains that count".strip()
            accepts.insert(0, accept)
        kept = run.u[counts]
        if not verdict.is_apart or len(counts) < len(run.u):
            frame = frame_of(kept.reshape(-1, target.dimension), is_dense=settings.is_dense)
        starts = _ends(kept, len(run.u))
    if best is None:
        raise TimeUpError
    return Chains(_thinned(best[0], settings.num_samples), best[1])


def _run(
    sampler: Sampler,
    target: Target,
    state: PyTree,
    frame: Frame,
    accept: float,
    settings: ChainSettings,
) -> tuple[Run, Verdict]:
    """One run with its verdict; few draws, where trajectories stay so long that coordinates must be wrong, or time is spent."""
    state, warm = sampler.advance(state, frame, accept, settings.num_warmup, "warm-up transitions")
    if (done := warm.u.shape[1]) < settings.num_warmup:
        run = Run(*(x[:, done // 2 :] for x in warm))
        return run, _cut(target, run, f"{done} of {settings.num_warmup} warm-up transitions")
    if settings.longer and (steps := warm.num_steps[:, -CHUNK:].mean()) > _STIFF:
        run = Run(*(x[:, -CHUNK:][:, : settings.num_samples] for x in warm))
        verdict = judged(target, run)
        text = (
            f"trajectories of {steps:.0f} steps at the end of the warm-up: the chains hardly move"
        )
        return run, verdict._replace(problems=(text, *verdict.problems), is_stiff=True)
    state, run = sampler.advance(state, frame, accept, settings.num_samples)
    if (done := run.u.shape[1]) < settings.num_samples:
        after = f"{done} of {settings.num_samples} draws of each chain"
        if done < _FEWEST:
            run = Run(*(x[:, settings.num_warmup // 2 :] for x in warm))
            after += ", and those of the warm-up are in their place"
        return run, _cut(target, run, after)
    verdict = judged(target, run)
    for _ in range(settings.longer):
        if not verdict.is_short or sampler.clock.is_over():
            break
        state, more = sampler.advance(state, frame, accept, run.u.shape[1])
        run = Run(*(np.concatenate(x, 1) for x in zip(run, more, strict=True)))
        verdict = judged(target, run)
    return run, verdict


def _cut(target: Target, run: Run, after: str) -> Verdict:
    """The verdict on a run that ended before it had what was asked for."""
    verdict = judged(target, run) if run.u.shape[1] >= _FEWEST else Verdict({}, ())
    return verdict._replace(
        problems=(f"the chains were cut short after {after}", *verdict.problems), is_short=False
    )


def _that_count(run: Run) -> np.ndarray:
    """The chains whose places have a share of the posterior, by estimates of their evidence."""
    evidence = []
    for u, log_density in zip(run.u, run.log_density, strict=True):
        scale = u.std(0)
        if not (scale > 0).all():
            evidence.append(-np.inf)
            continue
        correlation = np.atleast_2d(np.corrcoef(u, rowvar=False))
        size, d = u.shape
        share = d / (d + size)
        log_volume = np.linalg.slogdet((1 - share) * correlation + share * np.eye(d))[1]
        evidence.append(log_density.mean(dtype=float) + np.log(scale).sum() + 0.5 * log_volume)
    evidence = np.array(evidence)
    if not np.isfinite(evidence).any():
        return np.arange(len(run.u))
    return np.flatnonzero(evidence >= evidence.max() - NEGLIGIBLE)


def _ends(kept: np.ndarray, num_chains: int) -> np.ndarray:
    """Points to begin at: the ends of the chains that are kept, and where there are more to begin, earlier points of theirs."""
    num, length = len(kept), kept.shape[1]
    turns = -(-num_chains // num)
    rows = [length - 1 - turn * (length // 2) // turns for turn in range(turns)]
    return np.concatenate([kept[:, row] for row in rows])[:num_chains]


def judged(target: Target, run: Run) -> Verdict:
    """The verdict on a run, on all coordinates and the log-density; ranks of a number are those of its coordinate."""
    numbers = np.concatenate([run.u, run.log_density[..., None]], -1)
    return of_chains(numbers, [*target.names, "the log-density"], run.energy, run.is_diverging)


def _started(
    method: str, sampler: Sampler, target: Target, key: jax.Array, frame: Frame, accept: float,
    starts: np.ndarray | None,
) -> PyTree:  # fmt: skip
    """Chains at these points, or points uniform on (-2, 2), with a finite density."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).astype(np.uint32))
    shape = (sampler.num_chains, target.dimension)
    points, good = rng.uniform(-2, 2, shape), np.zeros(shape[0], bool)
    if starts is not None:
        points = np.where(np.isfinite(starts).all(1, keepdims=True), starts, points)
    for number in range(_TRIED):
        state = sampler.begin(jax.random.fold_in(key, number), points, frame, accept)
        good = is_finite(state)
        if good.all():
            return state
        points = np.where(good[:, None], points, rng.uniform(-2, 2, shape))
    inside = whole(target.program)
    reason = None if inside is None else why_not_finite(inside, target.args)
    told = "Look at program.trace(choices, *args).log_probs for the site that breaks."
    raise ValueError(
        f"{method}: of {_TRIED} places for each chain, uniform on (-2, 2) on the unconstrained scale, none was found for "
        f"{int((~good).sum())} of {sampler.num_chains} at which the log-density of {target.program!r} and its gradient are "
        + (f"finite: {reason}" if reason else f"finite. {told}{told_of_not_finite(target.args)}")
    )


def _thinned(run: Run, num: int) -> Run:
    """`num` draws of each chain, evenly; all of them, if there are fewer."""
    num = min(num, run.u.shape[1])
    rows = (np.arange(num) * run.u.shape[1]) // num
    return Run(*(x[:, rows] for x in run))
