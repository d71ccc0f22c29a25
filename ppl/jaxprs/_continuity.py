"""Where a value may jump: what each operation, by its row in the table (`_catalogue.py`), does to the jumps of its operands.

Terms
- A jump is *silent* where the value is finite on both sides, *loud* where it goes to infinity or NaN, or through a pole.
  Loud ones stay loud in sums, and an expectation in which one is left is infinite or NaN for all to see; any other operation
  may make them silent again (exp(-inf) = 0).
- A finite value may *overflow*. Infinities made so are what the functions tend to, and no jump, but for a *reader* of infinities
  (`isfinite`, `isnan`, a comparison with infinity): it jumps where its operand leaves the numbers of its precision.
- A jump counts where continuous *noise* decides it: a random site, or a random key. One that parameters or discrete draws alone
  decide lies at isolated parameters, where there is no derivative to miss.
- The *movers* of a jump are what can push a value across it: sites, and the parameters themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._compat import Atom, Equation, Var
from ._catalogue import (
    COMPARISONS,
    DOMAINS,
    ENTIRE,
    GROWING,
    INTEGERS,
    KEEPS_INFINITY,
    KEEPS_INFINITY_INSIDE,
    MAX_FACTOR,
    MAX_POWER,
    PLACES,
    PRODUCTS,
    SIGNED,
    SMOOTH,
    SOLVED,
    STEPS,
    SUMS,
    ZEROS,
)
from ._ranges import REALS, Range, number, range_of_constant, ranges_of, union
from ._relation import PARAMS, Relations, join
from ._seams import Expression, agree_on_seam, is_idle


class Cause(NamedTuple):
    """Why a value may jump: the operation, the noise that decides, and whether it passes through a pole, or is an overflow."""

    operation: str
    noise: frozenset[int | str] = frozenset()
    is_pole: bool = False
    is_overflow: bool = False


Jumps = dict[int | str, Cause]


class Fact(NamedTuple):
    """What is known of one variable.

    Attributes:
        relations: on which elements of which sources it depends.
        jumps: source -> why it may jump silently as that source moves.
        loud: source -> why it may jump to infinity or NaN, or through a pole.
        noise: sources of continuous noise of which it is more than a piecewise constant function.
        range: the numbers that it can hold where it is finite.
        is_loud: it is a constant that is infinite or NaN.
        keeps_sign: it is a product of factors that are zero, or are not, whatever the noise.
        term: how it comes about element by element, where that is known.
        before: of a comparison, the jumps of its sides.
        grows: it may overflow.
    """

    relations: Relations
    jumps: Jumps = {}
    loud: Jumps = {}
    noise: frozenset[int | str] = frozenset()
    range: Range = REALS
    is_loud: bool = False
    keeps_sign: bool = False
    term: Expression | None = None
    before: Jumps = {}
    grows: bool = False

    @property
    def avoids_zero(self) -> bool:
        """Whether noise cannot bring it to zero: if it is ever zero, it is always."""
        return self.keeps_sign or not self.noise or self.range.is_nonzero


NOTHING = Fact({})


def constant(value: PyTree) -> Fact:
    """The fact of a value that is part of the program."""
    is_float = isinstance(value, float) or jnp.issubdtype(
        getattr(value, "dtype", np.int32), jnp.floating
    )
    if np.ndim(value) == 0 and isinstance(value, float | np.floating | np.ndarray) and is_float:
        if not np.isfinite(value):
            return Fact({}, is_loud=True)
    return Fact({}, range=range_of_constant(value))


def merged(many: Iterable[Jumps]) -> Jumps:
    """All causes together; of two causes of one source that which passes through a pole, with the noise of both."""
    out: Jumps = {}
    for jumps in many:
        for source, cause in jumps.items():
            old = out.get(source, cause)
            first = cause if cause.is_pole and not old.is_pole else old
            is_overflow = old.is_overflow or cause.is_overflow
            out[source] = first._replace(noise=old.noise | cause.noise, is_overflow=is_overflow)
    return out


def join_facts(facts: Sequence[Fact]) -> Fact:
    """The fact of a variable that holds the value of one of several."""
    return Fact(
        join(f.relations for f in facts),
        merged(f.jumps for f in facts),
        merged(f.loud for f in facts),
        frozenset().union(*(f.noise for f in facts)),
        union(f.range for f in facts),
        all(f.is_loud for f in facts),
        all(f.avoids_zero for f in facts),
        grows=any(f.grows for f in facts),
    )


def movers(
    operation: str, facts: Sequence[Fact], *, is_pole: bool = False, is_overflow: bool = False
) -> Jumps:
    """Who moves a jump that one operation makes of these operands: all they depend on, if noise is part of it."""
    noise = frozenset().union(*(f.noise for f in facts))
    if not noise:
        return {}
    sources = {s for f in facts for s in f.relations if isinstance(s, int) or s == PARAMS}
    return dict.fromkeys(sources, Cause(operation, noise, is_pole, is_overflow))


def is_real(atom: Atom) -> bool:
    """Whether a variable holds real or complex numbers."""
    return jnp.issubdtype(getattr(atom.aval, "dtype", np.int32), jnp.inexact)


def is_complex(atom: Atom) -> bool:
    return jnp.issubdtype(getattr(atom.aval, "dtype", np.int32), jnp.complexfloating)


def silent(facts: Sequence[Fact]) -> Jumps:
    """The jumps of operands after an operation that may turn infinity into a number."""
    return merged([*(f.jumps for f in facts), *(f.loud for f in facts)])


def facts_of(eqn: Equation, facts: Sequence[Fact], relations: Sequence[Relations]) -> list[Fact]:
    """The facts of an equation's results; `relations` are those of the results."""
    name = eqn.primitive.name
    # Beyond the numbers, where infinity may turn into one.
    keeps = name in PLACES | SUMS | PRODUCTS | KEEPS_INFINITY or name == "select_n"
    ranges = ranges_of(eqn, [f.range if keeps or not f.loud else REALS for f in facts])
    if not any(f.relations or f.noise or f.is_loud for f in facts):  # nothing moves it
        return [Fact({}, range=r) for r in ranges]
    if name == "select_n":
        return [_selected(facts, relations[0], ranges[0])]
    out = []
    for number_of, (atom, relation, found) in enumerate(
        zip(eqn.outvars, relations, ranges, strict=True)
    ):
        fact = _fact(name, eqn, number_of, facts, atom, found)
        keeps_sign = name in SIGNED and all(f.avoids_zero for f in facts)
        grows = is_real(atom) and _grows(name, eqn, facts, found)
        fact = fact._replace(relations=relation, keeps_sign=keeps_sign, grows=grows)
        if fact.range.is_number and not fact.loud:  # the same whatever happens
            fact = fact._replace(jumps={}, noise=frozenset())
        out.append(fact)
    return out


def _grows(name: str, eqn: Equation, facts: Sequence[Fact], found: Range) -> bool:
    """Whether a result may overflow; not so the largest of many, whose reader guards a logarithm of a sum of exponentials."""
    if name == "reduce_max" or (np.isfinite(found.low) and np.isfinite(found.high)):
        return False
    sizes = [max(abs(f.range.low), abs(f.range.high)) for f in facts if not f.relations]
    is_large = name in PRODUCTS and any(MAX_FACTOR <= x < np.inf for x in sizes)
    is_large |= name == "div" and not facts[1].relations and 0 < sizes[-1] <= 1 / MAX_FACTOR
    is_large |= name == "integer_pow" and abs(eqn.params["y"]) > MAX_POWER
    return is_large or name in GROWING or any(f.grows for f in facts)


def _fact(
    name: str, eqn: Equation, which: int, facts: Sequence[Fact], atom: Var, found: Range
) -> Fact:
    noise = frozenset().union(*(f.noise for f in facts))
    kept = Fact({}, merged(f.jumps for f in facts), merged(f.loud for f in facts), noise, found)
    swallowed = kept._replace(jumps=silent(facts), loud={})
    if name in COMPARISONS or name == "is_finite":
        return _compared(name, eqn, facts, found)
    has_complex = any(map(is_complex, [*eqn.invars, *eqn.outvars]))
    if name in STEPS or (not is_real(atom) and any(map(is_real, eqn.invars))):
        return _stepped(name, eqn, facts, found)
    if has_complex and name not in PLACES | SUMS | ENTIRE:
        return swallowed._replace(jumps=merged([swallowed.jumps, movers(name, facts)]))
    if name in PLACES:
        is_loud = facts[0].is_loud and name in (
            "broadcast_in_dim",
            "reshape",
            "convert_element_type",
        )
        return kept._replace(is_loud=is_loud, before=facts[0].before)
    if name in SUMS:
        return _summed(name, facts, kept)._replace(is_loud=name == "neg" and facts[0].is_loud)
    if name in PRODUCTS:
        is_loud = name == "mul" and any(f.is_loud for f in facts)
        return _multiplied(facts, kept)._replace(is_loud=is_loud)
    if name in DOMAINS or name in ZEROS or name in SOLVED:
        return _bounded(name, eqn, facts, kept, swallowed)
    if name in KEEPS_INFINITY:
        return kept
    if name in SMOOTH or name in INTEGERS:
        return swallowed
    if name == "atan2" and facts[1].range.is_positive:
        return swallowed
    if name == "sort":
        keys = facts[: eqn.params["num_keys"]]
        return swallowed if which == 0 else _jumping(name, keys, swallowed)
    if name == "top_k" or (name in ("eigh", "svd") and which == {"eigh": 1, "svd": 0}[name]):
        return swallowed
    return _jumping(name, facts, swallowed)


def _jumping(name: str, deciding: Sequence[Fact], swallowed: Fact) -> Fact:
    """A result that may jump, also to infinity, in all that decides."""
    new = movers(name, deciding)
    loud = {s: c._replace(is_pole=True) for s, c in new.items()}
    return swallowed._replace(jumps=merged([swallowed.jumps, new]), loud=loud, range=REALS)


def _stepped(name: str, eqn: Equation, facts: Sequence[Fact], found: Range) -> Fact:
    """What becomes of real numbers in a piecewise constant function: their noise no longer moves it."""
    real = [f for atom, f in zip(eqn.invars, facts, strict=True) if is_real(atom)]
    rest = [f for atom, f in zip(eqn.invars, facts, strict=True) if not is_real(atom)]
    jumps = merged([silent(facts), movers(name, real)])
    if name in ("bitcast_convert_type", "to_edtype"):  # bits are as fine as the number
        rest = list(facts)
    return Fact(
        {}, jumps, {}, frozenset().union(*(f.noise for f in rest)), found, before=silent(facts)
    )


def _compared(name: str, eqn: Equation, facts: Sequence[Fact], found: Range) -> Fact:
    is_test = name == "is_finite" or eqn.invars[0] is eqn.invars[1]
    is_test = is_test or any(f.is_loud for f in facts)
    if not is_test:
        return _stepped(name, eqn, facts, found)
    if over := [f for f in facts if f.grows]:
        jumps = merged([silent(facts), movers(f"{name} of an overflow", over, is_overflow=True)])
        return Fact({}, jumps, {}, frozenset(), found, before=jumps)
    num_loud = sum(f.is_loud for f in facts)
    if not merged(f.loud for f in facts) and num_loud < len(facts):
        if name == "is_finite" or (name in ("eq", "ne") and num_loud < 2):
            is_same = num_loud == 0  # a finite number is equal to itself, and to no infinity
            found = number(float(is_same if name != "ne" else not is_same))
    return Fact({}, silent(facts), {}, frozenset(), found, before=silent(facts))


def _selected(facts: Sequence[Fact], relations: Relations, found: Range) -> Fact:
    which, branches = facts[0], facts[1:]
    if which.range.is_number:
        return branches[int(which.range.low)]._replace(relations=relations)
    terms = [f.term for f in facts if f.term is not None]
    if len(facts) == len(terms) == 3 and is_idle(*terms):
        return branches[0 if terms[0].operation == "eq" else 1]._replace(relations=relations)
    finite = [f for f in branches if not f.is_loud]
    fact = join_facts(finite) if finite else branches[0]
    if len(finite) < 2 and len(finite) < len(branches):  # the choice leads to infinity or NaN
        loud = merged([fact.loud, which.jumps])
        return fact._replace(relations=relations, loud=loud)
    is_seamless = len(facts) == len(terms) == 3 and agree_on_seam(*terms)
    jumps = merged([fact.jumps, which.before if is_seamless else which.jumps])
    loud = merged([fact.loud, which.jumps]) if len(finite) < len(branches) else fact.loud
    return fact._replace(relations=relations, jumps=jumps, loud=loud, range=found)


def _summed(name: str, facts: Sequence[Fact], kept: Fact) -> Fact:
    """Poles at one place, of one source, may cancel and leave a finite jump."""
    poles = [{s: c for s, c in f.loud.items() if c.is_pole} for f in facts]
    if name == "neg" or not any(poles):
        return kept
    meet = merged(poles)
    if name in ("add", "add_any", "sub"):
        meet = {s: c for s, c in meet.items() if all(s in p for p in poles)}
    return kept._replace(jumps=merged([kept.jumps, meet]))


def _multiplied(facts: Sequence[Fact], kept: Fact) -> Fact:
    """A pole meets a factor that may vanish there."""
    jumps = [kept.jumps]
    for n, fact in enumerate(facts):
        others = [f for m, f in enumerate(facts) if m != n]
        if fact.loud and not all(f.avoids_zero for f in others):
            jumps.append(fact.loud)
    return kept._replace(jumps=merged(jumps))


def _bounded(name: str, eqn: Equation, facts: Sequence[Fact], kept: Fact, swallowed: Fact) -> Fact:
    """A function that is infinite or NaN at the edge of its domain and beyond."""
    if name == "integer_pow" and eqn.params["y"] >= 0:
        return kept
    fact = kept if name in KEEPS_INFINITY_INSIDE else swallowed
    if name == "div":  # infinite / finite stays infinite
        fact = kept._replace(jumps=merged([kept.jumps, facts[1].loud]))
    if name in ZEROS:
        deciding = [facts[ZEROS[name]]]
        is_inside = deciding[0].avoids_zero or (name == "sqrt" and deciding[0].range.low >= 0)
    elif name in SOLVED:
        deciding, is_inside = list(facts[: SOLVED[name]]), False
    else:
        deciding, is_inside = list(facts), _is_inside(name, facts)
    if is_inside:
        return fact
    new = movers(name, deciding, is_pole=True)
    jumps = fact.jumps
    # 0 / 0, 0 ** 0 and the solution of 0 x = 0 are finite jumps.
    if name == "pow" or name in SOLVED or (name == "div" and not facts[0].avoids_zero):
        jumps = merged([jumps, new])
    return fact._replace(jumps=jumps, loud=merged([fact.loud, new]))


def _is_inside(name: str, facts: Sequence[Fact]) -> bool:
    ranges = [f.range for f in facts]
    if name == "pow" and ranges[1].is_number and ranges[1].low >= 0:
        # A constant exponent: of a whole number every base, else every base that is not negative.
        return ranges[1].low == round(ranges[1].low) or ranges[0].low >= 0
    return bool(DOMAINS[name](*ranges))
