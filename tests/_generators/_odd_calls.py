"""Calls of public functions with one argument that is none of its kind, and what becomes of each."""

from __future__ import annotations

import dataclasses
import inspect
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

MOST_SECONDS = 20  # of the processor, however busy the machine
ROOT = Path(__file__).resolve().parents[2]
# What people pass by mistake: another type, a misprint, a missing value, an empty or a nested thing.
ODD: dict[str, Any] = {
    "None": None, "word": "lowre", "empty word": "", "float": 3.7, "negative": -1, "zero": 0, "true": True,
    "nan": float("nan"), "complex": 1 + 2j, "bytes": b"x", "list": [], "ragged": [[1.0], [1.0, 2.0]], "dict": {},
    "object": object(), "words": np.array(["a", "b"]), "path": Path("x.csv"), "infinite": float("inf"),
    "cube": np.zeros((2, 2, 2, 2)), "huge": 10**30, "dates": np.array(["2020-01-01"], "datetime64[D]"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Call:
    """A function, arguments that it takes, and which of them may be odd."""

    function: Callable[..., Any]
    args: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.function.__name__

    def bound(self) -> Mapping[str, Any]:
        """All arguments by name, defaults included; not those of the program."""
        kinds = inspect.signature(self.function).parameters
        one = {n: p for n, p in kinds.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        return {
            n: self.args.get(n, p.default)
            for n, p in one.items()
            if n in self.args or p.default is not p.empty
        }


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a call: "refused" by a raise of the library, "bare" or "foreign" by another error, or "accepted"."""

    call: str
    argument: str
    odd: str
    kind: str
    said: str = ""


def run(call: Call, args: Mapping[str, Any]) -> tuple[str, str]:
    """What becomes of one call."""
    given = {
        n: x
        for n, x in args.items()
        if n != "args" or "args" in inspect.signature(call.function).parameters
    }
    signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call.function(**given)
    except TimeoutError:
        return "endless", ""
    except Exception as error:
        return told(
            error
        ), f"{type(error).__name__}: {str(error).splitlines()[0][:110] if str(error) else ''}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "accepted", ""


def _too_long(*_: Any) -> None:
    raise TimeoutError


def told(error: BaseException) -> str:
    """Who raised: the library by a statement that says why, the library by accident, or another package."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if "_odd_calls" not in f.filename
    ]
    last = frames[-1] if frames else None
    if last is None or not Path(last.filename).is_relative_to(ROOT) or ".venv" in last.filename:
        return "foreign"
    tree = Path(last.filename).read_text().splitlines()
    is_raise = any(
        "raise" in line
        for line in tree[max(0, (last.lineno or 1) - 1) : last.end_lineno or last.lineno]
    )
    return "refused" if is_raise else "bare"


def odd_calls(calls: list[Call]) -> Iterator[tuple[Call, str, str, Mapping[str, Any]]]:
    """Each call with each of its arguments odd in each way."""
    for call in calls:
        bound = call.bound()
        for argument in bound:
            for odd, value in ODD.items():
                yield call, argument, odd, {**bound, argument: value}


def outcomes(calls: list[Call]) -> list[Outcome]:
    """What becomes of all of them."""
    return [
        Outcome(call.name, argument, odd, *run(call, args))
        for call, argument, odd, args in odd_calls(calls)
    ]
