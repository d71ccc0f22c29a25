"""What fit says of its result: whether it had settled, whether its guide can stand for the posterior."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Any

import jax

from ...ppl._types import Key
from .._arguments import simulated
from ._choose import ChosenFit
from ._default_optimizer import TRIAL
from ._fit_result import Fit
from ._judgement import judged
from ._options import FitOptions
from .stationarity import MAX_STEPS

# Coordinates: of more, the weights of all but exact guides have k-hat above the threshold.
MOST_JUDGED = 100
_BOUNDS = ("elbo", "iwelbo")


def judge(options: FitOptions, chosen: ChosenFit, result: Fit) -> Fit:
    """The fit with what its guide is worth; what speaks against it is warned of."""
    is_model, has_minibatches = options.is_model, options.subsample is not None
    warn_if_unsettled(result)
    if options.k_hat == "skip":
        return result
    if is_judged(result, is_chosen=is_model, has_minibatches=has_minibatches):
        seen = dataclasses.replace(result, args=chosen.first_args)  # on the device already
        worth, verdict = judged(seen, chosen.key, is_chosen=is_model)
        result = dataclasses.replace(result, worth=worth)
        if verdict is not None:
            warnings.warn(verdict, stacklevel=4)
        elif options.progress:
            print(f"fit ends: {worth}", flush=True)
    if is_trained(result):
        warn_of_verdict(result, chosen.key)
    return result


def warn_if_unsettled(fit: Any) -> None:
    """Warn where the run slowed down because it had to."""
    # The cosine of the pace is 0 in single precision some steps before its end.
    if fit.stop_reason == "settled" and fit.steps >= 0.999 * (MAX_STEPS + MAX_STEPS // 2):
        warnings.warn(
            f"fit: after {MAX_STEPS:,} steps the value had not settled, or its noise left that open. Look at "
            "fit.history['value']; train on with params=fit.last_params, another optimizer, or num_steps.",
            stacklevel=5,
        )


def is_judged(fit: Any, *, is_chosen: bool, has_minibatches: bool) -> bool:
    """Whether draws of the guide are compared with the posterior after the run; see `fit(k_hat=)`."""
    objective = fit.objective
    if not _is_whole(fit) or fit.num_seeds is not None:
        return False
    if not all(getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(fit.args)):
        return False  # rows of other processes
    if is_chosen:
        return True
    if getattr(objective, "name", "") not in _BOUNDS or objective.site_weights is not None:
        return False
    if has_minibatches or fit.steps < TRIAL:
        return False
    drawn = simulated(fit.guide, fit.args).shared_choices
    return 0 < sum(math.prod(x.shape) for x in drawn.values()) <= MOST_JUDGED


def is_trained(fit: Any) -> bool:
    """Whether the objective judges its result; see `AbstractObjective.verdict`."""
    return _is_whole(fit) and fit.steps >= TRIAL


def _is_whole(fit: Any) -> bool:
    return not fit.interrupted and fit.args is not None


def warn_of_verdict(fit: Any, key: Key) -> None:
    """Warn of what the objective has against its result; once, whatever the number of seeds."""
    if fit.num_seeds is None:
        text = fit.objective.verdict(fit, key)
    else:
        text = of_seeds(fit.objective.verdicts(fit, key))
    if text is not None:
        warnings.warn(text, stacklevel=5)


def of_seeds(verdicts: Sequence[str | None]) -> str | None:
    """One text of those of several seeds, the first three that differ in full; None if there is none."""
    said: dict[str, list[int]] = {}
    for number, text in enumerate(verdicts):
        if text is not None:
            said.setdefault(text.removeprefix("fit: "), []).append(number)
    if not said:
        return None
    wrong = [number for number, text in enumerate(verdicts) if text is not None]
    is_any_left = len(wrong) < len(verdicts)
    rest = "Fit.seed(number) takes another one" if is_any_left else "no other is left"
    lines = [f"Seed {', '.join(map(str, those))}: {text}" for text, those in said.items()]
    more = [f"{len(lines) - 3} more of the kind."] if len(lines) > 3 else []
    head = f"fit: {len(wrong)} of {len(verdicts)} seeds, {wrong}, do not pass; {rest}."
    return "\n".join([head, *lines[:3], *more])
