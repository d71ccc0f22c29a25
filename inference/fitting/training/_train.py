"""The host's part of fit: call the compiled loop until the run is over, and do in between what needs Python.

Order at the end of a device call: history, progress, errors, callbacks, checkpoint. Callbacks run at multiples of
`callback_every` and at the last step, checkpoints are written at multiples of `checkpoint_every` and at the end; in between,
the length of the device calls follows the clock, so that Ctrl-C and the progress bar stay prompt. Numbers do not depend on
that length.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from ..._processes import anywhere, gathered, together
from ..stationarity import is_done
from ..storage import Checkpoint, CheckpointFile, Folder, Store
from ._callbacks import FitInfo, wants_stop, with_state
from ._loop import (
    MAX_CONSECUTIVE_SKIPS,
    Carry,
    Config,
    compile_steps,
    run_keys,
    step_args,
    step_key,
)
from ._nonfinite import NonFiniteError, diagnose
from ._profile import Profile
from ._progress import Bar, progress_bar

_SECONDS_PER_CALL = 0.3
_CALLING = "in a callback"  # what processes are doing


class HostPlan(NamedTuple):
    """What the host does and when."""

    num_steps: int | None
    callbacks: Sequence[Callable[[FitInfo], object]]
    callback_every: int
    checkpoint: str | os.PathLike | None
    checkpoint_every: int
    run: dict[str, object]  # description for the checkpoint
    progress: bool
    is_shared: bool  # by several processes
    is_spread: bool  # each of which has its own rows
    store: Store | None  # of checkpoints


class History:
    """Values of all steps so far, in a buffer that grows."""

    def __init__(self, values: np.ndarray):
        self._buffer, self._size = values, len(values)

    def append(self, values: np.ndarray) -> None:
        size = self._size + len(values)
        if size > len(self._buffer):
            grown = np.empty((2 * size, *values.shape[1:]), values.dtype)
            grown[: self._size] = self.values()
            self._buffer = grown
        self._buffer[self._size : size] = values
        self._size = size

    def values(self) -> np.ndarray:
        """Read-only view of shape [steps] or [steps, seeds]."""
        view = self._buffer[: self._size]
        view.flags.writeable = False
        return view


class Training:
    """One run (or several seeds at once) on its way.

    Args:
        config: static choices.
        plan: when to do what.
        keys: the run's key, or one per seed.
        carry: state before step number `step`.
        step: number of steps already completed.
        values: their values.
        make_fit: `(carry, values, step, stop_reason) -> Fit`.
    """

    def __init__(
        self,
        config: Config,
        plan: HostPlan,
        keys: jax.Array,
        carry: Carry,
        step: int,
        values: np.ndarray,
        make_fit: Callable,
    ):
        self._config, self._plan, self._keys, self._make_fit = config, plan, keys, make_fit
        self._loop_keys = tuple(config.over_seeds(run_keys)(keys)[2:])
        self._carry, self._step, self._history = carry, step, History(values)
        self._called, self._saved = step, step
        # Of a run that goes on from a file; of a new one nothing is asked.
        done = is_done((carry.opt_state, carry.average)) if step else None
        self._is_settled = done is not None and bool(np.all(np.asarray(done)))
        # The first call compiles and measures.
        self._length, self._timing = 1, Timing(0, 0.0)
        # A callback may keep the parameters it sees, so their memory is reused only without callbacks.
        self._run = compile_steps(config, donate=not plan.callbacks)

    def finish(self) -> Any:
        """Train to the end and return the fit."""
        self._start = time.monotonic()
        plan = self._plan
        source = self._config.source
        with (
            _closing(plan),
            _deferred_interrupt() as pressed,
            source.reading(plan.num_steps, lambda: pressed.is_set() and not plan.is_shared),
            _bar(plan, self._step) as bar,
        ):
            try:
                reason = self._loop(pressed, bar)
            except KeyboardInterrupt:
                # From a callback or from the data; a second Ctrl-C is meant to end everything at once.
                if pressed.is_set() or plan.is_shared:  # the others do not come to the end
                    raise
                reason = "interrupt"
            self._save(stopped=reason == "callback")
        return self._fit(reason)

    def _loop(self, pressed: threading.Event, bar: Bar) -> str:
        num_steps = self._plan.num_steps
        while num_steps is None or self._step < num_steps:
            if self._is_settled:
                return "settled"
            if not self._advance(bar):
                return "interrupt" if pressed.is_set() else self._data_ended()
            is_last = self._step == num_steps or self._is_settled
            is_due = is_last or self._step % self._plan.callback_every == 0
            if is_due and self._plan.callbacks and self._anywhere(self._call_back, _CALLING):
                return "callback"
            if self._step % self._plan.checkpoint_every == 0:
                self._save()
            if self._anywhere(pressed.is_set, _CALLING):
                return "interrupt"
        return "settled" if self._is_settled else "num_steps"

    def _advance(self, bar: Bar) -> bool:
        """One device call; False if the data has ended."""
        began = time.monotonic()
        data, num_steps = self._load()
        if num_steps == 0:
            return False
        run_steps = float(self._config.num_steps or math.inf)
        result = self._run(self._carry, self._loop_keys, self._step, num_steps, run_steps, data)
        self._carry, values, num_taken, is_bad, is_settled = result
        with self._config.source.waiting():
            num_taken, is_bad = int(num_taken), np.asarray(is_bad)
            self._is_settled = bool(is_settled)
        values = np.asarray(values)[:num_taken]
        if self._config.on_nonfinite == "raise" and is_bad.any():
            self._history.append(values[:-1])
            self._step += num_taken - 1
            self._raise_nonfinite(data, num_taken - 1, int(np.argmax(is_bad)))
        self._history.append(values)
        self._step += num_taken
        if np.all(np.asarray(self._carry.num_skipped_in_row) >= MAX_CONSECUTIVE_SKIPS):
            self._raise_nonfinite(data, num_taken - 1, 0, self._step - 1)
        self._set_length(num_steps, time.monotonic() - began)
        self._show(bar, values)
        return True

    def _anywhere(self, ask: Callable[[], bool], what: str) -> bool:
        return anywhere(ask, what, self._plan.is_shared)

    def _load(self) -> tuple[PyTree, int]:
        """The data of a device call. Several processes take as many steps, of data that go together, or all stop."""
        source, length = self._config.source, self._next_length()
        if not self._plan.is_shared:
            return source.load(length)
        length = int(gathered([length])[0, 0])  # each has its own clock
        with together(is_shared=True) as numbers:
            data, num_steps = source.load(length)
            numbers += num_steps, *source.signature()
        return data, num_steps

    def _next_length(self) -> int:
        plan = self._plan
        periods = [plan.checkpoint_every] if plan.checkpoint is not None else []
        periods += [plan.callback_every] if plan.callbacks else []
        ends = [self._step - self._step % period + period for period in periods]
        if plan.num_steps is not None:
            ends.append(plan.num_steps)
        return min(self._length, self._config.max_steps, *(end - self._step for end in ends))

    def _set_length(self, num_steps: int, seconds: float) -> None:
        self._timing = self._timing.then(num_steps, seconds)
        self._length = self._timing.next_length()

    def _show(self, bar: Bar, values: np.ndarray) -> None:
        gains = self._config.sign * values.mean(0, dtype=float)
        text = f"value={self._config.sign * np.min(gains):.6g}"
        num_skipped = int(np.sum(np.asarray(self._carry.num_skipped)))
        bar.set_postfix_str(
            text + (f" skipped={num_skipped}" if num_skipped else ""), refresh=False
        )
        bar.update(len(values))

    def _call_back(self) -> bool:
        if not self._plan.callbacks or self._called == self._step:
            return False
        info = FitInfo(
            step=self._step,
            num_new=self._step - self._called,
            params=self._carry.params,
            state=self._carry.state,
            values=self._history.values(),
            num_skipped=np.asarray(self._carry.num_skipped),
            direction=self._config.objective.direction,
            seconds=time.monotonic() - self._start,
        )
        self._called = self._step
        return wants_stop(self._plan.callbacks, info)

    def _save(self, stopped: bool = False) -> None:
        if self._plan.store is None or (self._saved == self._step and not stopped):
            return
        values = self._history.values()
        with together(self._plan.is_shared, "to say what their checkpoint holds"):
            states = [c.get_state(self._carry.params) for c in with_state(self._plan.callbacks)]
            loader = self._config.source.get_state(self._step)
        contents = Checkpoint(
            self._step,
            self._carry,
            values,
            self._plan.run,
            stopped,
            states,
            loader,
            self._plan.is_spread,
        )
        try:
            self._plan.store.save(contents)
        except OSError as err:
            warnings.warn(
                f"fit: no checkpoint of step {self._step} was written. {err} The run goes on, and its fit is returned.",
                stacklevel=4,
            )
        self._saved = self._step  # or tried

    def _data_ended(self) -> str:
        num_steps = self._plan.num_steps
        if num_steps is None:
            return "data"
        self._save()
        raise ValueError(
            f"Argument 'args': the iterator ended after {self._step} of {num_steps} steps. Pass an iterable that can be read "
            "again (a list or a data loader, not a generator), or num_steps=None to train until the data ends."
        )

    def _raise_nonfinite(
        self, data: PyTree, index: int, number: int, step: int | None = None
    ) -> None:
        self._save()
        step = self._step if step is None else step
        take = self._of_seed(number)
        key = take(self._keys)
        args = step_args(self._config, key, data, index, step)
        params, state = take(self._carry.params), take(self._carry.state)
        diagnosis = diagnose(self._config, params, state, step_key(key, step), args)
        seed = None if self._config.num_seeds is None else number
        raise NonFiniteError(diagnosis, step, seed, self._fit("error"))

    def _of_seed(self, number: int) -> Callable[[PyTree], PyTree]:
        if self._config.num_seeds is None:
            return lambda tree: tree
        return lambda tree: jax.tree.map(lambda leaf: leaf[number], tree)

    def _fit(self, reason: str) -> Any:
        return self._make_fit(self._carry, self._history.values(), self._step, reason)


class Timing(NamedTuple):
    """What a device call took, and how much of it is the same for a call of any length; None until that is known."""

    num_steps: int
    seconds: float
    fixed: float | None = None

    def then(self, num_steps: int, seconds: float) -> Timing:
        """The next call's; two calls of very different lengths tell what is fixed from what a step costs."""
        fixed = self.fixed
        if 0 < 2 * self.num_steps <= num_steps or num_steps <= self.num_steps // 2:
            fixed = seconds - num_steps * (seconds - self.seconds) / (num_steps - self.num_steps)
            fixed = max(0.0, fixed)
        return Timing(num_steps, seconds, fixed and min(fixed, seconds))

    def next_length(self) -> int:
        """Steps for `_SECONDS_PER_CALL`; for ten times what is fixed, if that is more, so that it takes a tenth of a run."""
        fixed = self.fixed or 0.0
        a_step = max((self.seconds - fixed) / self.num_steps, 1e-9)
        wanted = int((max(_SECONDS_PER_CALL, 10 * fixed) - fixed) / a_step)
        least = 2 if self.fixed is None and self.num_steps == 1 else 1  # once, to tell them apart
        return min(max(least, wanted), 8 * self.num_steps)


def _bar(plan: HostPlan, step: int) -> Bar:
    return progress_bar(plan.num_steps, step, is_shown=plan.progress and jax.process_index() == 0)


@contextlib.contextmanager
def _closing(plan: HostPlan) -> Iterator[None]:
    """At the end, whatever it is, recordings end, and what is being written is waited for."""
    try:
        yield
    finally:
        for part in (*plan.callbacks, plan.store):
            if isinstance(part, Profile | CheckpointFile | Folder):
                part.close()


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Inside, the first Ctrl-C sets the event; the second one raises KeyboardInterrupt."""
    pressed = threading.Event()

    def handler(signum, frame):
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    # A program's own handler stays in charge, and only the main thread may set one.
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield pressed
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
