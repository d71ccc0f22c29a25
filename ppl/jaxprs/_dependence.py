"""Static analysis of a traced program: what depends on which site, element by element, and where a value may jump.

Input: a jaxpr with site markers. Output, for every top-level variable, two facts:
- its relations to the sites (`_relation.py`). A marker cuts: behind it the value counts as the site's own, not
  as a function of what its distribution depends on. Those dependences are kept per site (`parameters`), so
  that closures can be taken site by site.
- its jumps: the sites of which it may be a discontinuous function (a comparison, cast, floor, argmax, ... stands
  in between), with the operation's name; and the random keys with whose noise parameters decide a jump. A choice
  between values one of which is infinite or NaN is exempt: such a jump is loud.

Invariant: what is reported absent is absent. A jump that is reported may turn out continuous (`where(z > 0,
z, 0)`); `checks/_jumps.py` decides that numerically.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from jaxtyping import PyTree

from .._compat import CALLS, ClosedJaxpr, Equation, Jaxpr, Literal, Var, scan_counts, while_counts
from ._axis_rules import relations_of_axes, shape_of
from ._continuity import NOTHING, Fact, constant, facts_of, join_facts, merged, silent
from ._continuous import is_continuous_call
from ._interpreter import called, settled
from ._primitive import key_p, site_p
from ._ranges import REALS, Range, widened
from ._relation import PARAMS, Time, aligned, close_time, join, move
from ._seams import Expression, constant_term, term_of


class Analysis:
    """The facts of one traced program.

    Attributes:
        parameters: site -> fact of everything that its distribution's parameters depend on.
        supports: site -> fact of everything that its support depends on.

    Args:
        closed: the traced program.
        is_parameter: which of its inputs are parameters.
        draws: site -> the range of its values, and the continuous noise that it adds (None: it only hands on its parameters').
        data: constants of the trace that are arguments of the program.
        sources: inputs that are sources of their own, element by element: position -> name.
    """

    def __init__(
        self,
        closed: ClosedJaxpr,
        is_parameter: list[bool],
        draws: Mapping[int, tuple[Range, frozenset[int | str] | None]] | None = None,
        data: Sequence[PyTree] = (),
        sources: Mapping[int, str] | None = None,
    ) -> None:
        self.parameters: dict[int, Fact] = {}
        self.supports: dict[int, Fact] = {}
        self._draws = draws or {}
        self._data = {id(x) for x in data}
        self._scan_ids = itertools.count()
        self._scans: list[int] = []
        inputs = [Fact({PARAMS: ()}) if flag else NOTHING for flag in is_parameter]
        for i, source in (sources or {}).items():
            shape = shape_of(closed.jaxpr.invars[i])
            inputs[i] = Fact({source: tuple(aligned(a) for a in range(len(shape)))})
        self._env = self._walk(closed.jaxpr, self._constants(closed), inputs)

    def __getitem__(self, atom: PyTree) -> Fact:
        return constant(atom.val) if isinstance(atom, Literal) else self._env[atom]

    def _walk(self, jaxpr: Jaxpr, consts: list[Fact], inputs: list[Fact]) -> dict[Var, Fact]:
        env: dict[Var, Fact] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, map(_named, inputs), strict=True))
        for eqn in jaxpr.eqns:
            facts = [_known(v.val) if isinstance(v, Literal) else env[v] for v in eqn.invars]
            outs = self._outputs(eqn, facts)
            if len(outs) == 1 and outs[0].term is None:
                outs = [
                    outs[0]._replace(term=term_of(eqn, [f.term or Expression() for f in facts]))
                ]
            env.update(zip(eqn.outvars, map(_named, outs), strict=True))
        return env

    def _call(self, closed: ClosedJaxpr, inputs: list[Fact]) -> list[Fact]:
        env = self._walk(closed.jaxpr, self._constants(closed), inputs)
        return [_known(v.val) if isinstance(v, Literal) else env[v] for v in closed.jaxpr.outvars]

    def _constants(self, closed: ClosedJaxpr) -> list[Fact]:
        """Data have other values at another call, so that nothing is known of theirs."""
        return [NOTHING if id(c) in self._data else constant(c) for c in closed.consts]

    def _outputs(self, eqn: Equation, facts: list[Fact]) -> list[Fact]:
        name = eqn.primitive.name
        if eqn.primitive is site_p:
            return [self._site(eqn, facts)]
        if eqn.primitive is key_p:
            address = eqn.params["address"]
            return [Fact({address: ()}, noise=frozenset([address]))]
        if name in CALLS:
            outs = self._call(called(eqn), facts)
            if is_continuous_call(eqn):
                jumps = silent(facts)
                outs = [out._replace(jumps=jumps, loud={}) for out in outs]
            return outs
        if name == "scan":
            return self._scan(eqn, facts)
        if name == "cond":
            return self._cond(eqn, facts)
        if name == "while":
            return self._while(eqn, facts)
        relations = relations_of_axes(eqn, [f.relations for f in facts])
        return facts_of(eqn, facts, relations)

    def _site(self, eqn: Equation, facts: list[Fact]) -> Fact:
        index, count = eqn.params["index"], eqn.params["num_parameters"]
        for table, part in (
            (self.parameters, facts[1 : 1 + count]),
            (self.supports, facts[1 + count :]),
        ):
            table[index] = _join_sources([table.get(index, NOTHING), *part])
        # The element axes of a site: the time of each scan around it, outermost first, then its own.
        time = tuple(aligned(Time(s)) for s in self._scans)
        relation = time + tuple(aligned(a) for a in range(len(shape_of(eqn.outvars[0]))))
        found, noise = self._draws.get(index, (REALS, frozenset([index])))
        if noise is None:  # a deterministic site: what it draws is what it was given
            return facts[0]._replace(relations={index: relation}, jumps={}, loud={})
        return Fact({index: relation}, noise=noise, range=found)

    def _scan(self, eqn: Equation, facts: list[Fact]) -> list[Fact]:
        num_consts, num_carry = scan_counts(eqn.params)
        consts, carry, xs = (
            facts[:num_consts],
            _unnamed(facts[num_consts : num_consts + num_carry]),
            _unnamed(facts[num_consts + num_carry :]),
        )
        # Inside of the body the leading axis of xs is the scan's time, and the other axes move one to the front.
        scan = next(self._scan_ids)
        into = lambda a: a - 1 if a else Time(scan)
        xs = [f._replace(relations=move(f.relations, into, "scan")) for f in xs]
        closed = lambda f, *where, **how: f._replace(
            relations=close_time(f.relations, scan, *where, **how)
        )
        if eqn.params["reverse"]:  # "causal" would run backwards: mix time instead
            xs = [closed(f, None) for f in xs]

        # A fixed point over the steps: a carry also holds what the step before has made, seen one step later ("causal"). Facts
        # only grow, and ranges are widened, so that it ends.
        def step(carry: list[Fact]) -> list[Fact]:
            outs = self._call(eqn.params["jaxpr"], [*consts, *carry, *xs])
            return [*(closed(f, None, later=True) for f in outs[:num_carry]), *outs]

        self._scans.append(scan)
        carry, outs = settled(step, carry, _next)
        outs = outs[num_carry:]
        self._scans.pop()
        carry = [closed(f, None) for f in carry]
        # A carry that leaves after the last step also holds that step's own values.
        last = [closed(f, None) for f in outs[:num_carry]]
        # Stacked outputs have time as their axis 0, their own axes behind it.
        ys = []
        for fact in outs[num_carry:]:
            shifted = fact._replace(
                term=None, relations=move(fact.relations, lambda a: a + 1, "scan")
            )
            ys.append(closed(shifted, None if eqn.params["reverse"] else 0))
        return [join_facts([a, b]) for a, b in zip(carry, last, strict=True)] + ys

    def _cond(self, eqn: Equation, facts: list[Fact]) -> list[Fact]:
        # Any branch may be taken: what one of them may do, the result may.
        branches = [self._call(b, facts[1:]) for b in eqn.params["branches"]]
        return [_chosen(facts[0], outs) for outs in zip(*branches, strict=True)]

    def _while(self, eqn: Equation, facts: list[Fact]) -> list[Fact]:
        num_cond, num_body = while_counts(eqn.params)
        cond, body, carry = (
            facts[:num_cond],
            facts[num_cond : num_cond + num_body],
            _unnamed(facts[num_cond + num_body :]),
        )
        step = lambda carry: self._call(eqn.params["body_jaxpr"], [*body, *carry])
        carry, _ = settled(step, carry, _next)
        # How many rounds there are depends on the condition: all axes mix, and its sources are sources of the result.
        stop = self._call(eqn.params["cond_jaxpr"], [*cond, *carry])[0]
        relations = [move(f.relations, lambda _: None, "while") for f in carry]
        return [
            _chosen(stop, [f._replace(relations=r)]) for f, r in zip(carry, relations, strict=True)
        ]


def _known(value: PyTree) -> Fact:
    """The fact of a value that is part of the program, with its term."""
    return constant(value)._replace(term=constant_term(value))


def _named(fact: Fact) -> Fact:
    """A fact with a term, if only that of a variable of which nothing is known."""
    return fact if fact.term is not None else fact._replace(term=Expression())


def _unnamed(facts: Sequence[Fact]) -> list[Fact]:
    """Facts of variables that hold one of several values."""
    return [f._replace(term=None) for f in facts]


def _next(carry: Fact, later: Fact) -> Fact:
    """The carry of a loop after one more round."""
    joined = join_facts([carry, later])
    return joined._replace(range=widened(carry.range, joined.range))


def _chosen(choice: Fact, outs: Sequence[Fact]) -> Fact:
    """One of several values, by a branch; what decides is an integer or a boolean, whose own jumps are known."""
    fact = join_facts(outs)
    relations = join([choice.relations, fact.relations])
    return fact._replace(relations=relations, jumps=merged([choice.jumps, fact.jumps]))


def _join_sources(facts: list[Fact]) -> Fact:
    """Presence of sources only: parameters of one site have different ranks, so their links are dropped."""
    jumps = merged([*(f.jumps for f in facts), *(f.loud for f in facts)])
    return Fact({s: () for f in facts for s in f.relations}, jumps)
