"""One run of fit: what it needs, its steps, and the `Fit` of wherever it has come to."""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from ...ppl.language import Program
from .._arguments import shapes_of
from .._processes import together
from ._choose import ChosenFit
from ._fit_facts import StopReason
from ._fit_result import Fit
from .data import LoaderState
from .stationarity import Averaging, averaged, noise_shares, summary
from .training import Carry, Config, HostPlan, Training


class FitRun(NamedTuple):
    """A run before its next step.

    Attributes:
        chosen: what is fitted to what.
        config: static choices of the compiled loop.
        plan: what the host does, and when.
        init_args: arguments of a first step.
        carry: state before step number `step`.
        step: steps that a checkpoint has taken.
        values: theirs.
        is_over: whether a callback had ended the run.
        loader: where an iterable goes on.
    """

    chosen: ChosenFit
    config: Config
    plan: HostPlan
    init_args: tuple
    carry: Carry
    step: int
    values: np.ndarray
    is_over: bool
    loader: LoaderState | None


def train(run: FitRun) -> Fit:
    """All steps, and their fit; that of fewer after Ctrl-C."""
    config, carry = run.config, run.carry
    with together(run.plan.is_shared):
        config.source.resume(run.loader, run.step)
    if config.place is not None:
        carry = jax.device_put(carry, config.place(carry))
    make_fit = functools.partial(fit_of, run)
    result = Training(
        config, run.plan, run.chosen.keys, carry, run.step, run.values, make_fit
    ).finish()
    if result.interrupted:
        _warn_of_interrupt(result.steps, run.plan.checkpoint)
    return result


def fit_of(run: FitRun, carry: Carry, values: np.ndarray, step: int, reason: StopReason) -> Fit:
    """The `Fit` of a run at this step."""
    config, chosen = run.config, run.chosen
    params, averaging = carry.params, None
    if config.average == "stationary":
        params = config.over_seeds(averaged)(carry.average, carry.params)
        averaging = config.over_seeds(summary)(carry.average)
        averaging = dataclasses.replace(averaging, noise=_noise(run, params, averaging))
    elif config.average is not None:
        params = carry.average
    is_single = config.num_seeds is None
    return Fit(
        objective=chosen.objective,
        params=params,
        last_params=carry.params,
        state=carry.state,
        history={"value": values},
        args=chosen.stored_args,
        steps=step,
        num_skipped=int(carry.num_skipped) if is_single else np.asarray(carry.num_skipped),
        num_seeds=config.num_seeds,
        stop_reason=reason,
        example=None if chosen.stored_args is not None else shapes_of(run.init_args),
        averaging=averaging,
        labels=chosen.labels,
    )


def _noise(run: FitRun, params: PyTree, averaging: Averaging) -> dict[str, tuple[float, float]]:
    """Spread of the iterates and error of their average, in posterior widths, by site."""
    guide = getattr(run.chosen.objective, "guide", None)
    is_single = run.config.num_seeds is None
    if not isinstance(guide, Program) or not is_single or averaging.start < 0:
        return {}
    spread, error = (
        noise_shares(guide, params, deviations, run.chosen.key, run.init_args)
        for deviations in (averaging.spread, averaging.error)
    )
    return {name: (spread[name], error[name]) for name in spread}


def _warn_of_interrupt(steps: int, checkpoint: str | os.PathLike | None) -> None:
    """Say what Ctrl-C has done, since the script that called goes on."""
    goes_on = "Pass checkpoint=PATH, and the same call goes on where such a run ended."
    if checkpoint is not None:
        goes_on = f"The same call goes on at this step from '{os.fspath(checkpoint)}'."
    warnings.warn(
        f"fit: Ctrl-C after step {steps:,}. The fit of these steps is returned and the script goes on; where half a fit must "
        f"not be used, test fit.interrupted. {goes_on} Ctrl-C twice ends the script.",
        stacklevel=5,
    )
