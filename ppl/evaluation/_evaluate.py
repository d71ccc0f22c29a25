"""Evaluate a traced program with the values of chosen sites replaced.

Input: a jaxpr that contains site markers (`jaxprs/_primitive.py`), its inputs, and for some sites a forced value.
Output: values of any of its top-level variables. Sites that are not forced keep their own draw; since keys
are inputs of the jaxpr, two evaluations with the same key share all remaining noise (common random numbers).

Layout of a forced value: time axes of the enclosing scans (outermost first), then lane axes of the enclosing
`particles` (outermost first), then the site's own shape.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from .._compat import JITS, ClosedJaxpr, Jaxpr, Literal, Var, bind, scan_counts
from ..jaxprs import holds_marker, inner_jaxprs, key_p, needed, shape_of, site_p
from ._passes import is_on
from ._same import Same, Uniform, known, on_same
from ._split import Split, whole
from ._unrolled import Forced as Forced, NeedsLoop, Windows, elementwise, unrolled_scan

Given = Forced | Windows | Uniform
Apply = Callable[[Any, list[Any]], list[Any]]  # (equation, operands) -> results


def evaluate(
    closed: ClosedJaxpr,
    inputs: Sequence[Any],
    forced: Mapping[int, Given],
    read: Sequence[Any] | None = None,
    given: Mapping[Var, Any] | None = None,
    apply: Apply = bind,
) -> list[Any]:
    """Run `closed` on `inputs`; return the values of the variables `read` (default: its outputs).

    With sites forced to `Windows`, what sees them is returned as a `Split`. `given`: variables whose values are known (of
    `Invariants`), so that their equations are not run. `apply` evaluates the equations outside of control flow.

    Raises:
        NeedsLoop: a site forced to `Windows` needs a loop (`_unrolled.py`).
    """
    read = closed.jaxpr.outvars if read is None else read
    values = _walk(closed.jaxpr, closed.consts, inputs, forced, read, given or {}, apply)
    return [x.arrays() if isinstance(x, Split) else jnp.asarray(whole(x)) for x in values]


def _run(
    jaxpr: Jaxpr, consts: Any, inputs: Any, forced: Mapping[int, Given], read: Any
) -> list[Any]:
    """The values of `read` as arrays."""
    values = _walk(jaxpr, consts, inputs, forced, read)
    if any(isinstance(x, Split) for x in values):
        raise NeedsLoop
    return [jnp.asarray(whole(x)) for x in values]


def _walk(
    jaxpr: Jaxpr,
    consts: Any,
    inputs: Any,
    forced: Mapping[int, Given],
    read: Any,
    given: Mapping[Var, Any] = MappingProxyType({}),
    apply: Apply = bind,
) -> list[Any]:
    """The values of `read`, split or as one number where they are left so."""
    # Arrays filled with one number are left as one number where they may meet others.
    is_lazy = is_on("numbers") and any(isinstance(x, Uniform | Windows) for x in forced.values())
    is_lazy = is_lazy or any(isinstance(x, Same) for x in inputs)
    env: dict[Var, Any] = {}
    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, inputs, strict=True))
    env.update(given)
    uncut = lambda eqn: () if is_cut(eqn, forced) else eqn.invars
    eqns, live = needed(jaxpr.eqns, read, uncut, given)
    run_into(env, eqns, live, forced, is_lazy=is_lazy, apply=apply)
    return [_value(env, v) for v in read]


def _value(env: Mapping[Var, Any], atom: Any) -> Any:
    return atom.val if isinstance(atom, Literal) else env[atom]


def run_into(
    env: dict[Var, Any],
    eqns: Sequence[Any],
    live: Collection[Any],
    forced: Mapping[int, Given],
    *,
    is_lazy: bool,
    apply: Apply = bind,
) -> None:
    """Run equations one after the other on the values in `env`, and add theirs.

    Args:
        env: variable -> value.
        eqns: the equations.
        live: the variables that count.
        forced: replacements.
        is_lazy: leave arrays that are filled with one number as one number.
        apply: evaluates an equation outside of control flow.
    """
    for eqn in eqns:
        if is_cut(eqn, forced):
            draw, given = eqn.outvars[0].aval, forced[eqn.params["index"]]
            number = jnp.asarray(given.value, draw.dtype)  # type: ignore[union-attr]
            env[eqn.outvars[0]] = (
                Same(number, draw.shape, given.lane)
                if isinstance(given, Uniform)
                else number.reshape(draw.shape)
            )
            continue
        args = [_value(env, v) for v in eqn.invars]
        if is_lazy and eqn.primitive.name == "broadcast_in_dim" and not shape_of(eqn.invars[0]):
            number, shape = args[0], eqn.outvars[0].aval.shape
            env[eqn.outvars[0]] = (
                Same(number.value, shape, number.lane)
                if isinstance(number, Same)
                else Same(number, shape)
            )
            continue
        outs = _in_parts(eqn, args, forced, is_lazy, live, apply)
        if outs is not None:
            env.update(zip(eqn.outvars, outs, strict=True))
            continue
        args = [whole(a) for a in args]
        if eqn.primitive is site_p:
            outs = [_replace(args[0], forced.get(eqn.params["index"]))]
        elif eqn.primitive is key_p:
            outs = args
        elif holds_marker(eqn):
            outs = _CONTROL[eqn.primitive.name](eqn, args, forced)
        else:
            outs = apply(eqn, args)
        env.update(zip(eqn.outvars, outs, strict=True))


def _in_parts(
    eqn: Any,
    args: list[Any],
    forced: Mapping[int, Given],
    is_lazy: bool,
    live: Collection[Any],
    apply: Apply,
) -> list[Any] | None:
    """The equation evaluated at all steps at once (`_unrolled.py`), or once (`_same.py`), where that is asked for."""
    inline = functools.partial(_inline, apply)
    is_split = any(isinstance(a, Split) for a in args)
    if eqn.primitive.name == "scan":
        inside = _inside(eqn, forced)
        args = [whole(a) for a in args]
        if is_split or any(isinstance(f, Windows) for f in inside.values()):
            return unrolled_scan(eqn, args, inside, _walk, [v in live for v in eqn.outvars])
        return None
    if is_split:
        if holds_marker(eqn):
            raise NeedsLoop
        return elementwise(eqn, [whole(a) for a in args], inline)
    if is_lazy and (number := known(eqn, args)) is not None:
        return [number]
    if any(isinstance(a, Same) for a in args) and not holds_marker(eqn):
        return on_same(eqn, args, inline)
    if apply is not bind and eqn.primitive.name in JITS and not holds_marker(eqn):
        inner = eqn.params["jaxpr"]
        return inline(inner.jaxpr, inner.consts, args)
    return None


def _inline(apply: Apply, jaxpr: Jaxpr, consts: Any, inputs: Any) -> list[Any]:
    return _walk(jaxpr, consts, inputs, {}, jaxpr.outvars, apply=apply)


def _inside(eqn: Any, forced: Mapping[int, Given]) -> dict[int, Given]:
    """The replacements of sites in the body of a scan."""
    if not forced:
        return {}
    sites = sites_in(eqn.params["jaxpr"].jaxpr)
    return {i: f for i, f in forced.items() if i in sites}


def is_cut(eqn: Any, forced: Mapping[int, Given]) -> bool:
    """Whether the equation is a marker whose value is given everywhere, so that nothing before it counts."""
    given = forced.get(eqn.params["index"]) if eqn.primitive is site_p else None
    return isinstance(given, Uniform) or isinstance(given, Forced) and given.mask is None


def _replace(draw: jax.Array, forced: Given | None) -> jax.Array:
    if forced is None:
        return draw
    assert isinstance(forced, Forced) and forced.mask is not None  # else the marker is cut
    value = jnp.asarray(forced.value, draw.dtype).reshape(draw.shape)
    mask = forced.mask.reshape(forced.mask.shape + (1,) * (draw.ndim - forced.mask.ndim))
    return jnp.where(mask, value, draw)


def _scan(eqn: Any, args: list[Any], forced: Mapping[int, Given]) -> list[Any]:
    num_consts, num_carry = scan_counts(eqn.params)
    consts, init, xs = (
        args[:num_consts],
        args[num_consts : num_consts + num_carry],
        args[num_consts + num_carry :],
    )
    body, length = eqn.params["jaxpr"], eqn.params["length"]
    inside = _inside(eqn, forced)

    def step(carry: Any, x: Any) -> tuple[Any, Any]:
        here, x = x
        outs = _run(body.jaxpr, body.consts, [*consts, *carry, *x], here, body.jaxpr.outvars)
        return outs[:num_carry], outs[num_carry:]

    carry, ys = jax.lax.scan(
        step,
        init,
        (inside, xs),
        length,
        reverse=eqn.params["reverse"],
        unroll=eqn.params["unroll"],
    )
    return [*carry, *ys]


def _cond(eqn: Any, args: list[Any], forced: Mapping[int, Given]) -> list[Any]:
    branches = [_branch(b, forced) for b in eqn.params["branches"]]
    return jax.lax.switch(args[0], branches, *args[1:])


def _branch(branch: ClosedJaxpr, forced: Mapping[int, Given]) -> Callable[..., list[Any]]:
    return lambda *args: _run(branch.jaxpr, branch.consts, args, forced, branch.jaxpr.outvars)


def sites_in(jaxpr: Jaxpr) -> set[int]:
    """Indices of the sites whose markers a jaxpr holds."""
    found = {eqn.params["index"] for eqn in jaxpr.eqns if eqn.primitive is site_p}
    for eqn in jaxpr.eqns:
        for inner in inner_jaxprs(eqn):
            found |= sites_in(inner)
    return found


_CONTROL: dict[str, Callable[[Any, list[Any], Mapping[int, Given]], list[Any]]] = {
    "scan": _scan,
    "cond": _cond,
}
