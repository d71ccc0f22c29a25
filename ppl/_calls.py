"""The arguments of a call, checked by the function's own annotations before it runs.

One style of refusal for all functions that users call: the function, the argument, what it must be, what was given. Only kinds
are looked at (a count is an integer, an option one of its words, a result an instance of its class); bounds are the function's
own (`_checks.check_counts`), and so are arrays, whose values are converted where they are used.
"""

from __future__ import annotations

import collections.abc
import difflib
import functools
import inspect
import itertools
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, PyTree

from ._checks import MOST, is_integer
from ._compat import typed_key

EXAMPLES = {"num_samples": "1000", "num_particles": "100", "key": "jax.random.key(0)"}
_MOST = 60  # characters of what was given
# What other libraries call an argument.
_ELSEWHERE = {
    "observed": "obs",
    "given": "obs",
    "draws": "num_samples",
    "chains": "num_chains",
    "tune": "num_warmup",
    "burn_in": "num_warmup",
    "epochs": "num_steps",
    "iterations": "num_steps",
    "lr": "optimizer",
    "rng_key": "key",
    "seed": "key",
    "random_state": "key",
    "data": "args",
}


def checked_call[F: Callable[..., Any]](fn: F) -> F:
    """Decorator of a function that users call: what is missing, misnamed or of another kind is refused, with what to do.

    Options that must be given are named with an example; names that are almost right with the right one.

    Raises:
        TypeError: arguments that are missing, or that the function does not have.
        ValueError: an argument of another kind than its annotation says.
    """
    signature = inspect.signature(fn, follow_wrapped=False)
    kinds = signature.parameters.values()
    needed = [p.name for p in kinds if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    takes_any_name = any(p.kind is p.VAR_KEYWORD for p in kinds)
    by_name = [p.name for p in kinds if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_data = "args" in by_name  # of a program, which are one argument here
    bare = [p.replace(annotation=p.empty) for p in kinds]
    untyped = signature.replace(parameters=bare, return_annotation=signature.empty)
    hints = functools.cache(lambda: _hints(fn))

    @functools.wraps(fn)
    def checked(*args: PyTree, **kwargs: PyTree) -> Any:
        label = _label(fn.__qualname__, by_name, args, kwargs)
        if missing := [name for name in needed if name not in kwargs]:
            called = ", ".join(f"{name}={EXAMPLES.get(name, '...')}" for name in missing)
            raise TypeError(
                f"{label}: {', '.join(missing)} must be given, by name. Call {label}(..., {called}); what it means: "
                f"help({label})."
            )
        unknown = [] if takes_any_name else [name for name in kwargs if name not in by_name]
        if unknown:
            raise TypeError(
                f"{label}: there is no argument '{unknown[0]}'.{did_you_mean(unknown[0], by_name)} Choose from {by_name}."
                + (
                    " Data go in as one, args=(x, y) or args={'x': x, 'y': y}."
                    if takes_data
                    else ""
                )
            )
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            data = (
                " The data are one argument, args=(x, y)."
                if takes_data and "positional" in str(error)
                else ""
            )
            raise TypeError(
                f"{label}: {error}. Call it as {label.rpartition(': ')[2]}{untyped}.{data}"
            ) from None
        for name, hint in hints().items():
            if name in given and (expected := _unlike(hint, given[name])):
                near = did_you_mean(given[name], _words(hint))
                raise ValueError(
                    f"{label}: {name} must be {_either(expected)}, got {in_words(given[name])}.{near}"
                )
        return fn(*args, **kwargs)

    return checked  # pyright: ignore[reportReturnType]


def did_you_mean(name: float | int | str, among: Iterable[str]) -> str:
    """A sentence that offers the nearest of some names, with a space before it; "" if none is near."""
    among = list(among)
    near = difflib.get_close_matches(name, among, 1) if isinstance(name, str) else []
    near = near or [word for word in (_ELSEWHERE.get(str(name)),) if word in among]
    return f" Did you mean '{near[0]}'?" if near else ""


def _label(name: str, by_name: list[str], args: tuple, kwargs: dict[str, PyTree]) -> str:
    """What messages begin with: the function, and of a statement its site."""
    site = args[0] if args else kwargs.get("name")
    is_statement = by_name[:1] == ["name"] and isinstance(site, str)
    name = f"ppl.{name}" if by_name[:1] == ["name"] else name
    return f"Site '{site}': {name}" if is_statement else name


def _hints(fn: Callable[..., PyTree]) -> dict[str, Any]:
    """Annotations of the arguments that are checked; names that are known to type checkers only stand for anything."""
    if hasattr(fn, "__wrapped__"):  # its annotations are those of another function
        return {}
    names: dict[str, Any] = {
        "Figure": Any,
        "pd": types.SimpleNamespace(DataFrame=Any),
        "xarray": types.SimpleNamespace(Dataset=Any, DataTree=Any),
    }
    found = typing.get_type_hints(fn, localns=names)
    kinds = inspect.signature(fn, follow_wrapped=False).parameters
    one = {n: p for n, p in kinds.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    hints = {n: found.get(n, Any) for n in one}
    if "key" in one:  # of no type that both kinds of key have
        hints["key"] = "key" if one["key"].default is not None else Any
    return {name: hint for name, hint in hints.items() if _can_be_unlike(hint)}


def _can_be_unlike(hint: object) -> bool:
    """Whether there is a value that `_unlike` has something against."""
    if hint == "key" or hasattr(hint, "dim_str"):
        return True
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return all(map(_can_be_unlike, args))
    return hint in (None, types.NoneType) or origin is Literal or bool(_kind(hint, origin, args)[1])


def _unlike(hint: object, value: object) -> list[str]:
    """What a value should have been, in words; nothing if it is."""
    if hint == "key":
        try:
            typed_key(value)
        except TypeError:
            return ["one PRNG key, jax.random.key(seed)"]
        return []
    if hasattr(hint, "dim_str"):  # an array: its values are looked at where they are used
        return ["an array of numbers"] if value is None else []
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        unlike = [_unlike(one, value) for one in args]
        return [] if [] in unlike else list(dict.fromkeys(itertools.chain(*unlike)))
    if hint in (None, types.NoneType):
        return [] if value is None else ["None"]
    if origin is Literal:
        is_one = any(type(value) is type(word) and value == word for word in args)
        return [] if is_one else [repr(word) for word in args]
    is_right, expected = _kind(hint, origin, args)
    return [] if is_right(value) else [expected]


def _kind(hint: object, origin: type | None, args: tuple) -> tuple[Callable[..., PyTree], str]:
    """Whether a value is of a kind, and the kind in words."""
    if hint in _KINDS:
        return _KINDS[hint]
    if origin is collections.abc.Callable or hint is Callable:
        return callable, "a function"
    if origin is collections.abc.Mapping:
        return lambda x: isinstance(x, collections.abc.Mapping), "a mapping, e.g. a dict"
    if origin in (collections.abc.Sequence, collections.abc.Collection) and args[0] is str:
        return _is_names, "a list of names"
    if origin is collections.abc.Sequence and args[0] is float:
        return _is_numbers, "a list of numbers"
    # Of what a protocol has, a call is what is asked for here.
    if typing.Protocol in getattr(hint, "__bases__", ()):
        return (callable, "a function") if callable(hint) else (lambda _: True, "")
    if isinstance(hint, type) and hint.__module__.startswith(__name__.partition(".")[0]):
        return lambda x: isinstance(x, hint), f"of type {hint.__name__}"
    return lambda _: True, ""


def _is_names(value: list[str] | str | tuple[str, ...]) -> bool:
    is_some = isinstance(value, collections.abc.Collection)
    is_one = isinstance(value, str | np.ndarray)
    return is_some and not is_one and all(isinstance(x, str) for x in value)


def _is_numbers(value: Array) -> bool:
    if isinstance(value, jax.Array | np.ndarray):
        return value.ndim == 1 and value.dtype.kind in "iuf"
    return isinstance(value, list | tuple) and all(map(_is_number, value))


def _either(words: Iterable[str]) -> str:
    """Words with commas, and "or" before the last."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _is_number(value: PyTree) -> bool:
    """A real number of Python, NumPy or JAX that is not NaN; of a traced one its kind is known."""
    if isinstance(value, jax.Array | np.ndarray):
        return value.ndim == 0 and value.dtype.kind in "iuf"
    is_real = isinstance(value, numbers.Real | np.number) and not isinstance(value, bool | np.bool_)
    return is_real and not isinstance(value, np.complexfloating) and value == value


_KINDS: dict[PyTree, tuple[Callable[[PyTree], bool], str]] = {
    int: (lambda x: is_integer(x) and abs(x) <= MOST, "an integer"),
    float: (_is_number, "a number"),
    bool: (lambda x: isinstance(x, bool | np.bool_), "True or False"),
    str: (lambda x: isinstance(x, str), "a word"),
    os.PathLike: (lambda x: isinstance(x, os.PathLike), "a path"),
    tuple: (lambda x: isinstance(x, tuple | list), "a tuple"),
}


def _words(hint: object) -> list[str]:
    """The words that an annotation allows."""
    if typing.get_origin(hint) is Literal:
        return [word for word in typing.get_args(hint) if isinstance(word, str)]
    return [word for one in typing.get_args(hint) for word in _words(one)]


def in_words(value: object) -> str:
    """What was given, in a few words: an array by dtype and shape."""
    if isinstance(value, jax.Array | np.ndarray) and value.ndim:
        return f"an array of {value.dtype}, shape {value.shape}"
    if isinstance(value, tuple | list | dict) and any(
        isinstance(x, jax.Array | np.ndarray) for x in jax.tree.leaves(value)
    ):
        return f"a {type(value).__name__} of {len(value)} with arrays in it"
    text = repr(value)
    text = text if len(text) <= _MOST else text[: _MOST - 3] + "..."
    return (
        text
        if isinstance(value, str | numbers.Number | None)
        else f"{text} ({type(value).__name__})"
    )
