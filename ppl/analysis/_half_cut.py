"""Draws that a program cuts off from derivatives in one factor of a product, and not in another.

`stop_gradient(w(z)) * f(z)` is differentiated as c * f(z): w is a number, and the draw z still moves in f. Where the draw was
meant to be fixed as a whole (weights times log q at fixed draws), that is another gradient than the one that was meant; where it
was not (weights in front of a path), it is the right one. No analysis can tell these apart, so that it is told and not refused.

Facts of a variable: `moving`, the sources that it is a function of by a path that no `stop_gradient` cuts (a draw counts if its
law moves with the parameters, by such a path); `held`, pairs of a draw and the line at which a function of it was cut; `crossed`,
those of `held` whose draw moves in another factor of the same product, or in an argument of something that is not linear.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro

from .._compat import (
    CALLS,
    Equation,
    Jaxpr,
    Literal,
    Var,
    lines_of,
    scan_counts,
    while_counts,
)
from ..jaxprs import inner_jaxpr, inner_jaxprs, settled, site_p, stabilisers

_PARAMETERS = -1  # a source of its own beside the draws
_folder = lambda file: os.path.dirname(os.path.abspath(file))
_JAX, _OWN = _folder(jax.__file__) + os.sep, _folder(_folder(_folder(__file__)))
_LIBRARY = tuple(os.path.join(_OWN, name) + os.sep for name in ("ppl", "inference", "models"))
_NUMPYRO = _folder(numpyro.__file__) + os.sep
# Of JAX itself only where the public `stop_gradient` is made, not where a function of JAX calls it.
_PLUMBING = tuple(
    os.path.join(_JAX, "_src", *name.split("/"))
    for name in ("lax/", "interpreters/", "core.py", "tree_util.py", "source_info_util.py", "ad_util.py")
)  # fmt: skip
_LINEAR = frozenset(
    "add add_any sub neg reduce_sum cumsum reshape broadcast_in_dim squeeze expand_dims transpose concatenate slice "
    "dynamic_slice dynamic_update_slice gather pad rev copy convert_element_type select_n real imag".split()
)
_PRODUCTS = frozenset("mul dot_general conv_general_dilated".split())

type Held = frozenset[tuple[int, str]]


class Cut(NamedTuple):
    """See the module's text."""

    moving: frozenset[int] = frozenset()
    held: Held = frozenset()
    crossed: Held = frozenset()


NOTHING = Cut()


def half_cut(jaxpr: Jaxpr, num_params: int) -> dict[int, tuple[str, ...]]:
    """Draws that are cut in one factor of what a program returns and move in another: site index -> lines of the cuts.

    Args:
        jaxpr: the program; its first output is the result.
        num_params: how many of its inputs, the first ones, are parameters.
    """
    given = [
        Cut(frozenset([_PARAMETERS])) if i < num_params else NOTHING
        for i in range(len(jaxpr.invars))
    ]
    found: dict[int, list[str]] = {}
    for site, line in sorted(_walk(jaxpr, given)[0].crossed):
        found.setdefault(site, []).append(line)
    return {site: tuple(lines) for site, lines in found.items()}


def _walk(jaxpr: Jaxpr, given: Sequence[Cut]) -> list[Cut]:
    known: dict[Var, Cut] = dict(zip(jaxpr.invars, given, strict=True))
    fact = lambda atom: NOTHING if isinstance(atom, Literal) else known.get(atom, NOTHING)
    neutral: set[int] | None = None
    for eqn in jaxpr.eqns:
        facts = [fact(v) for v in eqn.invars]
        if all(f == NOTHING for f in facts):
            continue
        if eqn.primitive.name == "stop_gradient":
            neutral = stabilisers(jaxpr) if neutral is None else neutral
            outs = [facts[0] if id(eqn) in neutral else _stopped(eqn, facts[0])]
        else:
            outs = _outputs(eqn, facts)
        known.update(zip(eqn.outvars, outs, strict=True))
    return [fact(v) for v in jaxpr.outvars]


def _outputs(eqn: Equation, facts: list[Cut]) -> list[Cut]:
    name = eqn.primitive.name
    if eqn.primitive is site_p:
        # What moves the law of a draw moves in all that the draw enters.
        moving = _union(facts[: 1 + eqn.params["num_parameters"]]).moving - {_PARAMETERS}
        moves = any(f.moving for f in facts[: 1 + eqn.params["num_parameters"]])
        return [Cut(moving | {eqn.params["index"]}) if moves else NOTHING]
    if name == "scan":
        return _scan(eqn, facts)
    if name == "while":
        return _while(eqn, facts)
    if name == "cond":
        branches = [_walk(inner, facts[1:]) for inner in inner_jaxprs(eqn)]
        return [_union([facts[0], *outs]) for outs in zip(*branches, strict=True)]
    if name in CALLS:
        inner = inner_jaxpr(eqn.params[CALLS[name]])
        if inner is not None and len(inner.invars) == len(facts):
            return _walk(inner, facts)
    return [_result(name, facts)] * len(eqn.outvars)


def _result(name: str, facts: list[Cut]) -> Cut:
    found = _union(facts)
    if name in _LINEAR:
        return found
    crossed = set(found.crossed)
    for i, fact in enumerate(facts):
        if name in _PRODUCTS or (name == "div" and i == 0):
            # Linear in each operand, so that only those of different factors meet.
            others = [f for j, f in enumerate(facts) if j != i]
        else:
            others = facts
        moving = frozenset().union(*(f.moving for f in others))
        crossed |= {(site, line) for site, line in fact.held if site in moving}
    return found._replace(crossed=frozenset(crossed))


def _union(facts: Sequence[Cut]) -> Cut:
    return Cut(*(frozenset().union(*parts) for parts in zip(*facts, strict=True)))


def _either(a: Cut, b: Cut) -> Cut:
    return _union([a, b])


def _stopped(eqn: Equation, fact: Cut) -> Cut:
    """A function that is cut here: by the program's author, or by a library, which knows what it does."""
    if not jnp.issubdtype(getattr(eqn.invars[0].aval, "dtype", bool), jnp.inexact):
        return fact  # whole numbers have no derivative that it could cut
    line = _author(eqn)
    own = set() if line is None else {(s, line) for s in fact.moving if s != _PARAMETERS}
    return Cut(held=fact.held | own)


def _author(eqn: Equation) -> str | None:
    """File and line of a `stop_gradient` that stands in no library; None of one that does."""
    for file, line in lines_of(eqn):
        if file.startswith(_PLUMBING):
            continue
        if file.startswith((_JAX, _NUMPYRO, *_LIBRARY)):
            return None
        return f"{os.path.basename(file)}:{line}"
    return None


def _scan(eqn: Equation, facts: list[Cut]) -> list[Cut]:
    num_consts, num_carry = scan_counts(eqn.params)
    inner = next(inner_jaxprs(eqn))
    consts, xs = facts[:num_consts], facts[num_consts + num_carry :]
    step = lambda carry: _walk(inner, [*consts, *carry, *xs])
    carry, outs = settled(step, facts[num_consts : num_consts + num_carry], _either)
    return [*carry, *outs[num_carry:]]


def _while(eqn: Equation, facts: list[Cut]) -> list[Cut]:
    num_cond, num_body = while_counts(eqn.params)
    body, consts = eqn.params["body_jaxpr"].jaxpr, facts[num_cond : num_cond + num_body]
    step = lambda carry: _walk(body, [*consts, *carry])
    return settled(step, facts[num_cond + num_body :], _either)[0]
