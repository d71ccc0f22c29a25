"""Callbacks of fit: functions of a `FitInfo`, called between device calls, that may stop the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import PyTree

from ....ppl._show import describe, shown


@shown
@dataclasses.dataclass(frozen=True)
class FitInfo:
    """What a callback sees.

    Attributes:
        step: number of steps completed.
        num_new: steps completed since the previous call of the callbacks.
        params: current parameters (unconstrained; not the running average). With several seeds, a leading seed axis.
        state: current state of the objective.
        values: the objective's value at every step so far, in nats, shape [step] or [step, seeds]; NaN or infinite where a
            step was skipped.
        num_skipped: number of skipped steps (per seed, if several).
        direction: whether `values` is maximised ("max") or minimised ("min").
        seconds: wall time since the first step of this call of fit.
    """

    step: int
    num_new: int
    params: PyTree
    state: PyTree
    values: np.ndarray
    num_skipped: int | np.ndarray
    direction: Literal["max", "min"]
    seconds: float

    def _facts(self) -> dict[str, PyTree]:
        last = self.values[-1] if len(self.values) else None
        return {
            "step": self.step,
            "num_new": self.num_new,
            "value": None
            if last is None
            else f"{describe(last)} nats at the last step, {self.direction}imised",
            "params": self.params,
            "num_skipped": self.num_skipped,
            "seconds": self.seconds,
        }


def wants_stop(callbacks: Iterable[Callable[[FitInfo], PyTree]], info: FitInfo) -> bool:
    """Call every callback; whether one of them asked to stop.

    Raises:
        TypeError: if a callback returns something else than None, a bool or "stop".
    """
    stop = False
    for callback in callbacks:
        answer = callback(info)
        if not (answer is None or isinstance(answer, bool | np.bool_) or answer == "stop"):
            raise TypeError(
                f"Callback {callback!r} returned {answer!r} at step {info.step}; return True or 'stop' to end the run, False or "
                "None to go on."
            )
        stop |= bool(answer)
    return stop


class Stateful(Protocol):
    """A callback whose state goes into checkpoints."""

    def __call__(self, info: FitInfo) -> object: ...
    def get_state(self, params: PyTree) -> PyTree: ...
    def set_state(self, state: PyTree) -> None: ...


def with_state(callbacks: Iterable[Callable[..., PyTree]]) -> list[Any]:
    """The callbacks that have a state: methods `get_state(params)`, a tree of arrays, and `set_state(state)`."""
    return [c for c in callbacks if hasattr(c, "get_state") and hasattr(c, "set_state")]


def labels(callbacks: Iterable[Callable[..., PyTree]]) -> list[str]:
    """What tells the callbacks with a state apart in a checkpoint: class and name.

    Raises:
        ValueError: two are alike.
    """
    found = [f"{type(c).__name__} {getattr(c, 'name', '')}".strip() for c in with_state(callbacks)]
    for label in found:
        if found.count(label) > 1:
            raise ValueError(
                f"fit: argument 'callbacks' has {found.count(label)} of '{label}', and a checkpoint could not tell them apart. "
                "Name them, e.g. KeepBest(loss, key, name='validation')."
            )
    return found


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Stop when the value has not improved for `patience` steps.

    The values are averaged over consecutive windows of `window` steps. A window improves if its mean is better than the best
    one so far by more than `min_delta`; the run stops once `patience` steps have passed since the last window that improved. With
    several seeds, it stops when this holds for every seed. Skipped steps are left out of the means. The decision depends on
    the values alone, so a resumed run stops at the same step as an uninterrupted one.

    Args:
        patience: steps without improvement, > 0.
        min_delta: smallest improvement that counts, in nats, >= 0.
        window: steps per mean, > 0; choose it so that the noise of the mean is below `min_delta`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    patience: int
    min_delta: float = 0.0
    window: int = 100

    def __post_init__(self):
        if self.patience < 1 or self.window < 1 or not self.min_delta >= 0:
            raise ValueError(
                f"EarlyStopping needs patience >= 1, window >= 1 and min_delta >= 0; got {self.patience}, {self.window}, "
                f"{self.min_delta}."
            )

    def __call__(self, info: FitInfo) -> bool:
        gains = info.values if info.direction == "max" else -info.values
        gains = gains[:, None] if gains.ndim == 1 else gains
        return all(self._is_flat(gains[:, seed]) for seed in range(gains.shape[1]))

    def _is_flat(self, gains: np.ndarray) -> bool:
        num_windows = len(gains) // self.window
        blocks = gains[: num_windows * self.window].reshape(num_windows, self.window)
        finite = np.isfinite(blocks)
        totals = np.where(finite, blocks, 0).sum(1, dtype=float)
        best, last = -np.inf, 0
        for number, (total, count) in enumerate(zip(totals, finite.sum(1), strict=True)):
            if count and total / count > best + self.min_delta:
                best, last = total / count, number
        return num_windows > 0 and (num_windows - 1 - last) * self.window >= self.patience


@dataclasses.dataclass(frozen=True)
class LogEvery:
    """Print step, mean value since the last line, and seconds, about every `num_steps` steps.

    Args:
        num_steps: steps between lines, > 0; callbacks run every `callback_every` steps, which limits the resolution.
        print_fn: called with the line.

    Raises:
        ValueError: if `num_steps` < 1.
    """

    num_steps: int
    print_fn: Callable[[str], PyTree] = print

    def __post_init__(self):
        if self.num_steps < 1:
            raise ValueError(f"LogEvery needs num_steps >= 1; got {self.num_steps}.")

    def __call__(self, info: FitInfo) -> None:
        if info.step // self.num_steps == (info.step - info.num_new) // self.num_steps:
            return
        mean = np.mean(info.values[-max(self.num_steps, info.num_new) :])
        self.print_fn(f"step {info.step}: value {mean:.6g} nats ({info.seconds:.1f} s)")
