"""Particles from the prior to the posterior, judged by the run itself: independent islands, moves that still carry one way."""

from __future__ import annotations

import time
import warnings

import jax
import numpy as np

from ... import ppl
from ...ppl._types import Key
from ..particles.samplers import tempered_smc
from ._certificate import Attempt
from ._judged import Verdict


def run_tempered(
    program: ppl.Program, args: tuple, key: Key, num_samples: int
) -> tuple[dict[str, np.ndarray] | None, Verdict, Attempt]:
    """Equally weighted draws of the program's sites [S, ...], the verdict on them, and the attempt in words."""
    began = time.perf_counter()
    run_key, keep_key = jax.random.split(key)
    choices = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it finds is told here
            run = tempered_smc(program, run_key, *args, num_particles=num_samples)
    except (ValueError, RuntimeError, NotImplementedError) as err:
        verdict = Verdict({}, (f"tempering is not for this program: {err}",))
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
    attempt = Attempt("tempered", time.perf_counter() - began, verdict.outcome, verdict.seen)
    return choices, verdict, attempt
