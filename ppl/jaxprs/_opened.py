"""Programs whose derivatives are those of their values.

`stop_gradient`, straight-through quantisers and other custom derivatives make the derivative of a program another one than that
of its value. That is the author's choice where a draw is differentiated (`reparam`). A control variate must not follow it: its
value and slope have to be of one function, whichever, or the estimate is that of neither. Input: a traced program. Output: the
same with such operations replaced by the functions that they compute. Rules that JAX, NumPyro and this library define are kept;
they are true, and numerically better than what would be derived.
"""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import PyTree

from .._compat import (
    CUSTOM,
    ClosedJaxpr,
    Equation,
    Jaxpr,
    Literal,
    Var,
    aval_of,
    jaxpr_as_fun,
    rule_file,
    scan_counts,
    while_counts,
)
from ._interpreter import inner_jaxpr, inner_jaxprs, needed, settled
from ._primitive import site_p
from ._stabilisers import stabilisers

_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TRUSTED = tuple(
    path + os.sep
    for path in (
        *(os.path.dirname(os.path.abspath(str(package.__file__))) for package in (jax, numpyro)),
        *(os.path.join(_OWN, name) for name in ("ppl", "inference")),
    )
)


def opened(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The program with true derivatives everywhere; itself, if they are so. Its variables keep their names."""
    if not has_other_derivatives(closed.jaxpr):
        return closed
    return closed.replace(jaxpr=_open(closed.jaxpr))


def with_true_derivatives(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """A function of arrays with one output, differentiated as the function of its value."""

    def run(*args: PyTree) -> PyTree:
        leaves, tree = jax.tree.flatten(args)
        closed = jax.make_jaxpr(lambda *xs: fn(*jax.tree.unflatten(tree, xs)))(*leaves)
        if not has_other_derivatives(closed.jaxpr):
            return fn(*args)
        return jaxpr_as_fun(opened(closed))(*leaves)[0]

    return run


def other_derivatives(
    jaxpr: Jaxpr, read: Collection[PyTree], starts: Callable[..., PyTree]
) -> set[str]:
    """Operations with another derivative between the outputs of equations that `starts` and `read`, by name."""
    found: set[str] = set()
    _follow(jaxpr, [False] * len(jaxpr.invars), read, starts, found)
    return found


def name_of(eqn: Equation) -> str:
    """What an operation with a derivative of its own is called by its author."""
    if eqn.primitive.name == "stop_gradient":
        return "stop_gradient"
    info = getattr(_inner(eqn), "debug_info", None)
    return f"the custom derivative of {getattr(info, 'func_name', None) or 'a function'}"


def _inner(eqn: Equation) -> Any:
    return next(inner_jaxprs(eqn), None)


def _is_other(eqn: PyTree) -> bool:
    """Whether an operation may have another derivative than that of its value."""
    name = eqn.primitive.name
    if name == "stop_gradient":
        return jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.inexact)  # integers have none
    return name in CUSTOM and not _is_true(eqn)


def _is_true(eqn: Equation) -> bool:
    """Whether the rule of a custom derivative is one of JAX's, NumPyro's or ours; what cannot be told is not."""
    return (rule_file(eqn) or "").startswith(_TRUSTED)


def has_other_derivative(eqn: Equation, neutral: Collection[int] = ()) -> bool:
    """Whether an operation, or one inside of it, may have another derivative than that of its value.

    `neutral`: equations, by id, of which it is known that they have not.
    """
    if _is_other(eqn):
        return id(eqn) not in neutral
    return eqn.primitive.name not in CUSTOM and any(map(has_other_derivatives, inner_jaxprs(eqn)))


def has_other_derivatives(jaxpr: Jaxpr) -> bool:
    """Whether an operation of a program may have another derivative than that of its value."""
    neutral = stabilisers(jaxpr)
    return any(has_other_derivative(eqn, neutral) for eqn in jaxpr.eqns)


def _open(jaxpr: Jaxpr) -> Jaxpr:
    return jaxpr.replace(eqns=[_opened_equation(eqn) for eqn in jaxpr.eqns])


def _opened_equation(eqn: Equation) -> Equation:
    if eqn.primitive.name == "stop_gradient":
        return eqn.replace(primitive=_copy(), params={})
    if eqn.primitive.name in CUSTOM:
        return eqn if _is_true(eqn) else _call(eqn)
    if not any(map(has_other_derivatives, inner_jaxprs(eqn))):
        return eqn
    return eqn.replace(params={name: _opened_param(x) for name, x in eqn.params.items()})


def _opened_param(param: object) -> Any:
    if isinstance(param, tuple | list):
        return type(param)(map(_opened_param, param))
    if isinstance(param, ClosedJaxpr):
        return opened(param)
    return _open(param) if isinstance(param, Jaxpr) else param


def _call(eqn: Equation) -> Equation:
    """The equation as a plain call of the function that it computes."""
    inner = next(p for p in eqn.params.values() if inner_jaxpr(p) is not None)
    closed = opened(inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ()))
    inputs = [jax.ShapeDtypeStruct(aval_of(v).shape, aval_of(v).dtype) for v in eqn.invars]
    traced = jax.make_jaxpr(jax.jit(jaxpr_as_fun(closed)))(*inputs).jaxpr.eqns[-1]
    return eqn.replace(primitive=traced.primitive, params=traced.params)


@functools.cache
def _copy() -> Any:
    return jax.make_jaxpr(lambda x: jnp.array(x, copy=True))(0.0).jaxpr.eqns[-1].primitive


def _follow(
    jaxpr: Jaxpr,
    inputs: list[bool],
    read: Collection[PyTree],
    starts: Callable[..., PyTree],
    found: set[str],
) -> list[bool]:
    """Which outputs the marked inputs reach; on the way, the operations with another derivative."""
    marked = {v for v, flag in zip(jaxpr.invars, inputs, strict=True) if flag}
    is_marked = lambda atom: not isinstance(atom, Literal) and atom in marked
    # How another site draws is its strategy's business: what it depends on stands in its marker.
    inputs_of = lambda eqn: eqn.invars[1:] if eqn.primitive is site_p else eqn.invars
    eqns, live = needed(jaxpr.eqns, read, inputs_of)
    neutral = stabilisers(jaxpr)
    for eqn in eqns:
        flags = [is_marked(v) for v in eqn.invars]
        if _is_other(eqn) and any(flags) and id(eqn) not in neutral:
            found.add(name_of(eqn))
        outs = _outputs(eqn, flags, starts, found, live)
        marked.update(v for v, flag in zip(eqn.outvars, outs, strict=True) if flag)
    return [is_marked(v) for v in jaxpr.outvars]


def _outputs(
    eqn: Equation,
    flags: list[bool],
    starts: Callable[..., PyTree],
    found: set[str],
    live: Collection[Var],
) -> list[bool]:
    if starts(eqn):
        return [True] * len(eqn.outvars)
    name, inner = eqn.primitive.name, list(inner_jaxprs(eqn))
    follow = lambda jaxpr, given: _follow(jaxpr, given, jaxpr.outvars, starts, found)
    if name == "scan":
        num_consts, num_carry = scan_counts(eqn.params)
        # Of what leaves step by step, that which somebody reads: not the numbers that strategies keep.
        inside = inner[0].outvars
        read = [v for i, v in enumerate(inside) if i < num_carry or eqn.outvars[i] in live]
        consts, xs = flags[:num_consts], flags[num_consts + num_carry :]
        step = lambda carry: _follow(inner[0], [*consts, *carry, *xs], read, starts, found)
        return settled(step, flags[num_consts : num_consts + num_carry], operator.or_)[1]
    if name == "cond":
        branches = [follow(jaxpr, flags[1:]) for jaxpr in inner]
        return [flags[0] or any(outs) for outs in zip(*branches, strict=True)]
    if name not in CUSTOM and len(inner) == 1 and len(inner[0].invars) == len(flags):
        return follow(inner[0], flags)
    if name == "while":
        num_cond, num_body = while_counts(eqn.params)
        body, consts = inner_jaxpr(eqn.params["body_jaxpr"]), flags[num_cond : num_cond + num_body]
        step = lambda carry: follow(body, [*consts, *carry])
        return settled(step, flags[num_cond + num_body :], operator.or_)[0]
    return [any(flags)] * len(eqn.outvars)
