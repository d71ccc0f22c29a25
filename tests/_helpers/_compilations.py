"""How many functions are compiled in a block."""

import contextlib
from collections.abc import Callable, Iterator

import jax

EVENT = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations() -> Iterator[Callable[[], int]]:
    """A count of the compilations so far in the block (those that a cache on disk serves included)."""
    found = []

    def listen(event: str, _: float, **__: object) -> None:
        if event == EVENT:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lambda: len(found)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
