"""Particles from the prior to the posterior, in two runs of independent keys whose agreement is the verdict."""

from __future__ import annotations

import time
import warnings
from typing import Any

import jax
import numpy as np

from ... import ppl
from ..particles.samplers import tempered_smc
from ._certificate import Attempt
from ._convergence import r_hat
from ._judged import MOST_R_HAT, Verdict

_MOST_EVIDENCE_APART = 0.5  # nats: modes weigh then alike in both runs


def run_tempered(
    program: ppl.Program, args: tuple, key: Any, num_samples: int
) -> tuple[dict[str, np.ndarray] | None, Verdict, Attempt]:
    """Equally weighted draws [S, ...], half of them of each run, the verdict on them, and the attempt in words."""
    began = time.perf_counter()
    num = -(-num_samples // 2)
    try:
        halves = [_half(program, args, k, num) for k in jax.random.split(key)]
    except (ValueError, RuntimeError, NotImplementedError) as err:
        verdict = Verdict({}, (f"it is not for this program ({err})",))
        return None, verdict, Attempt("tempered", time.perf_counter() - began, verdict.outcome, {})
    names = list(halves[0][0])
    numbers = np.stack(
        [np.concatenate([x[n].reshape(num, -1) for n in names], 1) for x, _ in halves]
    )
    labels = [n for n in names for _ in range(halves[0][0][n].reshape(num, -1).shape[1])]
    ratios = np.nan_to_num(r_hat(numbers), nan=np.inf)
    apart = abs(halves[0][1] - halves[1][1])
    seen = {"r_hat": float(ratios.max()), "log_evidence_apart": float(apart)}
    problems = []
    if not seen["r_hat"] <= MOST_R_HAT:
        where = labels[int(ratios.argmax())]
        problems.append(
            f"R-hat is {seen['r_hat']:.3f} at '{where}', above {MOST_R_HAT}: two tempered runs do not agree"
        )
    if not apart <= _MOST_EVIDENCE_APART:
        problems.append(f"the log-evidence of two tempered runs differs by {apart:.2f} nats")
    verdict = Verdict(seen, tuple(problems))
    choices = {n: np.concatenate([x[n] for x, _ in halves])[:num_samples] for n in names}
    attempt = Attempt("tempered", time.perf_counter() - began, verdict.outcome, seen)
    return choices, verdict, attempt


def _half(program: ppl.Program, args: tuple, key: Any, num: int) -> tuple[dict[str, Any], float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it finds is judged here
        run = tempered_smc(program, key, *args, num_particles=num)
    drawn = run.sample(jax.random.fold_in(key, 1), num)
    return {n: np.asarray(x) for n, x in drawn.items()}, float(run.log_evidence)
