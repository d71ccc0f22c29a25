"""A thread that runs an iterator ahead of its consumer, and takes turns with it where both run code of users.

Invariants: the order is the iterator's; at most `depth` items wait; what the iterator raises, Ctrl-C included, is raised where
the consumer would have got the item. The iterator enters `turn` around whatever belongs to users. That runs only while the
consumer waits for the device or for an item: a loader may share what it changes with callbacks and with the program, and users
need not guard it.
"""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable, Iterator

import jax
from jaxtyping import PyTree

_SECONDS = 0.05  # between looks at whether the other side has given up


class Ahead:
    """`items` of the iterator that `make` returns, ahead of the consumer.

    Args:
        make: called in the thread with this object.
        depth: the most items that wait.
    """

    def __init__(self, make: Callable[..., PyTree], depth: int):
        self._queue: queue.Queue = queue.Queue(depth)
        self._turns, self._is_open, self._is_taken = threading.Condition(), False, False
        self._stopped = threading.Event()
        self.is_awaited = False
        # Both are of the calling thread alone.
        settings = bool(jax.config.jax_enable_x64), jax.config.jax_default_device
        run = lambda: self._run(make, *settings)
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(run,), daemon=True, name="lapilli-prefetch"
        )
        self._thread.start()

    def get(self, gives_up: Callable[[], bool]) -> PyTree:
        """The next item; None at the end, or once `gives_up()`."""
        with self.waiting():
            self.is_awaited = True
            try:
                while not gives_up():
                    with contextlib.suppress(queue.Empty):
                        item, error = self._queue.get(timeout=_SECONDS)
                        break
                else:
                    return None
            finally:
                self.is_awaited = False
        if error is not None:
            raise error
        return item

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While the consumer is inside, the thread may run code of users."""
        with self._turns:
            self._is_open = True
            self._turns.notify_all()
        try:
            yield
        finally:
            with self._turns:
                self._is_open = False
                self._turns.wait_for(lambda: not self._is_taken)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Around code of users in the thread."""
        with self._turns:
            self._turns.wait_for(lambda: self._is_open or self._stopped.is_set())
            if self._stopped.is_set():
                raise _Stopped
            self._is_taken = True
        try:
            yield
        finally:
            with self._turns:
                self._is_taken = False
                self._turns.notify_all()

    def stop(self) -> None:
        """End the thread, after what it is reading."""
        self._stopped.set()
        with self._turns:
            self._turns.notify_all()
        self._thread.join()

    def _run(self, make: Callable[..., PyTree], is_x64: bool, device: object) -> None:
        with contextlib.suppress(_Stopped), jax.enable_x64(is_x64), jax.default_device(device):
            try:
                for item in make(self):
                    self._put(item, None)
                self._put(None, None)
            except _Stopped:
                raise
            except BaseException as err:  # to be raised in the consumer's thread
                self._put(None, err)

    def _put(self, item: PyTree, error: BaseException | None) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put((item, error), timeout=_SECONDS)
                return
        raise _Stopped


class _Stopped(Exception):
    """The consumer wants no more."""
