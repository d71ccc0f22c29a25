"""What a program reaches without its arguments: closures, globals, defaults, attributes, and what these hold."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ...ppl._compat import is_concrete
from ...ppl.language import Program

_DEPTH = 6  # of calls, attributes and containers
_MOST = 1000  # things in one of them
_PART = 2**25  # bytes
_LIBRARIES = frozenset(
    "builtins equinox functools jax jaxlib numpy numpyro optax pandas scipy".split()
)


def has_whole_numbers(x: object) -> bool:
    """Whether it is an array of whole numbers, a series or a number of NumPy's."""
    return getattr(getattr(x, "dtype", None), "kind", "") in ("i", "u")


def has_nan(x: PyTree) -> bool:
    """Whether it holds a NaN, looked for in parts, of which a file that is mapped into memory is read one at a time."""
    if not is_real(x) or not hasattr(x, "__array__"):  # shapes have a type, and no values
        return False
    length = max(1, _PART * np.shape(x)[0] // max(x.nbytes, 1)) if np.ndim(x) else 1
    parts = (x[i : i + length] for i in range(0, len(x), length)) if np.ndim(x) else (x,)
    return any(bool(np.isnan(np.asarray(part)).any()) for part in parts)


def is_real(x: PyTree) -> bool:
    """Whether it is an array of real numbers."""
    return jnp.issubdtype(getattr(x, "dtype", np.dtype(int)), jnp.floating)


def holds_codes(program: object) -> bool:
    """Whether a program reaches numbers that may be codes: an array of whole ones or with NaN, a list with a negative one."""
    todo: list[tuple[object, int]] = [(program, _DEPTH)]
    seen: dict[int, object] = {}  # with the objects, so that no other one gets their number
    while todo:
        x, depth = todo.pop()
        if id(x) in seen:
            continue
        seen[id(x)] = x
        if _are_codes(x):
            return True
        if depth:
            todo += [(y, depth - 1) for y in _reached(x)]
    return False


def _are_codes(x: object) -> bool:
    if isinstance(x, list | tuple):
        return bool(x) and all(type(i) is int for i in x) and min(x) < 0
    is_float = getattr(getattr(x, "dtype", None), "kind", "") == "f" and is_concrete(x)
    return (has_whole_numbers(x) or is_float and has_nan(x)) and np.ndim(x) > 0  # pyright: ignore[reportArgumentType]


def _reached(x: object) -> Iterable[object]:
    """What it holds, or calls."""
    if isinstance(x, Program):
        return [x.fn]
    if isinstance(x, functools.partial):
        return [x.func, *x.args, *x.keywords.values()]
    if isinstance(x, types.MethodType):
        return [x.__self__, x.__func__]
    if isinstance(x, types.FunctionType):
        return () if _is_of_a_library(x) else _named(x)
    if isinstance(x, Mapping):
        return list(x.values())[:_MOST]
    if isinstance(x, list | tuple | set | frozenset):
        return list(x)[:_MOST]
    if isinstance(x, types.ModuleType | type) or hasattr(x, "dtype"):
        return ()
    if hasattr(x, "columns"):  # a frame of pandas or polars
        return [getattr(x, "dtypes", None), *(x[n] for n in list(x.columns)[:_MOST])]  # pyright: ignore
    own = list(getattr(x, "__dict__", {}).values())[:_MOST]
    call = getattr(type(x), "__call__", None)  # noqa: B004
    return [*own, call] if isinstance(call, types.FunctionType) else own


def _named(fn: types.FunctionType) -> list[object]:
    """Values of a function's cells and defaults, and of globals that its code, or code within, names."""
    found = [c.cell_contents for c in fn.__closure__ or () if c != types.CellType()]
    found += [*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()]
    codes = [fn.__code__]
    while codes:
        code = codes.pop()
        for name in code.co_names:
            value = fn.__globals__.get(name)
            if isinstance(value, types.ModuleType) and not _is_of_a_library(value):
                found += [v for n in code.co_names if (v := getattr(value, n, None)) is not None]
            elif value is not None:
                found.append(value)
        codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
        found += [c for c in code.co_consts if isinstance(c, tuple)]
    return found


def _is_of_a_library(x: object) -> bool:
    name = x.__name__ if isinstance(x, types.ModuleType) else getattr(x, "__module__", "")
    return (name or "").partition(".")[0] in _LIBRARIES
