"""Draws of a fitted guide, resampled by their Pareto-smoothed weights."""

from __future__ import annotations

import time
import warnings

import jax
import numpy as np

from ... import ppl
from ...ppl._types import Key
from ..diagnostics._weights import importance_diagnostics, resampling_indices
from ..fitting import fit
from ._certificate import Attempt
from ._elimination import simulated
from ._judged import LEAST_ESS, Verdict

_DRAWS = 4  # for each that is kept, so that few of these are copies
_EVEN = 0.7  # nats between the largest and the mean weight
_NEED_WEIGHTS = "draws need their weights"  # of a fit's verdict, which they get


def run_fit(
    program: ppl.Program, args: tuple, key: Key, num_samples: int
) -> tuple[dict[str, np.ndarray] | None, Verdict, Attempt]:
    """Draws of the program's sites [S, ...], the verdict on their weights, and the attempt in words."""
    began = time.perf_counter()
    fit_key, draw_key, keep_key = jax.random.split(key, 3)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it finds is told here
            fitted = fit(program, args=args, key=fit_key, progress=False)
            drawn = fitted.posterior(draw_key, _DRAWS * num_samples, batch_size=500)
    except (ValueError, RuntimeError, NotImplementedError) as err:
        verdict = Verdict({}, (f"a fit is not for this program: {err}",))
        return None, verdict, Attempt("fit", time.perf_counter() - began, verdict.outcome, {})
    verdict = of_weights(drawn.log_weights)
    if fitted.worth is not None and fitted.worth.verdict not in ("", _NEED_WEIGHTS):
        verdict = verdict._replace(problems=(f"the fit says: {fitted.worth}", *verdict.problems))
    attempt = Attempt("fit", time.perf_counter() - began, verdict.outcome, verdict.seen)
    if not verdict.seen:
        return None, verdict, attempt
    log_weights = importance_diagnostics(drawn.log_weights).smoothed_log_weights
    rows = resampling_indices(keep_key, log_weights)[::_DRAWS]
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
    # The tail of weights that are all but equal may have any shape.
    is_even = log_weights.max() - log_weights.mean() < _EVEN
    if not (worth.k_hat <= worth.k_threshold or is_even):
        problems.append(
            f"k-hat is {worth.k_hat:.2f}, above {worth.k_threshold:.2f}: the fitted guide is no stand-in for the posterior"
        )
    if not worth.ess >= LEAST_ESS:
        problems.append(f"the effective sample size is {worth.ess:.0f}, below {LEAST_ESS}")
    return Verdict(seen, tuple(problems))
