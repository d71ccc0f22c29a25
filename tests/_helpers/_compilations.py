"""Count what XLA compiles."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax


class Compilations:
    """How many programs were compiled inside of `counted`."""

    num: int = 0


_open: list[Compilations] = []
_is_listening: list[bool] = []


@contextlib.contextmanager
def counted() -> Iterator[Compilations]:
    """The number of programs that are compiled inside, also those of one operation."""
    if not _is_listening:  # a listener cannot be taken away
        jax.monitoring.register_event_duration_secs_listener(_hear)
        _is_listening.append(True)
    found = Compilations()
    _open.append(found)
    try:
        yield found
    finally:
        _open.remove(found)


def _hear(event: str, seconds: float, **_: object) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        for found in _open:
            found.num += 1
