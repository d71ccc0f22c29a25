"""Turn comparisons of a traced program into decisions (`strategies/_boundary.py`).

Input: a traced program, its sites. Output: the same program, in which the outcome of each comparison that can be treated is a
marker with an index of its own, and the numbers that its estimator needs.

The program is run anew, with what `jaxprs/_lines.py` knows of each variable. A comparison is left as it is, for the search for
jumps to judge, where one side is a function of the site that is no line; where a side is cut off from derivatives (the place
would move without being seen to); and where nothing moves.

Invariant: given all that is not downstream of the site, the outcome is a function of the one element that owns it, and flips at
one place. The place is continuous in what moves if the difference of the sides is and its slope keeps its sign. Both are
handed to the search for jumps as what the marker depends on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._compat import JITS, ClosedJaxpr, Equation, Jaxpr, Literal, Tracer, bind
from .._types import Key
from ..distributions import LAWS
from ..evaluation import draws
from ..jaxprs import (
    KnownValue,
    Line,
    difference,
    has_other_derivative,
    holds_marker,
    is_continuous_call,
    line_of,
    site_line,
    site_p,
    stabilisers,
)
from ..strategies import Boundary, Decision, Peer, StrategySite, stop

Array = jax.Array
TRUE_BELOW = {"lt": True, "le": True, "gt": False, "ge": False}  # where the difference increases


class Made(NamedTuple):
    """One decision: the site that decides, its own index, its outcome, what its place depends on, owners, numbers (arrays)."""

    site: int
    index: int
    outcome: Array
    shown: Array
    owner: np.ndarray
    local: dict[str, PyTree]


def with_decisions(
    closed: ClosedJaxpr, sites: Mapping[int, StrategySite], data: Sequence[PyTree] = ()
) -> tuple[Jaxpr, dict[int, PyTree]]:
    """The program with decisions, its outputs first as before; index -> (decision as a site, numbers as atoms).

    All real numbers that come from outside count as parameters, since arguments can be differentiated too: inputs, constants that
    are not known yet, and those among `data`.
    """
    if not any(isinstance(s.strategy, Boundary) for s in sites.values()):
        return closed, {}
    jaxpr = closed.jaxpr
    record: list[Made] = []
    given = {id(x) for x in data}

    def run(consts: list[PyTree], inputs: list[Key]) -> PyTree:
        walk = _Walk(sites)
        known = [
            KnownValue(x, moves=_is_real(x) and (isinstance(c, Tracer) or id(c) in given))
            for x, c in zip(consts, closed.consts, strict=True)
        ]
        outs = walk.run(jaxpr, known, [KnownValue(x, moves=_is_real(x)) for x in inputs])
        record[:] = walk.made
        return [x.value for x in outs], [_numbers(m, walk.made) for m in walk.made]

    shapes = [[_shape(v) for v in part] for part in (jaxpr.constvars, jaxpr.invars)]
    with jax.disable_jit(False):
        made, tree = jax.make_jaxpr(run, return_shape=True)(*shapes)
    if not record:
        return closed, {}
    # Traced with constants as inputs: the first `count` inputs become constants again, beside those that the trace has added.
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


def _is_real(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _shape(v: PyTree) -> jax.ShapeDtypeStruct:
    weak = getattr(v.aval, "weak_type", False)
    return jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype, weak_type=weak)


def _peers(one: Made, made: Sequence[Made]) -> list[Made]:
    return [m for m in made if m.site == one.site and m.index != one.index]


def _numbers(one: Made, made: Sequence[Made]) -> dict[str, Array | dict[str, Array] | list[PyTree]]:
    peers = {other.index: _ordering(other) for other in _peers(one, made)}
    local = {**one.local, **_ordering(one), "peers": peers}
    always = jnp.ones(())
    return {
        "value": one.outcome,
        "log_prob": one.shown,
        "active": always,
        "fixed": [],
        "local": local,
    }


def _ordering(one: Made) -> dict[str, Array]:
    """What peers read."""
    return {name: one.local[name] for name in ("place", "below", "is_flat")} | {
        "outcome": one.outcome
    }


def _as_site(one: Made, site: StrategySite, made: Sequence[Made]) -> StrategySite:
    number = 1 + sum(m.index < one.index for m in _peers(one, made))
    peers = tuple(Peer(m.index, _flat(m)) for m in _peers(one, made))
    is_by_row = all(_is_identity(m.owner, site.sizes) for m in made if m.site == one.site)
    return StrategySite(
        index=one.index,
        address=f"{site.address}: comparison {number}",
        name=site.name,
        strategy=Decision(one.site, _flat(one), peers, is_by_row),
        why=f"a comparison that '{site.address}' decides",
        distribution="comparison",
        shape=one.owner.shape,
        num_values=None,
        support=None,
        fixed=(),
        is_unbounded=False,
        unknown_support="",
        is_reparameterisable=False,
        bounds=(0, 1),
        range=type(site.range)(0.0, 1.0, False, False),
        is_discrete=True,
    )


def _flat(one: Made) -> tuple[int, ...]:
    return tuple(map(int, one.owner.ravel()))


def _is_identity(owner: np.ndarray, sizes: tuple[int, ...]) -> bool:
    return owner.shape == sizes and bool((owner.ravel() == np.arange(owner.size)).all())


class _Walk:
    """One run of the program."""

    def __init__(self, sites: Mapping[int, StrategySite]) -> None:
        self.sites = sites
        self.laws: dict[int, tuple[list[KnownValue], KnownValue]] = {}
        self.made: list[Made] = []

    def run(
        self, jaxpr: Jaxpr, consts: Sequence[KnownValue], inputs: Sequence[KnownValue]
    ) -> list[KnownValue]:
        env = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, inputs, strict=True))
        read = lambda v: _literal(v) if isinstance(v, Literal) else env[v]
        neutral = stabilisers(jaxpr)
        for eqn in jaxpr.eqns:
            outs = self._outputs(eqn, [read(v) for v in eqn.invars], neutral)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _outputs(
        self, eqn: Equation, args: list[KnownValue], neutral: Collection[int]
    ) -> list[KnownValue]:
        name = eqn.primitive.name
        # A call that a site's line passes is looked into, equation by equation.
        if any(a.lines for a in args) and _is_opened(eqn):
            inner = eqn.params["jaxpr"]
            return self.run(inner.jaxpr, [KnownValue(c) for c in inner.consts], args)
        values = bind(eqn, [a.value for a in args])
        sources = frozenset().union(*(a.sources for a in args))
        moves = any(a.moves for a in args)
        if eqn.primitive is site_p:
            return [self._site(eqn, args, values[0], sources, moves)]
        if name in TRUE_BELOW and (made := self._decided(name, args, values[0])) is not None:
            return [KnownValue(made, sources)]
        # Behind a rule of derivatives of the program's own a value no longer moves as its arithmetic says.
        is_frozen = any(a.is_frozen for a in args) or (moves and has_other_derivative(eqn, neutral))
        lines: dict[int, Line] = {}
        for s in frozenset().union(*(a.lines for a in args)) if len(values) == 1 else ():
            # As a function of site s's value alone: increasing, decreasing, or no line any more.
            line = line_of(eqn, args, s, is_positive=self.sites[s].range.low >= 0)
            if line is not None:
                lines[s] = line
        return [KnownValue(v, sources, moves, is_frozen, lines=lines) for v in values]

    def _site(
        self,
        eqn: Equation,
        args: list[KnownValue],
        value: Array,
        sources: frozenset[int],
        moves: bool,
    ) -> KnownValue:
        index = eqn.params["index"]
        site = self.sites[index]
        strategy = site.strategy
        # Held at its draw, the value moves with no parameter.
        is_kept = not (strategy.moves_value or "slope" in strategy.calls or site.is_deterministic)
        is_frozen = not is_kept and any(a.is_frozen for a in args)
        known = KnownValue(value, sources, moves and not is_kept, is_frozen)
        is_plain = value.shape == site.sizes and jnp.issubdtype(value.dtype, jnp.floating)
        if not (isinstance(strategy, Boundary) and is_plain) or any(
            r.kind != "particles" for r in site.regions
        ):
            return known
        law = args[1 : 1 + eqn.params["num_parameters"]]
        drawn = KnownValue(
            value, sources | {index}, known.moves, is_frozen, lines={index: site_line(value)}
        )
        self.laws[index] = (law, drawn)
        return drawn

    def _decided(self, name: str, args: list[KnownValue], outcome: Array) -> Array | None:
        """The outcome of a comparison as a decision's, if it can be one."""
        if any(a.is_frozen for a in args):
            return None
        # Of several sites the one drawn last decides: the others' values are given to it.
        for s in sorted(frozenset().union(*(a.lines for a in args)), reverse=True):
            line = difference(args, s, outcome.shape)
            if line is None or self._never_flips(args, s):
                continue
            law, drawn = self.laws[s]
            # Where neither side moves with a parameter, neither does the place of the flip: the outcome is a constant.
            if not (drawn.moves or any(a.moves for a in args)):
                return None
            return self._decision(name, s, law, drawn, line, outcome)
        return None

    def _never_flips(self, args: list[KnownValue], s: int) -> bool:
        """Whether the value is compared with a number that it cannot reach, such as an end of its support."""
        bare = [a for a in args if s in a.lines and a.lines[s].is_bare and not a.lines[s].function]
        numbers = [a.number for a in args if a.number is not None]
        low, high = self.sites[s].range[:2]
        return bool(bare) and any(x <= low or x >= high for x in numbers)

    def _decision(
        self,
        name: str,
        s: int,
        law: list[KnownValue],
        drawn: KnownValue,
        line: Line,
        outcome: Array,
    ) -> Array:
        site = self.sites[s]
        # The comparison is o + s x < 0 (or <=, >, >=) with x ~ law: it flips at x* = -o / s. The derivative of its probability is
        # that of F(x*), the law's distribution function ("flow"), in parameters and place.
        at = lambda x: _owned(jnp.broadcast_to(x, site.sizes), line.owner)
        cut = (lambda x: x) if site.strategy.is_pathwise else stop
        cls, names, flow = LAWS[site.distribution]
        parameters = [at(cut(a.value)) for a in law]
        distribution = cls(**dict(zip(names, parameters, strict=True)), validate_args=False)
        is_flat = line.slope == 0
        place = -line.offset / jnp.where(is_flat, 1.0, line.slope)
        # Not met: the place is outside of the support or nowhere. The value itself then stands for it, and counts for nothing.
        is_met = jnp.isfinite(place) & distribution.support(stop(place))
        reached = jnp.where(is_met, place, at(stop(drawn.value)))
        # Where there is no density left, the cost may overflow.
        density = jax.jvp(lambda x: flow(x, *parameters), (reached,), (jnp.ones_like(reached),))[1]
        is_met &= stop(density) > 0
        index = max([*self.sites, *(m.index for m in self.made)]) + 1
        # What the search for jumps must find continuous, so that the place is.
        shown = line.offset + line.slope * at(drawn.value) + jnp.sign(line.slope)
        local = {
            "flow": flow(reached, *parameters),
            "place": stop(place),
            "is_met": is_met,
            "is_flat": is_flat,
            "below": (line.slope > 0) == TRUE_BELOW[name],
        }
        marked = site_p.bind(outcome, shown, index=index, num_parameters=1)
        self.made.append(Made(s, index, marked, shown, line.owner, local))
        return marked


def _owned(x: Array, owner: np.ndarray) -> Array:
    """For each element of a line, that of its owner; without a gather, which counts as mixing rows, where there is no need."""
    if _is_identity(owner, x.shape):
        return x
    if x.size == 1:
        return jnp.broadcast_to(x.reshape(()), owner.shape)
    return x.reshape(-1)[owner]


def _literal(atom: Literal) -> KnownValue:
    is_number = np.ndim(atom.val) == 0 and np.isrealobj(atom.val)
    return KnownValue(atom.val, number=float(atom.val) if is_number else None)


def _is_opened(eqn: Equation) -> bool:
    """Whether comparisons inside a call are looked at: not in samplers, nor where JAX's own function is continuous."""
    return eqn.primitive.name in JITS and not (
        is_continuous_call(eqn) or draws(eqn) or holds_marker(eqn)
    )
