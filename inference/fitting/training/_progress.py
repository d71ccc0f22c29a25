"""What a run shows of itself: a bar in a terminal or a notebook, lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from jaxtyping import PyTree
from tqdm.auto import tqdm

_SECONDS_BETWEEN_LINES = 30.0


type Bar = Lines | tqdm


def progress_bar(num_steps: int | None, step: int, *, is_shown: bool) -> Bar:
    """An object with `update`, `set_postfix_str` and `close`, as a context."""
    if is_shown and not _can_redraw():
        return Lines(num_steps, step)
    return tqdm(total=num_steps, initial=step, disable=not is_shown, desc="fit", unit="step")


def _can_redraw() -> bool:
    """Whether a bar can be drawn over: a terminal, or a notebook (whose class tqdm's automatic one then derives from)."""
    return sys.stderr.isatty() or any(c.__module__ == "tqdm.notebook" for c in tqdm.__mro__)


class Lines:
    """The bar's methods, in lines of a log: one every half a minute, and one at the end.

    Args:
        num_steps: of the run, or None.
        step: steps before this run.
        clock: seconds; another one in tests.
    """

    def __init__(
        self, num_steps: int | None, step: int, clock: Callable[..., PyTree] = time.monotonic
    ) -> None:
        self.num_steps, self.step, self.clock = num_steps, step, clock
        self.first, self.began, self.said, self.said_at = step, clock(), clock(), -1
        self.text = ""

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_postfix_str(self, text: str, refresh: bool = False) -> None:
        """What stands behind the number of steps."""
        self.text = text

    def update(self, num_steps: int) -> None:
        """So many steps more."""
        self.step += num_steps
        if self.clock() - self.said >= _SECONDS_BETWEEN_LINES:
            self._say()

    def close(self) -> None:
        """The last line."""
        if self.said_at != self.step:
            self._say()

    def _say(self) -> None:
        self.said, self.said_at = self.clock(), self.step
        seconds = max(self.said - self.began, 1e-9)
        of = "" if self.num_steps is None else f" of {self.num_steps}"
        rate = (self.step - self.first) / seconds
        line = f"fit: {self.step}{of} steps, {seconds:.0f} s, {rate:.3g} steps/s, {self.text}"
        print(line.rstrip(", "), file=sys.stderr, flush=True)
