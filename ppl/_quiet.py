"""Warnings of one thread kept back.

`warnings.catch_warnings` puts another list of filters in place for all threads, and threads that overlap put back the wrong one:
what one of them wanted to ignore is then ignored for good. Here a filter is added that holds for one thread alone, and is taken
out again; should a list with it come back later, it matches nothing.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet(words: str = "") -> Iterator[None]:
    """A context in which the calling thread gives no warning whose text has `words`.

    Args:
        words: "" for all warnings.
    """
    if getattr(sys.flags, "context_aware_warnings", False):  # Python 3.14: a list for each thread
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", f".*{re.escape(words)}")
            yield
        return
    mine = _Mine(words)
    entry: Any = ("ignore", mine, Warning, None, 0)
    filters: Any = warnings.filters
    filters.insert(0, entry)
    try:
        yield
    finally:
        mine.thread = None
        with contextlib.suppress(ValueError):  # the list was put back in the meantime
            filters.remove(entry)


class _Mine:
    """What stands in a filter for a pattern of messages."""

    def __init__(self, words: str) -> None:
        self.words = words
        self.thread: int | None = threading.get_ident()

    def match(self, text: str) -> bool:
        """Whether the warning is one to be kept back."""
        return self.thread == threading.get_ident() and self.words in text
