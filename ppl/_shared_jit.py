"""Compile a program once, whichever function it was traced from.

`jax.jit` knows a function by its identity: a closure that each call of `fit` makes is compiled in each of them, though it traces
to the same program. `shared_jit` traces as `jax.jit` does, and looks the traced program up by its text: one that was compiled
before, from this function or another, of objects that are gone or alive, is not compiled again.

Invariants: the text is the whole program, numbers included, so that equal texts compute the same. Arrays that a function
closes over are inputs of what is compiled: executables and their keys hold neither data nor objects of a program, and equal
programs on other data share. What calls back into Python is not in its text, and is not
shared. Where JAX traces, checks for NaN or keeps constants out of the text, this is `jax.jit`.
"""

from __future__ import annotations

import collections
import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._compat import ClosedJaxpr, Tracer, jaxpr_as_fun

MOST_KEPT = 256  # executables, the last used
_SETTINGS = ("disable_jit", "debug_nans", "debug_infs", "use_simplified_jaxpr_constants")


class SharedJit:
    """`fn`, a function of pytrees of arrays, compiled on first use for each structure and shapes of its arguments.

    Args:
        fn: the function.
        donate_argnums: arguments whose memory is used for the results; the caller must not use them again.
    """

    def __init__(self, fn: Callable[..., Any], donate_argnums: Sequence[int] = ()) -> None:
        self._jit, self._donated = jax.jit(fn, donate_argnums=donate_argnums), set(donate_argnums)
        self._known: dict[Any, tuple[Any, list[Any], Any]] = {}

    def __call__(self, *args: Any) -> Any:
        leaves = jax.tree.leaves(args)
        if _is_for_jax(leaves):
            return self._jit(*args)
        # JAX finds what it has traced by all that it depends on, and keeps it for as long as the function lives.
        traced = self._jit.trace(*args)
        closed = traced.jaxpr
        key = id(closed), _places(leaves)
        if key not in self._known:
            number = [i for i, arg in enumerate(args) for _ in jax.tree.leaves(arg)]
            donated = [leaf for leaf, arg in enumerate(number) if arg in self._donated]
            run, inputs = _compiled(closed, leaves, donated)
            self._known[key] = run, inputs, closed
        run, inputs, _ = self._known[key]
        return jax.tree.unflatten(traced.out_tree, run(inputs, *leaves))


def shared_jit(fn: Callable[..., Any], donate_argnums: Sequence[int] = ()) -> SharedJit:
    """`fn` compiled; a program that was compiled before, from whatever function, is not compiled again."""
    return SharedJit(fn, donate_argnums)


def shared_scan(step: Callable[..., Any], init: Any, xs: Any, **options: Any) -> Any:
    """`jax.lax.scan`, compiled once for all steps that are the same program."""
    return _shared(lambda init, xs: jax.lax.scan(step, init, xs, **options), init, xs)


def shared_while_loop(go_on: Callable[..., Any], step: Callable[..., Any], start: Any) -> Any:
    """`jax.lax.while_loop`, compiled once for all loops that are the same program."""
    return _shared(lambda start: jax.lax.while_loop(go_on, step, start), start)


def _shared(run: Callable[..., Any], *args: Any) -> Any:
    return (run if _is_for_jax(jax.tree.leaves(args)) else shared_jit(run))(*args)


_executables: collections.OrderedDict[Any, Any] = collections.OrderedDict()
_lock = threading.Lock()


def _compiled(
    closed: ClosedJaxpr, leaves: list[Any], donated: list[int]
) -> tuple[Callable[..., list[Any]], list[Any]]:
    """`run(inputs, *leaves)`, and the constants of the program that are its inputs."""
    is_input = [isinstance(x, jax.Array) or np.ndim(x) > 0 for x in closed.consts]
    inputs = [const for const, is_one in zip(closed.consts, is_input, strict=True) if is_one]

    def run(inputs: list[Any], *leaves: Any) -> list[Any]:
        rest = iter(inputs)
        consts = [
            next(rest) if is_one else const
            for const, is_one in zip(closed.consts, is_input, strict=True)
        ]
        return jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts))(*leaves)

    lowered = jax.jit(run, donate_argnums=[leaf + 1 for leaf in donated]).lower(inputs, *leaves)
    text = lowered.as_text()
    if "callback" in text:  # into Python: the text has a number in place of the function
        return lowered.compile(), inputs
    # Inputs that nothing reads are not in the text, and are checked by the executable.
    kinds = tuple((np.shape(x), jax.dtypes.result_type(x)) for x in [*inputs, *leaves])
    key = hashlib.sha256(text.encode()).digest(), kinds, _places([*inputs, *leaves])
    with _lock:
        found = _executables.pop(key, None)
        found = lowered.compile() if found is None else found
        _executables[key] = found
        while len(_executables) > MOST_KEPT:
            _executables.popitem(last=False)
    return found, inputs


def _places(leaves: list[Any]) -> tuple[Any, ...]:
    """On which devices a program with these arguments runs, and how they lie there."""
    committed = [x.sharding if isinstance(x, jax.Array) and x.committed else None for x in leaves]
    return jax.config.jax_default_device, tuple(committed)


def _is_for_jax(leaves: list[Any]) -> bool:
    """Whether a call is left to JAX."""
    if any(getattr(jax.config, f"jax_{name}", False) for name in _SETTINGS):
        return True
    # Under a transformation whatever is computed is traced, arguments or not.
    return any(isinstance(x, Tracer) for x in [*leaves, jnp.zeros(())])
