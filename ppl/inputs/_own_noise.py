"""Random numbers of a program that do not come from the key of its run.

A key that is a constant or an argument gives the same numbers at each step and for each draw: a fixed array for noise.

Input: a jaxpr, and which of its inputs are keys of the run. Output: the equations that draw from another key. What no output
needs does not count: networks are initialised where they are declared, and then have parameters.

Numbers of NumPy's and Python's generators are constants of a trace, other ones in each: `same_numbers` compares two.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import PyTree

from .._compat import (
    CALLS,
    ClosedJaxpr,
    Equation,
    Jaxpr,
    Literal,
    Tracer,
    lines_of,
    scan_counts,
    without_dead_code,
)
from ..jaxprs import inner_jaxpr, inner_jaxprs, settled

_OWN = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_LIBRARY = tuple(os.path.join(_OWN, name) for name in ("ppl", "inference"))
_REPLAYS = os.path.join(_OWN, "ppl", "_compat.py")
_DRAWS = frozenset("random_bits random_gamma threefry2x32 rng_bit_generator rng_uniform".split())


def refuse_own_noise(label: str, closed: ClosedJaxpr, is_key: Sequence[bool]) -> None:
    """Refuse a program that draws from a key that is not its run's; see `own_noise`.

    Raises:
        ValueError: with the line.
    """
    if not (found := own_noise(closed, is_key)):
        return
    own = [at for at in lines_of(found[0]) if not at[0].startswith((*_packages(), *_LIBRARY))]
    where = f"line {own[0][1]} of '{os.path.basename(own[0][0])}'" if own else "a function of it"
    raise ValueError(
        f"{label}: {where} draws random numbers from a key that does not come from the run. A key that is a constant or an "
        "argument gives the same numbers at each step and for each draw, and is no noise. Draw noise from ppl.rng_key(name), or "
        "make it a site; what is to stay as it is, draw outside of the program and pass as an array."
    )


def _packages() -> tuple[str, ...]:
    """Folders of packages that draw for others; those that are loaded late are found by name."""
    packages = [sys.modules[n] for n in ("jax", "numpyro", "equinox") if n in sys.modules]
    return tuple(os.path.dirname(os.path.abspath(str(p.__file__))) for p in packages)


def _is_of_library(eqn: Equation) -> bool:
    """Whether the library itself draws, as where a network begins; what it replays was drawn by others."""
    callers = [file for file, _ in lines_of(eqn) if not file.startswith(_packages())]
    return bool(callers) and callers[0].startswith(_LIBRARY) and callers[0] != _REPLAYS


def own_noise(closed: ClosedJaxpr, is_key: Sequence[bool]) -> list[Equation]:
    """Equations that draw random numbers from no key of the run.

    Args:
        closed: the program.
        is_key: by input, whether it is one.
    """
    if not _may_draw(closed.jaxpr):
        return []
    jaxpr, is_used = without_dead_code(closed.jaxpr)
    found: list[PyTree] = []
    _follow(jaxpr, [m for m, used in zip(is_key, is_used, strict=True) if used], found)
    return [eqn for eqn in found if not _is_of_library(eqn)]


def _may_draw(jaxpr: Jaxpr) -> bool:
    return any(
        eqn.primitive.name in _DRAWS or any(map(_may_draw, inner_jaxprs(eqn))) for eqn in jaxpr.eqns
    )


def _follow(
    jaxpr: Jaxpr, marks: Sequence[bool], found: list[PyTree], outer: Equation | None = None
) -> list[bool]:
    """Which outputs depend on a key of the run; `outer` is the call that this is the inside of."""
    env = dict(zip(jaxpr.invars, marks, strict=True))
    read = lambda v: not isinstance(v, Literal) and env.get(v, False)
    for eqn in jaxpr.eqns:
        marked = [read(v) for v in eqn.invars]
        if eqn.primitive.name in _DRAWS and not any(marked):
            found.append(outer or eqn)
        env.update(zip(eqn.outvars, _results(eqn, marked, found, outer or eqn), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _results(eqn: Equation, marked: list[bool], found: list[PyTree], outer: Equation) -> list[bool]:
    name, everything = eqn.primitive.name, [any(marked)] * len(eqn.outvars)
    if name in CALLS:
        inner = inner_jaxpr(eqn.params[CALLS[name]])
        if inner is None or len(inner.invars) != len(marked):
            return everything
        return _follow(inner, marked, found, outer)
    if name == "scan":
        num_consts, num_carry = scan_counts(eqn.params)
        body, carry = eqn.params["jaxpr"].jaxpr, marked[num_consts : num_consts + num_carry]
        outs = lambda carry, found: _follow(
            body, [*marked[:num_consts], *carry, *marked[num_consts + num_carry :]], found
        )
        carry, _ = settled(lambda carry: outs(carry, []), carry, operator.or_)
        return outs(carry, found)
    if name == "cond":
        for branch in eqn.params["branches"]:
            _follow(branch.jaxpr, marked[1:], found)
        return everything
    for inner in inner_jaxprs(eqn):
        if len(inner.invars) == len(marked):
            _follow(inner, marked, found)
    return everything


# Numbers of two traces


def same_numbers(one: ClosedJaxpr, other: ClosedJaxpr) -> bool:
    """Whether what the outputs need has the same numbers in both; true also where their equations differ."""
    found = [list(_numbers(closed)) for closed in (one, other)]
    if len(found[0]) != len(found[1]):
        return True
    return all(map(_equal, *found))


def _numbers(closed: ClosedJaxpr) -> Iterator[PyTree]:
    jaxpr = without_dead_code(closed.jaxpr)[0]
    read = set(_read(jaxpr))
    yield from (x for v, x in zip(closed.jaxpr.constvars, closed.consts, strict=True) if v in read)
    yield from _literals(jaxpr)


def _read(jaxpr: Jaxpr) -> Iterator[PyTree]:
    atoms = [v for eqn in jaxpr.eqns for v in eqn.invars] + list(jaxpr.outvars)
    yield from (v for v in atoms if not isinstance(v, Literal))


def _literals(jaxpr: Jaxpr) -> Iterator[PyTree]:
    for eqn in jaxpr.eqns:
        yield from (v.val for v in eqn.invars if isinstance(v, Literal))
        for inner in inner_jaxprs(eqn):
            yield from _literals(inner)


def _equal(a: PyTree, b: PyTree) -> bool:
    if isinstance(a, Tracer) or isinstance(b, Tracer):
        return a is b
    if jax.dtypes.issubdtype(getattr(a, "dtype", np.dtype(float)), jax.dtypes.extended):
        return True
    a, b = np.asarray(a), np.asarray(b)
    is_float = a.dtype.kind in "fc" and b.dtype.kind in "fc"
    return a.shape != b.shape or np.array_equal(a, b, equal_nan=is_float)
