"""Draws of a fitted guide, resampled by their Pareto-smoothed weights."""

from __future__ import annotations

import time
import warnings
from typing import Any

import jax
import numpy as np

from ... import ppl
from ..diagnostics._weights import importance_diagnostics, resampling_indices
from ..fitting import fit
from ._certificate import Attempt
from ._elimination import simulated
from ._judged import LEAST_ESS, Verdict


def run_fit(
    program: ppl.Program, args: tuple, key: Any, num_samples: int
) -> tuple[dict[str, np.ndarray] | None, Verdict, Attempt]:
    """Draws of the program's sites [S, ...], the verdict on their weights, and the attempt in words.

    The weights of four times as many draws are looked at, so that few of those that are kept are copies.
    """
    began = time.perf_counter()
    fit_key, draw_key, keep_key = jax.random.split(key, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it finds is judged here
        fitted = fit(program, args=args, key=fit_key, k_hat="skip", progress=False)
        drawn = fitted.posterior(draw_key, 4 * num_samples, batch_size=500)
    verdict = of_weights(drawn.log_weights)
    attempt = Attempt("fit", time.perf_counter() - began, verdict.outcome, verdict.seen)
    if not verdict.seen:
        return None, verdict, attempt
    log_weights = importance_diagnostics(drawn.log_weights).smoothed_log_weights
    rows = resampling_indices(keep_key, log_weights)[::4]
    sites = simulated(program, args).choices
    choices = {n: x[rows] for n, x in drawn.choices.items() if n in sites}
    return choices, verdict, attempt


def of_weights(log_weights: np.ndarray) -> Verdict:
    """The verdict on draws by their weights; nothing is seen where these are no numbers."""
    if not np.isfinite(log_weights).any() or not (log_weights < np.inf).all():
        return Verdict({}, ("the weights of a fitted guide's draws are no numbers",))
    worth = importance_diagnostics(log_weights)
    seen = {"k_hat": worth.k_hat, "ess": worth.ess}
    problems = []
    if (
        worth.k_hat > worth.k_threshold
        and worth.ess < 0.9 * len(log_weights)
        or np.isnan(worth.k_hat)
    ):
        problems.append(
            f"k-hat is {worth.k_hat:.2f}, above {worth.k_threshold:.2f}: the fitted guide is no stand-in for the posterior"
        )
    if not worth.ess >= LEAST_ESS:
        problems.append(f"the effective sample size is {worth.ess:.0f}, below {LEAST_ESS}")
    return Verdict(seen, tuple(problems))
