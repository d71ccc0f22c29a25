"""Trainings two at a time on a CPU.

The step of a small network keeps one core busy: XLA shares its operations out among the cores and waits for them, and two
trainings at once take no longer than one alone.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from itertools import batched
from typing import NamedTuple

import jax

from ...ppl._compat import handler_stack


class Turn(NamedTuple):
    """What a job and those who wait for it tell each other.

    Attributes:
        compiled: the job sets it once its program is compiled, which the job beside it shares.
        unwanted: set when nobody asks for the result any more; the job ends soon, with whatever result.
        is_beside: whether the job runs beside another one, which shows its progress.
    """

    compiled: threading.Event
    unwanted: threading.Event
    is_beside: bool


def in_turn[T](jobs: Sequence[Callable[[Turn], T]], name: str) -> Generator[T]:
    """The results of jobs in their order: each is what it is alone, and of those that nobody asks for at most one is begun.

    On a CPU with two cores or more the second of two jobs runs in a thread of its own beside the first. Settings of JAX and
    handlers that are open in the calling thread alone would be missing there: then, as on other devices, each job runs when it is
    asked for. Ctrl-C while a result is waited for ends the results, with a warning that begins with the name.
    """
    for first, *other in batched(jobs, 2):
        mine, its = (Turn(threading.Event(), threading.Event(), is_it) for is_it in (False, True))
        if not other or not _has_two_cores():
            for job in (first, *other):
                yield job(mine)
            continue
        with ThreadPoolExecutor(1) as beside:
            if beside.submit(_settings).result() != _settings():
                yield from (job(mine) for job in (first, *other))
                continue
            waiting = beside.submit(_after, mine, other[0], its)
            try:
                yield first(mine)
                mine.compiled.set()
                try:
                    found = waiting.result()
                except KeyboardInterrupt:
                    warnings.warn(
                        f"{name}: Ctrl-C before the next training had ended. What was trained before it is returned.",
                        stacklevel=4,
                    )
                    return
                yield found
            finally:
                its.unwanted.set()
                mine.compiled.set()


def _after[T](before: Turn, job: Callable[[Turn], T], turn: Turn) -> T:
    """The job, begun when the other one has compiled its program, unless it is unwanted by then."""
    before.compiled.wait()
    if turn.unwanted.is_set():
        raise CancelledError
    return job(turn)


def _has_two_cores() -> bool:
    """Whether XLA has threads for two on this machine's processor; `NPROC`, where it is set, is what it counts them by."""
    of_process = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    num_cores = int(os.environ.get("NPROC") or len(of_process(0)))
    return jax.default_backend() == "cpu" and num_cores > 1


def _settings() -> tuple[object, ...]:
    """What programs of this thread depend on beside their arguments."""
    of_jax = tuple(getattr(jax.config, name, None) for name in jax.config.values)
    return (*of_jax, jax.sharding.get_abstract_mesh(), tuple(map(id, handler_stack())))
