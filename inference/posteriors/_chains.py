"""Chains of NUTS on one target: started apart, run again in better coordinates where they do not suffice.

A second run begins where the chains of the first ended, at a higher acceptance, in coordinates made of the first one's draws:
chains that found different places must find together, or stay apart for R-hat to see.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ...ppl.language import told_of_nan
from ._certificate import Attempt
from ._judged import Verdict, of_chains
from ._sampler import Frame, Run, Sampler, frame_of, is_finite
from ._target import Target

_TRIED = 100  # draws of a place to start for each chain
_AGREED = 1.2  # R-hat below which the draws of all chains together tell the posterior's shape


class Settings(NamedTuple):
    """Of chains.

    Attributes:
        num_chains: side by side.
        num_samples: draws of each that are kept.
        num_warmup: transitions that adapt and are dropped.
        accepts: target acceptance of each run, as many as may be tried.
        longer: how often the draws of a run may be doubled where nothing but their number is missing.
        is_dense: whether the mass matrix has correlations.
    """

    num_chains: int
    num_samples: int
    num_warmup: int
    accepts: tuple[float, ...]
    longer: int
    is_dense: bool


class Chains(NamedTuple):
    """What chains found: the best run's draws [chains, draws, ...], and the verdict on them."""

    run: Run
    verdict: Verdict


def run_chains(
    method: str, target: Target, key: jax.Array, settings: Settings,
    starts: np.ndarray | None = None, frame: Frame | None = None,
    tell: Callable[[Attempt], None] = lambda attempt: None, label: str = "",
) -> Chains:  # fmt: skip
    """The first run that is certified, or else the one with the fewest problems.

    Args:
        method: who asks.
        target: what is sampled.
        key: PRNG key.
        settings: of the chains.
        starts: points [chains, d]; default uniform on (-2, 2), as NumPyro's.
        frame: coordinates of the first run.
        tell: told of each run.
        label: of the form of the model, for what is told.

    Raises:
        ValueError: no place was found where the log-density and its gradient are finite.
    """
    sampler = Sampler(
        target.log_density, target.arrays, target.dimension,
        num_chains=settings.num_chains, num_warmup=settings.num_warmup, is_dense=settings.is_dense,
    )  # fmt: skip
    frame = sampler.frame() if frame is None else frame
    best = None
    for accept in settings.accepts:
        began = time.perf_counter()
        key, start_key, run_key = jax.random.split(key, 3)
        if starts is None:
            state = _started(method, sampler, target, start_key, frame, accept)
        else:
            state = sampler.begin(start_key, starts, frame, accept)
        state, _ = sampler.advance(state, frame, accept, settings.num_warmup)
        state, run = sampler.advance(state, frame, accept, settings.num_samples)
        verdict = judged(target, run)
        for _ in range(settings.longer):
            if not verdict.is_short:
                break
            state, more = sampler.advance(state, frame, accept, run.u.shape[1])
            run = Run(*(np.concatenate(x, 1) for x in zip(run, more, strict=True)))
            verdict = judged(target, run)
        words = ", ".join(filter(None, ["nuts", label, f"acceptance {accept:g}"]))
        tell(Attempt(words, time.perf_counter() - began, verdict.outcome, verdict.seen))
        if best is None or verdict.rank < best[1].rank:
            best = run, verdict
        if verdict.is_certified:
            break
        if verdict.seen["r_hat"] < _AGREED:
            frame = frame_of(run.u.reshape(-1, target.dimension), is_dense=settings.is_dense)
        starts = run.u[:, -1]
    assert best is not None
    return Chains(_thinned(best[0], settings.num_samples), best[1])


def judged(target: Target, run: Run) -> Verdict:
    """The verdict on a run, on all coordinates and the log-density; ranks of a number are those of its coordinate."""
    numbers = np.concatenate([run.u, run.log_density[..., None]], -1)
    return of_chains(numbers, [*target.names, "the log-density"], run.energy, run.is_diverging)


def _started(
    method: str, sampler: Sampler, target: Target, key: jax.Array, frame: Frame, accept: float
) -> Any:
    """Chains at points uniform on (-2, 2) with a finite density."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).astype(np.uint32))
    shape = (sampler.num_chains, target.dimension)
    points = rng.uniform(-2, 2, shape)
    for number in range(_TRIED):
        state = sampler.begin(jax.random.fold_in(key, number), points, frame, accept)
        good = is_finite(state)
        if good.all():
            return state
        points = np.where(good[:, None], points, rng.uniform(-2, 2, shape))
    raise ValueError(
        f"{method}: of {_TRIED} places for each chain, uniform on (-2, 2) on the unconstrained scale, none was found for "
        f"{int((~good).sum())} of {sampler.num_chains} at which the log-density of {target.program!r} and its gradient are "
        f"finite. Look at program.trace(choices, *args).log_probs for the site that breaks.{told_of_nan(target.args)}"
    )


def _thinned(run: Run, num: int) -> Run:
    """`num` draws of each chain, evenly."""
    rows = (np.arange(num) * run.u.shape[1]) // num
    return Run(*(x[:, rows] for x in run))
