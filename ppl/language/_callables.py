"""What may stand for a program: any callable that runs statements, and the name of the function inside of it.

NumPyro takes functions, partial applications, handlers around models, methods and objects with `__call__`. All of them become
programs in one place, `as_program`; what a call of can run no statements is refused here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpyro.distributions as dist
from jaxtyping import PyTree
from numpyro.primitives import Messenger

# Attributes in which a wrapper holds what it wraps: partial applications; handlers and programs; methods; functools.wraps.
_INSIDE = ("func", "fn", "__func__", "__wrapped__")


def wrapped_by(fn: object) -> Any:
    """What a wrapper of one of the known kinds calls; None of anything else."""
    is_wrapper = isinstance(fn, Messenger | functools.partial) or hasattr(fn, "__wrapped__")
    if not is_wrapper and not inspect.ismethod(fn):
        return None
    return next((getattr(fn, name) for name in _INSIDE if callable(getattr(fn, name, None))), None)


def name_of(fn: Any) -> str:
    """The name of the function inside of a callable, or that of the class of an object."""
    while not isinstance(getattr(fn, "__name__", None), str):
        inside = wrapped_by(fn)
        if inside is None:
            return type(fn).__name__
        fn = inside
    return fn.__name__


def refusal_of(fn: object) -> str | None:
    """Why a call of `fn` runs no statements, and what to do; None if it may."""
    if isinstance(fn, type):
        return (
            f"got the class {fn.__name__}, a call of which makes an object. Pass an object that has __call__, "
            f"{fn.__name__}(...), or one of its methods"
        )
    if isinstance(fn, dist.Distribution):
        return (
            f"got a {type(fn).__name__}, which is a law. Give it a name in a function, "
            "lambda: ppl.sample('x', law)"
        )
    if not callable(fn):
        return (
            f"got {type(fn).__name__}. Pass the function itself and its arguments apart, "
            "elbo(model, guide).value(params, key, x), not the result of a call, elbo(model(x), guide)"
        )
    seen = 0
    while fn is not None and seen < 100:  # a wrapper may wrap itself
        if isinstance(fn, Messenger) and fn.fn is None:
            return (
                f"got the handler {type(fn).__name__} without a model. Put it around one, "
                f"handlers.{type(fn).__name__}(model, ...)"
            )
        if hasattr(fn, "cache_info"):
            return (
                f"got {name_of(fn)} with a cache around it (functools.cache or lru_cache), under which a second run meets no "
                "statement. Pass the function without it, fn.__wrapped__"
            )
        call = fn if inspect.isroutine(fn) else getattr(fn, "__call__", fn)  # noqa: B004
        for kind, is_kind in _NOT_RUN.items():
            if is_kind(call):
                return (
                    f"got {name_of(fn)}, which is {kind}: its call runs none of its statements. Make it a plain function, "
                    "without yield, async and await"
                )
        fn, seen = wrapped_by(fn), seen + 1
    return None


_NOT_RUN = {
    "a generator": inspect.isgeneratorfunction,
    "a coroutine": inspect.iscoroutinefunction,
    "an asynchronous generator": inspect.isasyncgenfunction,
}


def is_of_the_call(
    err: TypeError, fn: Callable[..., PyTree], args: tuple[PyTree, ...], kwargs: dict[str, PyTree]
) -> bool:
    """Whether a function was called with arguments that it does not take, perhaps by a wrapper around it."""
    if err.__traceback__ is None or err.__traceback__.tb_next is None:
        return True
    try:
        inspect.signature(fn).bind(*args, **kwargs)
    except TypeError:
        return True
    except ValueError:  # no signature
        return False
    return False
