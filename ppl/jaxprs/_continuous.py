"""Functions of JAX, and our special ones, that compare, round or branch, and are continuous all the same.

No search for jumps is needed there.

Among them are solutions of ordinary differential equations by `jax.experimental.ode.odeint`. An adaptive solver compares its
error with its tolerance, so that the number that it returns jumps, within that tolerance, where another step is taken. The
solution itself is continuous, with the derivative that the solver's adjoint equation gives, if the field is. So a call is taken
for the solution, of which it falls short by its tolerance, if no operation of the field can jump. The field's operations are
those with a frame of other code than the solver's before the solver's own; where that is not known, the call is opened like any
other. (Steps beyond `mxstep` are not taken, and the value is then no solution, here as anywhere.) Where what reads a solution
has to be tried, a change counts beyond those that other tolerances make, see `tolerances_of`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from .._compat import CALLS, Equation, Jaxpr, Literal, files_of
from ..distributions import CONTINUOUS as OURS
from ._catalogue import EVERYWHERE
from ._continuity import is_complex, is_real
from ._interpreter import inner_jaxprs

# By the name under which JAX defines them. Continuous on the whole of their domain, beyond which they are infinite or NaN.
CONTINUOUS = frozenset(
    "celu elu hard_sigmoid hard_silu hard_tanh leaky_relu log_sigmoid logaddexp logaddexp2 log_ndtr _ndtri relu relu6 selu silu "
    "softplus sparse_plus squareplus xlog1py xlogy _erfcx _xlogx".split()
)
_CALL_OF_SOLVER = "_odeint_wrapper"
SOLUTIONS = frozenset({_CALL_OF_SOLVER, "_odeint"})
SOURCES = os.path.dirname(jax.__file__) + os.sep
SOLVER = os.path.join(SOURCES, "experimental", "ode.py")
_DIFFRAX = f"{os.sep}diffrax{os.sep}"


def is_continuous_call(eqn: Equation) -> bool:
    """Whether an equation calls one of `CONTINUOUS` or `OURS`, or solves an equation with a continuous field.

    A user's function of that name does not count. JAX tells where a function stands in its debugging information; without it
    the answer is no, which costs time only.
    """
    jaxpr: PyTree = next(inner_jaxprs(eqn), None)
    info = getattr(jaxpr, "debug_info", None)
    name, file = getattr(info, "func_name", None), getattr(info, "func_filename", None) or ""
    if name in SOLUTIONS and file == SOLVER:
        field = list(_of_field(jaxpr, is_field=False))
        return bool(field) and all(map(_is_continuous, field))
    return (name in CONTINUOUS and file.startswith(SOURCES)) or (name, file) in OURS


def tolerances_of(eqn: Equation) -> Iterator[PyTree]:
    """The equations in which a call of a solver with a continuous field makes the error that a step may have.

    These are sums `atol + rtol * size` of two constants, size being an absolute value or the larger one of two.
    """
    jaxpr: PyTree = next(inner_jaxprs(eqn), None)
    info = getattr(jaxpr, "debug_info", None)
    if getattr(info, "func_name", None) == _CALL_OF_SOLVER and is_continuous_call(eqn):
        yield from _tolerances(jaxpr)


def _tolerances(jaxpr: Jaxpr) -> Iterator[PyTree]:
    made = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
    for eqn in jaxpr.eqns:
        for inner in inner_jaxprs(eqn):
            yield from _tolerances(inner)
        product = made.get(_beside_constant("add", eqn))
        size = product and made.get(_beside_constant("mul", product))
        if size and size.primitive.name in ("abs", "max"):
            yield eqn


def _beside_constant(name: str, eqn: Equation) -> Any:
    """The variable of a sum or product of a variable and a number; None of any other equation."""
    if eqn.primitive.name != name or not is_real(eqn.outvars[0]):
        return None
    for one, other in (eqn.invars, eqn.invars[::-1]):
        if isinstance(one, Literal) and np.ndim(one.val) == 0 and not isinstance(other, Literal):
            return other
    return None


def solver_in(jaxpr: Jaxpr) -> str:
    """The name of a solver with adaptive steps that a program calls, "" where there is none."""
    for eqn in jaxpr.eqns:
        files = files_of(eqn)
        if SOLVER in files:
            return "jax.experimental.ode.odeint"
        if any(_DIFFRAX in file for file in files):
            return "diffrax"
        if found := next(filter(None, map(solver_in, inner_jaxprs(eqn))), ""):
            return found
    return ""


def _of_field(jaxpr: PyTree, *, is_field: bool) -> Iterator[PyTree]:
    """The equations of a solver's field: those made inside of a call of other code than the solver's."""
    for eqn in jaxpr.eqns:
        own = next((f for f in files_of(eqn) if f == SOLVER or not f.startswith(SOURCES)), None)
        # Functions of JAX are traced once, and keep the frames of whoever called them first.
        inside = is_field or own not in (None, SOLVER)
        is_call = eqn.primitive.name in CALLS
        if inside and not is_call:
            yield eqn
        if not (inside and is_call and is_continuous_call(eqn)):
            for inner in inner_jaxprs(eqn):
                yield from _of_field(inner, is_field=inside)


def _is_continuous(eqn: Equation) -> bool:
    name, atoms = eqn.primitive.name, [*eqn.invars, *eqn.outvars]
    is_cast = any(map(is_real, eqn.invars)) and not all(map(is_real, eqn.outvars))
    if is_cast or any(map(is_complex, atoms)):
        return False
    return name in EVERYWHERE and (name != "integer_pow" or eqn.params["y"] >= 0)
