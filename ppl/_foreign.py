"""Errors of NumPyro inside of a program, told with the statement that met them: a law does not know the name of its site."""

from __future__ import annotations

import contextlib
import linecache
import os
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpyro

if TYPE_CHECKING:
    from ._recorder import Recorder

_KINDS = (ValueError, TypeError, NotImplementedError, AssertionError)
_HERE = os.path.dirname(os.path.abspath(__file__))
_OURS = (_HERE, os.path.join(os.path.dirname(_HERE), "inference"))
_NUMPYRO = os.path.dirname(os.path.abspath(numpyro.__file__))
_JAX = os.path.dirname(os.path.abspath(jax.__file__))


@contextlib.contextmanager
def named_errors(recorder: Recorder, program: Any) -> Iterator[None]:
    """Re-raise an error of NumPyro's with the program's line and the last site before it."""
    try:
        yield
    except _KINDS as err:
        told = _told(err, recorder, program)
        if told is None:
            raise
        raise type(err)(told) from err


def _told(err: BaseException, recorder: Recorder, program: Any) -> str | None:
    if type(err) not in _KINDS or "Site '" in str(err):
        return None
    frames = [f for f, _ in traceback.walk_tb(err.__traceback__)]
    files = [os.path.abspath(f.f_code.co_filename) for f in frames]
    last = next((f for f in reversed(files) if not f.startswith(_JAX)), "")
    if not last.startswith(_NUMPYRO):
        return None
    entries = traceback.extract_tb(err.__traceback__)
    foreign = (*_OURS, _NUMPYRO, _JAX)
    own = [e for e, f in zip(entries, files, strict=True) if not f.startswith(foreign)]
    if not own:
        return None
    line = linecache.getline(own[-1].filename, own[-1].lineno or 0).strip()
    sites = [name for frame in recorder.frames for name in frame.infos]
    after = f"after site '{sites[-1]}'" if sites else "before its first site"
    return (
        f"{program!r}, line {own[-1].lineno} of '{os.path.basename(own[-1].filename)}', {after}: "
        f"{str(err) or type(err).__name__} The statement is `{line}`. Correct the arguments of its distribution."
    )
