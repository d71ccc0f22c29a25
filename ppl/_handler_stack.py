"""A stack of effect handlers for each thread, in the place of NumPyro's, which is one for all threads.

A handler belongs to the calls that are made while it is open, and JAX's tracers to the thread that traces: the stack is kept by
thread, where JAX keeps the state of its traces. (A context variable would follow a copied context into other threads, with the
handlers of a trace that goes on elsewhere; and no trace is suspended for another task of its thread.)
"""

from __future__ import annotations

import sys
import threading
import types
from collections import UserList
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from jaxtyping import PyTree

from .._workarounds import Workaround


class HandlerStack(threading.local, UserList[Any]):
    """A list with contents of its own in each thread, empty at first; `data` is the calling thread's."""

    # What NumPyro does at each statement, without a copy that is one for each thread again.

    def __getitem__(self, index: Any) -> Any:
        return self.data[index]

    def __iter__(self) -> Iterator[PyTree]:
        return iter(self.data)

    def __reversed__(self) -> Iterator[Any]:
        return reversed(self.data)


def give_each_thread_its_own(stack: list[PyTree]) -> HandlerStack:
    """The stack that takes the place of `stack`, in every module that has imported it; `stack` itself if it is no list."""
    if not isinstance(stack, list):  # NumPyro keeps one for each thread by now
        return stack
    own = HandlerStack()
    own.extend(stack)  # handlers that are open around the import
    for module in list(sys.modules.values()):
        if isinstance(module, types.ModuleType):
            names = object.__getattribute__(module, "__dict__")  # `vars` would load a lazy module
            names.update({name: own for name, value in list(names.items()) if value is stack})
    return own


def record(stack: object) -> Workaround:
    """The entry of this mend in `lapilli.workarounds()`, where NumPyro's stack is `stack`."""
    is_applied = isinstance(stack, HandlerStack)
    return Workaround(
        "numpyro-handler-stack",
        f"numpyro {version('numpyro')}",
        "The stack of effect handlers is one for all threads: a program that runs in one of them meets the handlers of another.",
        is_applied,
        "Each thread has a stack of its own." if is_applied else "It is one for each thread.",
    )
