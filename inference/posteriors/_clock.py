"""The time that a search may take: it says what runs, and when nothing more may begin."""

from __future__ import annotations

import time
from collections.abc import Callable

MAX_SECONDS = 600.0
_EVERY = 15.0  # seconds without a word


class TimeUpError(Exception):
    """Nothing more may begin; the clock says why."""


class Clock:
    """Seconds of one call.

    Args:
        max_seconds: of them; None: as many as it takes.
        say: told what runs, at most every 15 seconds.
        now: seconds; another one in tests.

    Attributes:
        why: why nothing more may begin, in words; "" as long as there is time.
        running: what runs.
        is_interrupted: whether Ctrl-C was pressed.
    """

    def __init__(
        self,
        max_seconds: float | None = None,
        say: Callable[[str], None] = lambda text: None,
        now: Callable[[], float] | None = None,
    ) -> None:
        self._max, self._say, self._now = max_seconds, say, now or time.monotonic
        self._began = self._told = self._now()
        self.why = self.running = ""
        self.is_interrupted = False

    @property
    def left(self) -> float:
        """Seconds."""
        if self._max is None:
            return float("inf")
        return max(self._began + self._max - self._now(), 0.0)

    def is_over(self) -> bool:
        """Whether the time is spent, or the search was interrupted."""
        if not self.why and not self.left:
            self.why = f"max_seconds={self._max:g} were spent"
        return bool(self.why)

    def interrupt(self) -> None:
        """Nothing more may begin."""
        self.why, self.is_interrupted = self.why or "it was interrupted (Ctrl-C)", True

    def check(self, running: str) -> None:
        """Begin something, if there is time.

        Raises:
            TimeUpError: there is none.
        """
        if self.is_over():
            raise TimeUpError
        self.running = running

    def tell(self, text: str) -> None:
        """Say how far it is, if nothing has been said for long."""
        now = self._now()
        if now - self._told >= _EVERY:
            self._told = now
            most = f" of at most {self._max:g} (max_seconds)" if self._max else ""
            self._say(f"{self.running}: {text}, {now - self._began:.0f} s{most}")
