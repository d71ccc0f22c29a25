"""Static analysis of a traced program: what depends on which site, element by element, and where a value may jump.

Input: a jaxpr with site markers. Output, for every top-level variable, two facts:
- its relations to the sites (`_relation.py`). A marker cuts: behind it the value counts as the site's own, not
  as a function of what its distribution depends on. Those dependences are kept per site (`parameters`), so
  that closures can be taken site by site.
- its jumps: the sites of which it may be a discontinuous function (a comparison, cast, floor, argmax, ... stands
  in between), with the operation's name; and the random keys with whose noise parameters decide a jump. A choice
  between values one of which is infinite or NaN is exempt: such a jump is loud.

Invariant: what is reported absent is absent. A jump that is reported may turn out continuous (`where(z > 0,
z, 0)`); `_jumps.py` decides that numerically.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

from ._axis_rules import RULES, mix, shape_of
from ._compat import scan_counts
from ._continuous import is_continuous_call
from ._jaxprs import inner_jaxpr, inner_jaxprs
from ._primitive import MARKERS, key_p, site_p
from ._relation import PARAMS, Relations, Time, aligned, close_time, join, move

Jumps = dict[int | str, str]
COMPARISONS = frozenset("eq ne lt le gt ge".split())
STEPS = frozenset("floor ceil round sign rem nextafter".split())
OPAQUE = frozenset("pure_callback io_callback ffi_call custom_call".split())
CALLS = {
    **dict.fromkeys("jit pjit remat remat2 checkpoint".split(), "jaxpr"),
    **dict.fromkeys("closed_call core_call custom_jvp_call custom_vjp_call".split(), "call_jaxpr"),
}


class Fact(NamedTuple):
    """What is known of one variable."""

    relations: Relations
    jumps: Jumps
    is_loud: bool = False  # a constant that is infinite or NaN


NOTHING = Fact({}, {})


def _join_facts(facts: list[Fact]) -> Fact:
    jumps: Jumps = {}
    for fact in facts:
        jumps.update(fact.jumps)
    return Fact(join(f.relations for f in facts), jumps)


class Analysis:
    """The facts of one traced program.

    Attributes:
        parameters: site -> fact of everything that its distribution's parameters depend on.
        supports: site -> fact of everything that its support depends on.
    """

    def __init__(self, closed: ClosedJaxpr, is_parameter: list[bool]) -> None:
        self.parameters: dict[int, Fact] = {}
        self.supports: dict[int, Fact] = {}
        self._scan_ids = itertools.count()
        self._scans: list[int] = []
        inputs = [Fact({PARAMS: ()}, {}) if flag else NOTHING for flag in is_parameter]
        self._env = self._walk(closed.jaxpr, [_constant(c) for c in closed.consts], inputs)

    def __getitem__(self, atom: Any) -> Fact:
        return _constant(atom.val) if isinstance(atom, Literal) else self._env[atom]

    def _walk(self, jaxpr: Jaxpr, consts: list[Fact], inputs: list[Fact]) -> dict[Var, Fact]:
        env: dict[Var, Fact] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, inputs, strict=True))
        for eqn in jaxpr.eqns:
            facts = [_constant(v.val) if isinstance(v, Literal) else env[v] for v in eqn.invars]
            if not any(f.relations or f.jumps or f.is_loud for f in facts) and not _interesting(
                eqn
            ):
                outs = [NOTHING] * len(eqn.outvars)
            else:
                outs = self._outputs(eqn, facts)
            env.update(zip(eqn.outvars, outs, strict=True))
        return env

    def _call(self, jaxpr: Any, inputs: list[Fact]) -> list[Fact]:
        consts = [_constant(c) for c in jaxpr.consts] if isinstance(jaxpr, ClosedJaxpr) else []
        jaxpr = inner_jaxpr(jaxpr)
        assert jaxpr is not None
        env = self._walk(jaxpr, consts, inputs)
        return [_constant(v.val) if isinstance(v, Literal) else env[v] for v in jaxpr.outvars]

    def _outputs(self, eqn: Any, facts: list[Fact]) -> list[Fact]:
        name = eqn.primitive.name
        if eqn.primitive is site_p:
            return [self._site(eqn, facts)]
        if eqn.primitive is key_p:
            return [Fact({eqn.params["address"]: ()}, {})]
        if name in CALLS:
            outs = self._call(eqn.params[CALLS[name]], facts)
            if is_continuous_call(eqn):
                jumps = _join_facts(facts).jumps
                outs = [out._replace(jumps=jumps) for out in outs]
            return outs
        if name == "scan":
            return self._scan(eqn, facts)
        if name == "cond":
            return self._cond(eqn, facts)
        if name == "while":
            return self._while(eqn, facts)
        relations = RULES.get(name, mix)(eqn, [f.relations for f in facts])
        is_loud = _is_loud(name, facts)
        return [
            Fact(r, _jumps(eqn, out, facts), is_loud)
            for r, out in zip(relations, eqn.outvars, strict=True)
        ]

    def _site(self, eqn: Any, facts: list[Fact]) -> Fact:
        index, count = eqn.params["index"], eqn.params["num_parameters"]
        for table, part in (
            (self.parameters, facts[1 : 1 + count]),
            (self.supports, facts[1 + count :]),
        ):
            table[index] = _join_sources([table.get(index, NOTHING), *part])
        time = tuple(aligned(Time(s)) for s in self._scans)
        return Fact(
            {index: time + tuple(aligned(a) for a in range(len(shape_of(eqn.outvars[0]))))}, {}
        )

    def _scan(self, eqn: Any, facts: list[Fact]) -> list[Fact]:
        num_consts, num_carry = scan_counts(eqn.params)
        consts, carry, xs = (
            facts[:num_consts],
            facts[num_consts : num_consts + num_carry],
            facts[num_consts + num_carry :],
        )
        scan = next(self._scan_ids)
        xs = [
            Fact(move(f.relations, lambda a: a - 1 if a else Time(scan), "scan"), f.jumps)
            for f in xs
        ]
        if eqn.params["reverse"]:  # "causal" would run backwards: mix time instead
            xs = [Fact(close_time(f.relations, scan, None), f.jumps) for f in xs]
        self._scans.append(scan)
        while True:
            outs = self._call(eqn.params["jaxpr"], [*consts, *carry, *xs])
            later = [
                Fact(close_time(f.relations, scan, None, later=True), f.jumps)
                for f in outs[:num_carry]
            ]
            joined = [_join_facts([a, b]) for a, b in zip(carry, later, strict=True)]
            if joined == carry:
                break
            carry = joined
        self._scans.pop()
        carry = [Fact(close_time(f.relations, scan, None), f.jumps) for f in carry]
        # A carry that leaves after the last step also holds that step's own values.
        last = [Fact(close_time(f.relations, scan, None), f.jumps) for f in outs[:num_carry]]
        ys = []
        for fact in outs[num_carry:]:
            shifted = move(fact.relations, lambda a: a + 1, "scan")
            ys.append(
                Fact(close_time(shifted, scan, None if eqn.params["reverse"] else 0), fact.jumps)
            )
        return [_join_facts([a, b]) for a, b in zip(carry, last, strict=True)] + ys

    def _cond(self, eqn: Any, facts: list[Fact]) -> list[Fact]:
        branches = [self._call(b, facts[1:]) for b in eqn.params["branches"]]
        choice = Fact(
            facts[0].relations,
            facts[0].jumps | dict.fromkeys(_movers(facts[0].relations), "cond predicate"),
        )
        return [_join_facts([choice, *outs]) for outs in zip(*branches, strict=True)]

    def _while(self, eqn: Any, facts: list[Fact]) -> list[Fact]:
        num_cond, num_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        cond, body, carry = (
            facts[:num_cond],
            facts[num_cond : num_cond + num_body],
            facts[num_cond + num_body :],
        )
        while True:
            outs = self._call(eqn.params["body_jaxpr"], [*body, *carry])
            joined = [_join_facts([a, b]) for a, b in zip(carry, outs, strict=True)]
            if joined == carry:
                break
            carry = joined
        stop = self._call(eqn.params["cond_jaxpr"], [*cond, *carry])[0]
        stop = Fact(
            stop.relations,
            stop.jumps | dict.fromkeys(_movers(stop.relations), "while predicate"),
        )
        return [
            _join_facts([stop, Fact(move(f.relations, lambda _: None, "while"), f.jumps)])
            for f in carry
        ]


def _interesting(eqn: Any) -> bool:
    """Whether an equation without tainted operands can still produce facts: it holds sites or a loud constant."""
    return eqn.primitive in MARKERS or any(True for _ in inner_jaxprs(eqn))


def _join_sources(facts: list[Fact]) -> Fact:
    """Presence of sources only: parameters of one site have different ranks, so their links are dropped."""
    jumps: Jumps = {}
    for fact in facts:
        jumps.update(fact.jumps)
    return Fact({s: () for f in facts for s in f.relations}, jumps)


def _constant(value: Any) -> Fact:
    if np.ndim(value) == 0 and isinstance(value, float | np.floating | np.ndarray | int):
        return Fact({}, {}, bool(not np.isfinite(value))) if _is_float(value) else NOTHING
    return NOTHING


def _is_float(value: Any) -> bool:
    return isinstance(value, float) or jnp.issubdtype(
        getattr(value, "dtype", np.int32), jnp.floating
    )


def _is_loud(name: str, facts: list[Fact]) -> bool:
    if name in ("broadcast_in_dim", "convert_element_type", "reshape", "neg"):
        return facts[0].is_loud
    return name == "mul" and any(
        f.is_loud for f in facts
    )  # infinity times anything is infinite or NaN


def _jumps(eqn: Any, out: Any, facts: list[Fact]) -> Jumps:
    """Jumps of one output: those of the operands, and new ones where a real number turns into a discrete or opaque one."""
    name = eqn.primitive.name
    if name == "is_finite" or _is_loud(name, facts):
        return {}
    if name in COMPARISONS and (eqn.invars[0] is eqn.invars[1] or any(f.is_loud for f in facts)):
        return {}  # tests for NaN and infinity
    if name == "select_n" and any(f.is_loud for f in facts[1:]):
        facts = facts[1:]
    jumps: Jumps = {}
    is_step = name in STEPS or name in OPAQUE or not _is_real(out)
    stepped: set[int | str] = set()
    for atom, fact in zip(eqn.invars[-len(facts) :], facts, strict=True):
        jumps.update(fact.jumps)
        if is_step and _is_real(atom):
            stepped.update(fact.relations)
    return jumps | dict.fromkeys(_movers(stepped), name)


def _movers(sources: Iterable[int | str]) -> list[int | str]:
    """Sources that move a jump where one operation meets all of `sources`: sites; and noise of a key, if parameters steer it.

    A jump that parameters alone decide lies at a fixed place, where there is no derivative to miss.
    """
    sources = list(sources)
    return [s for s in sources if isinstance(s, int) or (s != PARAMS and PARAMS in sources)]


def _is_real(atom: Any) -> bool:
    return jnp.issubdtype(getattr(atom.aval, "dtype", np.int32), jnp.inexact)
