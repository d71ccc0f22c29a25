"""Values of a traced program that are affine in one element of a site's value, or an increasing function of such ones.

A line is `function(offset + slope * z[owner])`, element by element of a value: offset and slope are no functions of the site, and
`owner` names the element of the site, by its flat index, that each element of the value depends on. Rules take an equation and
what is known of its operands to the line of its result, or to None, which is always safe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._compat import Equation, aval_of, bind
from ._axis_rules import shape_of

Array = jax.Array
MOVED = frozenset("broadcast_in_dim copy expand_dims reshape rev slice squeeze transpose".split())


class Line(NamedTuple):
    """See the module's text; arrays have the value's shape.

    Attributes:
        function: "" (the identity), or one of `INVERSES`.
        is_bare: it is the site's value itself, in another place at most.
    """

    offset: Array
    slope: Array
    owner: np.ndarray
    function: str = ""
    is_bare: bool = False


@dataclasses.dataclass(frozen=True)
class KnownValue:
    """A value of the program and what is known of it.

    Attributes:
        value: an array of the new trace.
        sources: boundary sites that it is a function of, also through other sites.
        moves: whether it moves with the parameters at fixed noise.
        is_frozen: whether some part of it that moves is cut off from derivatives, or has others than its own.
        number: the value, where it is one number of the program.
        lines: site -> line.
    """

    value: PyTree
    sources: frozenset[int] = frozenset()
    moves: bool = False
    is_frozen: bool = False
    number: float | None = None
    lines: Mapping[int, Line] = dataclasses.field(default_factory=dict)


def _log(x: Array) -> Array:
    """The logarithm; -inf of what it never reaches."""
    is_inside = x > 0
    return jnp.where(is_inside, jnp.log(jnp.where(is_inside, x, 1.0)), -jnp.inf)


def _logit(x: Array) -> Array:
    """The inverse of the logistic function; infinite beyond its range."""
    is_inside = (x > 0) & (x < 1)
    inside = jnp.where(is_inside, x, 0.5)
    inverse = jnp.log(inside) - jnp.log1p(-inside)
    return jnp.where(is_inside, inverse, jnp.where(x > 0, jnp.inf, -jnp.inf))


# Increasing functions of every real number (of the logarithm: of a positive site's own value).
INVERSES: dict[str, Callable[[Array], Array]] = {"exp": _log, "log": jnp.exp, "logistic": _logit}


def site_line(value: Array) -> Line:
    """The line of a site's own value."""
    owner = np.arange(value.size).reshape(value.shape)
    return Line(jnp.zeros_like(value), jnp.ones_like(value), owner, is_bare=True)


def depends(args: Sequence[KnownValue], s: int) -> bool:
    """Whether an operand is a function of site `s` without being a line in it."""
    return any(s in a.sources and s not in a.lines for a in args)


def line_of(eqn: Equation, args: Sequence[KnownValue], s: int, *, is_positive: bool) -> Line | None:
    """The line of an equation's result in site `s`, which is positive or not; or None."""
    if depends(args, s) or not _is_float(eqn):
        return None
    name, shape = eqn.primitive.name, shape_of(eqn.outvars[0])
    lines = [a.lines.get(s) for a in args]
    first = next(line for line in lines if line is not None)
    if name in MOVED and len(args) == 1:
        return _in_place(eqn, first)
    if name == "convert_element_type":
        return first if _is_wider(eqn) else None
    if any(line is not None and line.function for line in lines):
        return None
    if name == "neg":
        return first._replace(offset=-first.offset, slope=-first.slope, is_bare=False)  # -(o + s x)
    if name in INVERSES:
        if name == "log" and not (first.is_bare and is_positive):
            return None
        return first._replace(function=name)
    if name in ("add", "add_any", "sub"):
        return combined(args, s, shape, -1.0 if name == "sub" else 1.0)
    if (name == "mul" and None in lines) or (
        name == "div" and lines[0] is not None and lines[1] is None
    ):
        # (o + s x) c or (o + s x) / c, where c is no function of the site.
        other = args[1 if lines[0] is not None else 0].value
        by = (lambda x: x * other) if name == "mul" else (lambda x: x / other)
        return _full(first._replace(offset=by(first.offset), slope=by(first.slope)), shape)
    return None


def combined(
    args: Sequence[KnownValue], s: int, shape: tuple[int, ...], sign: float
) -> Line | None:
    """The line of a + sign * b; an operand without a line is no function of the site."""
    lines = [a.lines.get(s) for a in args]
    owners = [np.broadcast_to(line.owner, shape) for line in lines if line is not None]
    if any((owner != owners[0]).any() for owner in owners):  # two elements of one site
        return None
    a, b = (
        (jnp.asarray(x.value), jnp.zeros(())) if line is None else (line.offset, line.slope)
        for line, x in zip(lines, args, strict=True)
    )
    return _full(Line(a[0] + sign * b[0], a[1] + sign * b[1], owners[0]), shape)


def difference(args: Sequence[KnownValue], s: int, shape: tuple[int, ...]) -> Line | None:
    """The difference of a comparison's sides as a line in site `s`; or one that has its sign."""
    if depends(args, s):
        return None
    lines = [a.lines.get(s) for a in args]
    if all(line is None or not line.function for line in lines):
        return combined(args, s, shape, -1.0)
    if None not in lines:
        return None
    is_left = lines[0] is not None
    (known,) = [line for line in lines if line is not None]
    other = INVERSES[known.function](jnp.asarray(args[1 if is_left else 0].value))
    sign = 1.0 if is_left else -1.0
    line = Line(sign * (known.offset - other), sign * known.slope, known.owner)
    return _full(line, shape)


def _full(line: Line, shape: tuple[int, ...]) -> Line:
    full = lambda x: jnp.broadcast_to(x, shape)
    owner = np.broadcast_to(line.owner, shape)
    return line._replace(
        offset=full(line.offset), slope=full(line.slope), owner=owner, is_bare=False
    )


def _in_place(eqn: Equation, line: Line) -> Line:
    """A line whose elements an equation moves, repeats or leaves out."""
    with jax.ensure_compile_time_eval():
        owner = np.asarray(bind(eqn, [jnp.asarray(line.owner)])[0])
    offset, slope = (bind(eqn, [x])[0] for x in (line.offset, line.slope))
    return line._replace(offset=offset, slope=slope, owner=owner)


def _is_float(eqn: Equation) -> bool:
    atoms = [*eqn.invars, *eqn.outvars]
    return all(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in atoms)


def _is_wider(eqn: Equation) -> bool:
    """Whether a conversion keeps all digits: others make steps."""
    old, new = (jnp.finfo(aval_of(v).dtype) for v in (eqn.invars[0], eqn.outvars[0]))
    return new.nmant >= old.nmant and new.maxexp >= old.maxexp
