"""Errors of other packages, told in terms of the program.

A law of NumPyro does not know the name of its site, and JAX does not know that what it could not read is an argument or a draw:
the statement that met the error is found and named, with what to do.
"""

from __future__ import annotations

import contextlib
import inspect
import linecache
import os
import re
import traceback
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import numpyro

from ._data import Masked
from ._types import Message, ModelFn

if TYPE_CHECKING:
    from .traces import Recorder

_KINDS = (
    ValueError,
    TypeError,
    NotImplementedError,
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    ImportError,
)
# Reading values while a program is traced.
_READ = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
_NO_KEY = "unexpected PRNG key type <class 'NoneType'>"  # jax.random's, of no key
CORRECT = "Correct the line, or the order and shapes of the arguments."
_LINES = 12  # a statement's lines before the one that failed
_SAMPLE = re.compile(r"""\bsample\(\s*(?P<quote>["'])(?P<name>[^"']+)(?P=quote)""")
_HERE = os.path.dirname(os.path.abspath(__file__))
_OURS = (_HERE, os.path.join(os.path.dirname(_HERE), "inference"))
_NUMPYRO = os.path.dirname(os.path.abspath(numpyro.__file__))
_REPARAM = os.path.join(_NUMPYRO, "infer", "reparam")
_JAX = os.path.dirname(os.path.abspath(jax.__file__))
_NUMPY = os.path.dirname(os.path.abspath(np.__file__))
_INSTALLED = os.path.dirname(_JAX)


@contextlib.contextmanager
def named_errors(recorder: Recorder, program: Any) -> Iterator[None]:
    """Re-raise an error of NumPyro's with the program's line and the last site before it."""
    try:
        yield
    except _KINDS as err:
        told = _told(err, recorder, program)
        if told is None:
            raise
        raise (ValueError if _is_of_reparam(err) else kind_of(err))(told) from err


@contextlib.contextmanager
def named_site(msg: Message) -> Iterator[None]:
    """Around a sample statement (its draw, support, or density): what it computes is under the site's name in profiles.

    An error of NumPyro's or JAX's is raised again with that name.
    """
    try:
        with jax.named_scope(msg["name"]):
            yield
    except _KINDS as err:
        if "Site '" in str(err) or _files(err)[-1].startswith(_OURS):
            raise
        law = type(msg["fn"]).__name__
        if isinstance(err, NotImplementedError) and not str(err):
            raise NotImplementedError(f"Site '{msg['name']}': {law} {_lacking(err)}") from err
        raise kind_of(err)(
            f"Site '{msg['name']}': {law} failed: {_sentence(err)} Correct its arguments or its value."
        ) from err


def _sentence(err: BaseException) -> str:
    """What an error says, or its class, with a full stop."""
    text = str(err).rstrip() or type(err).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."


def first_sentence(err: BaseException) -> str:
    """What an error says before it goes on to explain."""
    return f"{str(err).strip().splitlines()[0].rstrip('.')}."


def _lacking(err: BaseException) -> str:
    """What a law does not have."""
    if any(f.f_code.co_name == "log_prob" for f, _ in traceback.walk_tb(err.__traceback__)):
        return (
            "has a sampler and no density, so that its value cannot be scored. Use a law that has one. A simulator trains a "
            "guide by inference.sleep, and observes its output as a point mass, dist.Delta(made).to_event(made.ndim)."
        )
    return (
        "has a density and no sampler, so that the program cannot be simulated. Give the site a value (log_density, a guide that "
        "draws it), or a law that can be drawn from."
    )


def kind_of(err: BaseException) -> type[Exception]:
    """The builtin class of an error: subclasses may want other arguments than a message. What NumPyro asserts are arguments."""
    found = next(kind for kind in type(err).__mro__ if kind in _KINDS)
    return ValueError if found is AssertionError else found


def _files(err: BaseException) -> list[str]:
    frames = [f for f, _ in traceback.walk_tb(err.__traceback__)]
    return [os.path.abspath(f.f_code.co_filename) for f in frames]


def _is_of_reparam(err: BaseException) -> bool:
    """Whether NumPyro's `reparam` met something that it does not rewrite."""
    return any(f.startswith(_REPARAM) for f in _files(err))


def _told(err: BaseException, recorder: Recorder, program: ModelFn) -> str | None:
    if "Site '" in str(err):
        return None
    files = _files(err)
    if isinstance(err, IndexError | TypeError) and (told := _told_of_index(err)):
        return f"{program!r}: {told}"
    entries = traceback.extract_tb(err.__traceback__)
    if isinstance(err, AttributeError) and not files[-1].startswith(_OURS):
        if told := _told_of_object(err, entries[-1]):
            return f"{program!r}, line {entries[-1].lineno} of '{os.path.basename(entries[-1].filename)}': {told}"
    is_read, is_keyless = isinstance(err, _READ), _NO_KEY in str(err)
    loading = next((i for i, e in enumerate(entries) if e.name == "<module>"), len(entries))
    is_import = isinstance(err, ImportError | AttributeError) and loading < len(entries)
    last = next((f for f in reversed(files) if not f.startswith(_JAX)), "")
    # Of arrays: JAX's, of an operation at the program's own line.
    is_of_arrays = files[-1].startswith(_JAX) and not last.startswith((*_OURS, _NUMPYRO))
    if not (is_read or is_keyless or is_import or is_of_arrays or last.startswith(_NUMPYRO)):
        return None
    foreign = (*_OURS, _NUMPYRO, _JAX, _NUMPY)
    number_of = [i for i, f in enumerate(files[:loading]) if not f.startswith(foreign)]
    if is_of_arrays:  # a network's line says less than the program's
        number_of = [i for i in number_of if not files[i].startswith(_INSTALLED)] or number_of
    own = [entries[i] for i in number_of]
    if not own:
        return None
    file, number = own[-1].filename, own[-1].lineno or 0
    line = linecache.getline(file, number).strip()
    sites = [name for frame in recorder.frames for name in frame.infos]
    after = f"after site '{sites[-1]}'" if sites else "before its first site"
    where = f"{program!r}, line {number} of '{os.path.basename(file)}', {after}"
    if is_read:
        named = _arguments_in(line, program)
        bound = ", ".join(f"{n}={n}" for n in named) or "x"
        which = f"; here that may be {' or '.join(named)}" if named else ""
        return (
            f"{where}: `{line}` reads the value of an array that is known at run time only ({str(err).splitlines()[0]}). In "
            "place of `if`, `while`, int() and NumPy functions on parameters and draws, use jnp.where, ppl.cond and jax.numpy. "
            f"An argument that decides on sizes or branches is bound beforehand{which}: functools.partial(program, {bound}), or "
            "is a number or tuple of Python's."
        )
    if is_keyless:
        return (
            f"{where}: `{line}` needs a random key, and there is none where given choices are scored. Bind parameters that start "
            "at random beforehand, program.bind(program.init(key, *args)); draw other noise by ppl.rng_key in a run that has a "
            "key (simulate, generate, an objective)."
        )
    if is_import or isinstance(err, ImportError):
        return (
            f"{where}: `{line}` needs a package that is missing or does not fit jax {jax.__version__} ({err}). "
            "Install a version that does."
        )
    name = _statement(own[-1])
    if is_of_arrays:
        frame = list(traceback.walk_tb(err.__traceback__))[number_of[-1]][0]
        return (
            f"{f"Site '{name}': " if name else ''}{where}: `{line}` cannot be computed: {first_sentence(err)}"
            f"{_shapes_in(line, frame.f_locals)}{_remedy(str(err))}"
        )
    if _is_of_reparam(err):
        return (
            f"{f"Site '{name}': " if name else ''}{where}: numpyro.handlers.reparam cannot rewrite `{line}` ({_sentence(err)}). "
            "It rewrites sites that are drawn, by their own law: leave out of its config what is observed, masked or set."
        )
    remedy = "Correct the arguments of its distribution."
    if "size of plate" in str(err):
        remedy = "A plate has at least one row: leave the statement out where there are no data."
    return (
        f"{f"Site '{name}': " if name else ''}{where}: "
        f"{_sentence(err)} The statement is `{line}`. {remedy}"
    )


def _told_of_object(err: AttributeError, entry: traceback.FrameSummary) -> str:
    """What is to be said of text, None or a tuple of which a line asks what arrays have; "" of anything else."""
    given = err.obj
    if isinstance(given, str):
        return (
            f"`{entry.line}` asks the text {given[:60]!r} for its {err.name}. A program computes with numbers, and reads no "
            "file: pass what is in it, e.g. pandas.read_csv(path)['x'] or numpy.load(path)."
        )
    if err.name not in ("shape", "ndim", "dtype", "size", "T", "at", "reshape", "astype", "sum"):
        return ""
    if given is None:
        return (
            f"`{entry.line}` asks None for its {err.name}. An argument that may be None, to be drawn, does not say how many rows "
            "there are: take their number from one that is always given, or pass the data."
        )
    if isinstance(given, Iterable) and type(given).__module__ == "builtins":
        return (
            f"`{entry.line}` asks a {type(given).__name__} for its {err.name}. Pass an array for it, each argument of the "
            "program by itself: (x, y) in args=, and one after the other in predict."
        )
    return ""


def _shapes_in(line: str, values: dict[str, Any]) -> str:
    """The shapes and types of the arrays that a line names, a sentence with a space before it."""
    names = dict.fromkeys(re.findall(r"(?<![\w.\"'])[A-Za-z_]\w*", line))
    arrays = {n: values[n] for n in names if hasattr(values.get(n), "dtype")}
    told = [f"{n} is {x.dtype}{list(np.shape(x))}" for n, x in arrays.items()]
    return f" There {', '.join(told)}." if told else ""


def _remedy(text: str) -> str:
    if "integer" in text and "ndex" in text:
        return " Give whole numbers from 0, e.g. g.astype(int); a missing one has no number: leave its row out."
    if "boolean ind" in text:
        return " Use jnp.where(mask, x, 0.0) in place of x[mask], whose length would depend on the data; groups need numbers."
    return f" {CORRECT}"


def _told_of_index(err: BaseException) -> str | None:
    """What is to be said of text or of missing categories that were used as an index; None of another error of JAX's."""
    frames = [f for f, _ in traceback.walk_tb(err.__traceback__)]
    files = [os.path.abspath(f.f_code.co_filename) for f in frames]
    if not files[-1].startswith(_JAX):
        return None
    own = [f for f, file in zip(frames, files, strict=True) if not file.startswith((_JAX, _NUMPY))]
    for name, value in own[-1].f_locals.items() if own else ():
        if isinstance(value, Masked) and isinstance(err, IndexError):
            return (
                f"{value.name} has missing cells (a masked array, or categories of which some are missing), and is used as an "
                "index, which would read some group for them. Make missing a group of its own, e.g. codes + 1, or leave the rows "
                "out."
            )
        is_text = getattr(getattr(value, "dtype", None), "kind", None) in ("O", "U", "S")
        if is_text and any(str(x)[:20] in str(err) for x in (value, value.dtype, type(value))):
            return (
                f"'{name}' holds text or other objects ({value.dtype}), and JAX computes with numbers alone. Give "
                "it codes, e.g. np.unique(text, return_inverse=True)[1], or a pandas category."
            )
    return None


def _arguments_in(line: str, program: ModelFn) -> list[str]:
    """Arguments of a program that a line names."""
    try:
        known = inspect.signature(program).parameters if callable(program) else ()
    except (TypeError, ValueError):
        known = ()
    return [name for name in known if re.search(rf"\b{re.escape(name)}\b", line)]


def _statement(entry: traceback.FrameSummary) -> str:
    """The name of the sample statement within which a frame failed, where the source says it; else "".

    It is the one whose bracket is open where the failed expression begins, or else the first within that expression: two
    statements may stand on a line.
    """
    last = entry.lineno or 1
    end = max(entry.end_lineno or last, last)
    first = max(1, last - _LINES)
    lines = [linecache.getline(entry.filename, n) for n in range(first, end + 1)]
    until = lambda number, column: (
        len("".join(lines[: number - first]))
        + len(lines[number - first].encode()[: column or 0].decode(errors="ignore"))
    )
    text, start = "".join(lines), until(last, entry.colno)
    stop = until(end, entry.end_colno) if entry.end_colno else len(text)
    found = list(_SAMPLE.finditer(text))
    around = [m for m in found if m.end() <= start and _is_open(text[m.end() : start])]
    within = [m for m in found if start <= m.end() <= stop]
    return around[-1]["name"] if around else within[0]["name"] if within else ""


def _is_open(text: str) -> bool:
    """Whether what follows an opening bracket does not close it."""
    depth = 1
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0:
            return False
    return True
