"""Compile a program once, whichever function it was traced from.

`jax.jit` knows a function by its identity: a closure that each call of `fit` makes is compiled in each of them, though it traces
to the same program. `shared_jit` traces as `jax.jit` does, and looks the traced program up by its text: one that was compiled
before, from this function or another, of objects that are gone or alive, is not compiled again.

Invariants: the text is the whole program, numbers included, so that equal texts compute the same. Arrays that a function
closes over are inputs of what is compiled, but for small ones where that is asked for: executables and their keys hold neither
data nor objects of a program, and equal programs on other data share. What calls back into Python is not in its text, and is
not shared. Where JAX traces, checks for NaN or keeps constants out of the text, this is `jax.jit`.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from ._compat import ClosedJaxpr, Tracer, jaxpr_as_fun, trace_state
from ._types import Key

MOST_KEPT = 256  # executables, the last used
_NO_TRACE = trace_state()
# Settings of JAX under which a call is its own, and those by which a function is another program.
_SETTINGS = (
    "jax_disable_jit", "jax_debug_nans", "jax_debug_infs", "jax_use_simplified_jaxpr_constants",
)  # fmt: skip
_MEANING = (
    "jax_enable_x64", "jax_default_matmul_precision", "jax_numpy_dtype_promotion", "jax_numpy_rank_promotion",
    "jax_threefry_partitionable", "jax_default_prng_impl", "jax_default_device",
)  # fmt: skip

_BRIEF = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class SharedJit:
    """`fn`, a function of pytrees of arrays, compiled on first use for each structure and shapes of its arguments.

    Args:
        fn: the function.
        donate_argnums: arguments whose memory is used for the results; the caller must not use them again.
        most_folded: entries of an array that the function closes over, up to which it is part of the program, so that XLA may
            compute with it when it compiles; numbers of NumPy are in any case.
        is_brief: whether it computes so little that compiling is what takes time: on a CPU its code is then optimised less.
    """

    def __init__(
        self,
        fn: Callable[..., PyTree],
        donate_argnums: Sequence[int] = (),
        most_folded: int = 0,
        *,
        is_brief: bool = False,
    ) -> None:
        self._jit, self._donated = jax.jit(fn, donate_argnums=donate_argnums), set(donate_argnums)
        self._most_folded, self._is_brief = most_folded, is_brief
        self._known: dict[Any, tuple[Any, list[Any], Any]] = {}

    def __call__(self, *args: PyTree) -> Any:
        leaves, tree = jax.tree.flatten(args)
        if _is_for_jax(leaves):
            return self._jit(*args)
        key = tree, tuple(map(_kind, leaves)), tuple(getattr(jax.config, s) for s in _MEANING)
        if key not in self._known:
            traced = self._jit.trace(*args)
            number = [i for i, arg in enumerate(args) for _ in jax.tree.leaves(arg)]
            donated = [leaf for leaf, arg in enumerate(number) if arg in self._donated]
            found = _compiled(traced.jaxpr, leaves, donated, self._most_folded, self._is_brief)
            self._known[key] = (*found, traced.out_tree)
        run, inputs, out_tree = self._known[key]
        return jax.tree.unflatten(out_tree, run(inputs, *leaves))


def shared_jit(
    fn: Callable[..., PyTree],
    donate_argnums: Sequence[int] = (),
    most_folded: int = 0,
    *,
    is_brief: bool = False,
) -> SharedJit:
    """`fn` compiled; a program that was compiled before, from whatever function, is not compiled again."""
    return SharedJit(fn, donate_argnums, most_folded, is_brief=is_brief)


def shared_scan(
    step: Callable[..., PyTree],
    init: PyTree,
    xs: PyTree,
    **options: PyTree,
) -> PyTree:
    """`jax.lax.scan`, compiled once for all steps that are the same program."""
    return shared_call(lambda init, xs: jax.lax.scan(step, init, xs, **options), init, xs)


def shared_while_loop(
    go_on: Callable[..., PyTree], step: Callable[..., PyTree], start: PyTree
) -> PyTree:
    """`jax.lax.while_loop`, compiled once for all loops that are the same program."""
    return shared_call(lambda start: jax.lax.while_loop(go_on, step, start), start)


def shared_call(run: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """`run(*args)` of arrays, compiled as a whole, once for all that are the same program; inside of a trace part of it."""
    return (run if _is_for_jax(jax.tree.leaves(args)) else shared_jit(run))(*args)


def compiled_alone[**P, R](fn: Callable[P, R]) -> Callable[P, R]:
    """`fn` of arrays: one compiled program outside of a trace, where its operations would be one each; inside part of it."""
    whole = jax.jit(fn)

    @functools.wraps(fn)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return (fn if _is_for_jax(jax.tree.leaves((args, kwargs))) else whole)(*args, **kwargs)

    return run


_executables: collections.OrderedDict[Any, Any] = collections.OrderedDict()
_lock = threading.Lock()


def _compiled(
    closed: ClosedJaxpr,
    leaves: list[PyTree],
    donated: list[int],
    most_folded: int,
    is_brief: bool,
) -> tuple[Callable[..., list[PyTree]], list[PyTree]]:
    """`run(inputs, *leaves)`, and the constants of the program that are its inputs."""
    is_array = [isinstance(x, jax.Array) or np.ndim(x) > 0 for x in closed.consts]
    is_input = [
        a and np.size(x) > most_folded for a, x in zip(is_array, closed.consts, strict=True)
    ]
    inputs = [const for const, is_one in zip(closed.consts, is_input, strict=True) if is_one]

    def run(inputs: list[Key], *leaves: Key) -> list[PyTree]:
        rest = iter(inputs)
        consts = [
            next(rest) if is_one else const
            for const, is_one in zip(closed.consts, is_input, strict=True)
        ]
        return jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts))(*leaves)

    lowered = jax.jit(run, donate_argnums=[leaf + 1 for leaf in donated]).lower(inputs, *leaves)
    options = _BRIEF if is_brief and jax.default_backend() == "cpu" else None
    text = lowered.as_text()
    if "callback" in text:  # into Python: the text has a number in place of the function
        return lowered.compile(options), inputs
    # Inputs that nothing reads are not in the text, and are checked by the executable.
    kinds = tuple((np.shape(x), jax.dtypes.result_type(x)) for x in [*inputs, *leaves])
    key = (
        hashlib.sha256(text.encode()).digest(),
        kinds,
        _places([*inputs, *leaves]),
        options is None,
    )
    with _lock:
        found = _executables.pop(key, None)
        found = lowered.compile(options) if found is None else found
        _executables[key] = found
        while len(_executables) > MOST_KEPT:
            _executables.popitem(last=False)
    return found, inputs


def _places(leaves: list[PyTree]) -> tuple[PyTree, ...]:
    """On which devices a program with these arguments runs, and how they lie there."""
    committed = [x.sharding if isinstance(x, jax.Array) and x.committed else None for x in leaves]
    return jax.config.jax_default_device, tuple(committed)


def _kind(x: Array | Key | int | np.ndarray) -> Any:
    """What a program depends on in an argument: not its values."""
    if isinstance(x, jax.Array):
        return x.aval, x.sharding if x.committed else None  # pyright: ignore[reportAttributeAccessIssue]
    return (np.shape(x), x.dtype) if isinstance(x, np.ndarray | np.generic) else type(x)


def _is_for_jax(leaves: list[Array | Key | int | np.ndarray]) -> bool:
    """Whether a call is left to JAX."""
    if any(getattr(jax.config, name, False) for name in _SETTINGS):
        return True
    # Under a transformation whatever is computed is traced, arguments or not.
    return trace_state() != _NO_TRACE or any(isinstance(x, Tracer) for x in leaves)
