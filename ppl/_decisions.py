"""Turn comparisons of a traced program into decisions (`_boundary.py`).

Input: a traced program, its sites. Output: the same program, in which the outcome of each comparison that can be treated is a marker
with an index of its own, and the numbers that its estimator needs.

The program is run anew. Of each variable is known: of which of the sites in question it is a function, also through other sites; whether
it moves with the parameters at fixed noise; and, if it is affine in the value of such a site, element by element and in the shape of
the marker, its two coefficients, which are then no functions of the site.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from ._axis_rules import shape_of
from ._boundary import Decision
from ._compat import bind
from ._engine import StrategySite
from ._primitive import site_p
from ._strategy import stop

Array = jax.Array
TRUE_BELOW = {"lt": True, "le": True, "gt": False, "ge": False}  # where the difference increases
CALLS = ("jit", "pjit")
KEPT = ("copy", "convert_element_type", "reshape", "broadcast_in_dim", "squeeze", "expand_dims")


class Line(NamedTuple):
    """`function(offset + slope * value)`; the function is the identity ("") or an increasing one of `INVERSES`."""

    offset: Array
    slope: Array
    function: str = ""


@dataclasses.dataclass(frozen=True)
class Known:
    """A value of the program and what is known of it."""

    value: Any
    sources: frozenset[int] = frozenset()
    moves: bool = False
    lines: Mapping[int, Line] = dataclasses.field(default_factory=dict)


class Made(NamedTuple):
    """One decision: the site that decides, its own index, its outcome, the difference, its local numbers (arrays)."""

    site: int
    index: int
    outcome: Array
    difference: Array
    place: Array
    local: dict[str, Any]


def _log(x: Array) -> Array:
    """The logarithm, of what is never reached -inf."""
    is_inside = x > 0
    return jnp.where(is_inside, jnp.log(jnp.where(is_inside, x, 1.0)), -jnp.inf)


INVERSES: dict[str, Callable[[Array], Array]] = {"exp": _log, "log": jnp.exp}


def with_decisions(
    closed: ClosedJaxpr, sites: Mapping[int, StrategySite], is_parameter: Sequence[bool]
) -> tuple[ClosedJaxpr, dict[int, tuple[StrategySite, Any]]]:
    """The program with decisions, its outputs first as before; index -> (decision as a site, numbers as atoms)."""
    if not any(s.strategy.has_boundary for s in sites.values()):
        return closed, {}
    jaxpr = closed.jaxpr
    record: list[Made] = []

    def run(consts: list[Any], inputs: list[Any]) -> Any:
        walk = _Walk(sites)
        known = [Known(x) for x in consts]
        moving = [Known(x, moves=m) for x, m in zip(inputs, is_parameter, strict=True)]
        outs = walk.run(jaxpr, known, moving)
        record[:] = walk.made
        return [x.value for x in outs], [_numbers(m, walk.made) for m in walk.made]

    shapes = [[_shape(v) for v in part] for part in (jaxpr.constvars, jaxpr.invars)]
    made, tree = jax.make_jaxpr(run, return_shape=True)(*shapes)
    if not record:
        return closed, {}
    count = len(jaxpr.constvars)
    inner = made.jaxpr
    constvars = [*inner.invars[:count], *inner.constvars]
    new = inner.replace(constvars=constvars, invars=inner.invars[count:])
    _, numbers = jax.tree.unflatten(jax.tree.structure(tree), inner.outvars)
    decisions = {
        m.index: (_as_site(m, sites[m.site], record), atoms)
        for m, atoms in zip(record, numbers, strict=True)
    }
    return ClosedJaxpr(new, [*closed.consts, *made.consts]), decisions


def _shape(v: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype, weak_type=getattr(v.aval, "weak_type", False))


def _peers(one: Made, made: Sequence[Made]) -> list[Made]:
    return [m for m in made if m.site == one.site and m.index != one.index]


def _numbers(one: Made, made: Sequence[Made]) -> dict[str, Any]:
    """What is read of a decision. Peers have the outcome that the order of places says."""
    peers = {}
    for other in _peers(one, made):
        is_before = one.place <= other.place if one.index < other.index else one.place < other.place
        # NaN, a place that is nowhere, is ordered either way: that decision has no part then.
        peers[other.index] = jnp.where(is_before, other.local["below"], ~other.local["below"])
    return {
        "value": one.outcome,
        "log_prob": one.difference,
        "local": {**one.local, "peers": peers},
    }


def _as_site(one: Made, site: StrategySite, made: Sequence[Made]) -> StrategySite:
    number = 1 + sum(m.index < one.index for m in _peers(one, made))
    return dataclasses.replace(
        site,
        index=one.index,
        address=f"{site.address}: comparison {number}",
        strategy=Decision(one.site, tuple(m.index for m in _peers(one, made))),
        why=f"a comparison that '{site.address}' decides",
        distribution="comparison",
        num_values=None,
        support=None,
        fixed=(),
        is_unbounded=False,
        unknown_support="",
        is_reparameterisable=False,
        bounds=(0, 1),
        range=type(site.range)(0.0, 1.0),
        is_discrete=True,
        is_deterministic=False,
    )


class _Walk:
    """One run of the program."""

    def __init__(self, sites: Mapping[int, StrategySite]) -> None:
        self.sites = sites
        self.laws: dict[int, tuple[list[Known], Known]] = {}
        self.made: list[Made] = []

    def run(self, jaxpr: Jaxpr, consts: Sequence[Known], inputs: Sequence[Known]) -> list[Known]:
        env = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, inputs, strict=True))
        read = lambda v: Known(v.val) if isinstance(v, Literal) else env[v]
        for eqn in jaxpr.eqns:
            outs = self._outputs(eqn, [read(v) for v in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _outputs(self, eqn: Any, args: list[Known]) -> list[Known]:
        name = eqn.primitive.name
        if name in CALLS and any(a.lines for a in args):
            inner = eqn.params["jaxpr"]
            return self.run(inner.jaxpr, [Known(c) for c in inner.consts], args)
        values = bind(eqn, [a.value for a in args])
        sources = frozenset().union(*(a.sources for a in args))
        moves = any(a.moves for a in args)
        if eqn.primitive is site_p:
            return [self._site(eqn, args, values[0], sources, moves)]
        if name in TRUE_BELOW and (made := self._decided(name, args, values[0])) is not None:
            return [Known(made, sources)]
        lines: dict[int, Line] = {}
        if len(values) == 1:
            for s in frozenset().union(*(a.lines for a in args)):
                if (line := _line(eqn, args, s, jnp.shape(values[0]))) is not None:
                    lines[s] = line
        return [Known(v, sources, moves, lines) for v in values]

    def _site(
        self, eqn: Any, args: list[Known], value: Array, sources: frozenset[int], moves: bool
    ) -> Known:
        index = eqn.params["index"]
        site = self.sites[index]
        is_kept = not (site.strategy.moves_value or site.strategy.is_relaxed or site.is_deterministic)
        known = Known(value, sources, moves and not is_kept)
        is_plain = value.shape == site.sizes and jnp.issubdtype(value.dtype, jnp.floating)
        if not (site.strategy.has_boundary and is_plain) or any(r.kind in ("scan", "cond") for r in site.regions):
            return known
        line = Line(jnp.zeros_like(value), jnp.ones_like(value))
        known = dataclasses.replace(known, sources=sources | {index}, lines={index: line})
        self.laws[index] = (args[1 : 1 + eqn.params["num_parameters"]], known)
        return known

    def _decided(self, name: str, args: list[Known], outcome: Array) -> Array | None:
        """The outcome of a comparison as a decision's, if it can be one."""
        for s in sorted(frozenset().union(*(a.lines for a in args)), reverse=True):
            line = _difference(args, s)
            if line is None or jnp.shape(outcome) != self.sites[s].sizes:
                continue
            law, drawn = self.laws[s]
            if not (drawn.moves or any(a.moves for a in args)):
                return None
            return self._decision(name, s, law, drawn, line, outcome)
        return None

    def _decision(
        self, name: str, s: int, law: list[Known], drawn: Known, line: Line, outcome: Array
    ) -> Array:
        site = self.sites[s]
        leaves = [a.value if site.strategy.is_pathwise else stop(a.value) for a in law]
        distribution = jax.tree.unflatten(site.law, leaves)
        is_flat = line.slope == 0
        place = -line.offset / jnp.where(is_flat, 1.0, line.slope)
        is_met = jnp.isfinite(place) & distribution.support(stop(place))
        reached = jnp.where(is_met, place, stop(drawn.value))
        index = max([*self.sites, *(m.index for m in self.made)]) + 1
        difference = line.offset + line.slope * drawn.value
        local = {
            "cdf": jnp.broadcast_to(distribution.cdf(reached), outcome.shape),
            "place": stop(reached),
            "is_met": is_met,
            "is_flat": is_flat,
            "below": (line.slope > 0) == TRUE_BELOW[name],
        }
        marked = site_p.bind(outcome, difference, index=index, num_parameters=1)
        self.made.append(Made(s, index, marked, difference, stop(place), local))
        return marked


def _difference(args: Sequence[Known], s: int) -> Line | None:
    """The difference of a comparison's sides, as a line in a site's value; or one that has its sign."""
    a, b = args
    lines = [x.lines.get(s) for x in args]
    if any(line is None and s in x.sources for line, x in zip(lines, args, strict=True)):
        return None
    if all(line is None or not line.function for line in lines):
        return _combined(lines, args, 1.0, -1.0)
    if None not in lines:
        return None
    (known,) = [line for line in lines if line is not None]
    other = INVERSES[known.function](jnp.asarray(b.value if lines[0] is not None else a.value))
    sign = 1.0 if lines[0] is not None else -1.0
    return Line(sign * (known.offset - other), sign * known.slope)


def _combined(lines: Sequence[Line | None], args: Sequence[Known], p: float, q: float) -> Line:
    """p a + q b; an operand without a line does not depend on the site."""
    whole = [line or Line(x.value, jnp.zeros(())) for line, x in zip(lines, args, strict=True)]
    shape = next(line.slope.shape for line in lines if line is not None)
    full = lambda x: jnp.broadcast_to(x, shape)
    return Line(
        full(p * whole[0].offset + q * whole[1].offset),
        full(p * whole[0].slope + q * whole[1].slope),
    )


def _line(eqn: Any, args: Sequence[Known], s: int, shape: tuple[int, ...]) -> Line | None:
    """The line of an equation's result in the value of site `s`, or None."""
    name = eqn.primitive.name
    lines = [a.lines.get(s) for a in args]
    if any(line is None and s in a.sources for line, a in zip(lines, args, strict=True)):
        return None
    known = [line for line in lines if line is not None]
    if any(line.slope.shape != shape for line in known) or not _is_float(eqn):
        return None
    if name in KEPT and len(args) == 1 and _keeps_places(eqn):
        return known[0]
    if any(line.function for line in known):
        return None
    if name in INVERSES:
        return known[0]._replace(function=name)
    if name == "neg":
        return Line(-known[0].offset, -known[0].slope)
    if name in ("add", "add_any", "sub"):
        return _combined(lines, args, 1.0, -1.0 if name == "sub" else 1.0)
    if name == "mul" and len(known) == 1:
        factor = args[1 if lines[0] is not None else 0].value
        return Line(known[0].offset * factor, known[0].slope * factor)
    if name == "div" and lines[1] is None:
        return Line(known[0].offset / args[1].value, known[0].slope / args[1].value)
    return None


def _is_float(eqn: Any) -> bool:
    atoms = [*eqn.invars, *eqn.outvars]
    return all(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in atoms)


def _keeps_places(eqn: Any) -> bool:
    """Whether a move of elements moves none."""
    same = shape_of(eqn.invars[0]) == shape_of(eqn.outvars[0])
    if eqn.primitive.name == "broadcast_in_dim":
        dims = tuple(eqn.params["broadcast_dimensions"])
        return same and dims == tuple(range(len(dims)))
    if eqn.primitive.name == "reshape":
        return same and eqn.params.get("dimensions") is None
    return same
